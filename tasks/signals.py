"""Stage `signals`: what models say of the stored rollouts' tokens: logprobs, entropies and values, as a table."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from storage.artifact import Part
from storage.parquet import list_array
from storage.schema import FLOATS
from tasks.completions import prompt_tokens, ragged
from tasks.config import Experiment
from tasks.core.advantage import SIGNALS as ESTIMATOR_SIGNALS
from tasks.stage import Context, Summary, stage

if TYPE_CHECKING:
    from tasks.engines.policy import Policy

MICRO_BATCH_TOKENS = 8192
"""Tokens (padding included) in one forward pass without gradient."""
OF_POLICY = ("trainer_logprobs", "entropies")
SIGNALS = (*OF_POLICY, "reference_logprobs", "values")


def signals_of_estimator(estimator: str) -> tuple[str, ...]:
    """Signals that the credit stage needs for this estimator."""
    return ESTIMATOR_SIGNALS.get(estimator, ())


def needs_critic(experiment: Experiment) -> bool:
    return "values" in signals_of_estimator(experiment.estimator)


def signals_of_training(experiment: Experiment) -> tuple[str, ...]:
    """Signals that the updates need: for importance sampling, for the KL to the reference, and for the critic."""
    needed = {
        "trainer_logprobs": getattr(experiment.train, "importance_sampling", "none") != "none",
        "reference_logprobs": getattr(experiment.train, "kl_coefficient", 0.0) > 0,
        "values": needs_critic(experiment),
    }
    return tuple(name for name, is_needed in needed.items() if is_needed)


def wanted_signals(experiment: Experiment) -> tuple[str, ...]:
    """Every signal that a step of the experiment needs, for its credit or for its updates."""
    needed = {*signals_of_estimator(experiment.estimator), *signals_of_training(experiment)}
    return tuple(name for name in SIGNALS if name in needed)


@stage("signals", version=1)
def signals(
    context: Context,
    *,
    wanted: tuple[str, ...],
    policy: Part | None,
    reference: Part | None,
    critic: Part | None,
    prompts: Part,
    rollouts: Part,
    temperature: float,
) -> Summary:
    """Compute the `wanted` signals of every token of every rollout; models that none of them needs are None."""
    rows = rollouts.read(["rollout_id", "group_id", "prompt_id", "token_ids"])
    forward = _Forward(context, prompt_tokens(prompts, rows), ragged(rows, "token_ids"), temperature)
    found: dict[str, np.ndarray] = {}
    if set(wanted) & set(OF_POLICY):
        assert policy is not None
        found |= dict(zip(OF_POLICY, forward.logprobs(policy), strict=True))
    if "values" in wanted:
        assert critic is not None
        found["values"] = forward.values(critic, policy)
    if "reference_logprobs" in wanted:
        assert reference is not None
        found["reference_logprobs"] = forward.logprobs(reference)[0]
    columns: dict[str, Any] = {name: rows.column(name) for name in ("rollout_id", "group_id")}
    for name in SIGNALS:
        is_there = name in wanted
        columns[name] = (
            list_array(found[name], forward.offsets, FLOATS) if is_there else pa.nulls(rows.num_rows, FLOATS)
        )
    context.staging.add_table("signals", columns)
    means = {f"mean_{name}": round(float(found[name].mean()), 4) for name in wanted if found[name].size}
    return means | {"tokens": int(forward.offsets[-1])}


class _Forward:
    """Passes of models over the completions, in micro-batches and without gradient; results are flat, [N]."""

    def __init__(
        self, context: Context, prompts: list[np.ndarray], completions: list[np.ndarray], temperature: float
    ) -> None:
        self.context, self.prompts, self.completions, self.temperature = context, prompts, completions, temperature
        self.offsets = np.cumsum([0, *(len(completion) for completion in completions)])

    def logprobs(self, policy: Part) -> list[np.ndarray]:
        """Log-probabilities and entropies under a policy, at the sampling temperature."""
        from tasks.engines.trainer import completion_logprobs

        held = self._policy(policy)
        return self._pass(2, lambda asked, given: completion_logprobs(held, asked, given, self.temperature))

    def values(self, critic: Part, policy: Part | None) -> np.ndarray:
        """V(s_t) of a critic; `policy` lends its backbone to one without its own."""
        from tasks.engines import critic as machine
        from tasks.engines import policy as engine

        held = self._policy(policy) if policy is not None else None
        judge = machine.load_critic(critic.path, engine.choose_device(self.context.device))
        size = judge.num_parameters + (held.num_parameters if held is not None else 0)
        engine.configure_cpu(self.context.threads, size)
        return self._pass(1, lambda asked, given: (machine.predict_values(judge, held, asked, given),))[0]

    def _policy(self, policy: Part) -> "Policy":
        from tasks.engines import policy as engine

        held = engine.load_policy(policy.path, policy.digest, engine.choose_device(self.context.device))
        engine.configure_cpu(self.context.threads, held.num_parameters)
        return held

    def _pass(self, num: int, compute: Callable[[list[np.ndarray], list[np.ndarray]], tuple[Any, ...]]) -> list[Any]:
        """`num` arrays [N] from the tensors that `compute` gives for each micro-batch."""
        import torch

        from tasks.engines.trainer import micro_batches

        found = [np.zeros(self.offsets[-1], dtype=np.float32) for _ in range(num)]
        done = 0
        for rows in micro_batches(self.prompts, self.completions, MICRO_BATCH_TOKENS):
            with torch.no_grad():
                computed = compute([self.prompts[i] for i in rows], [self.completions[i] for i in rows])
            place_N = np.concatenate([np.arange(self.offsets[i], self.offsets[i + 1]) for i in rows])
            for array, tensor in zip(found, computed, strict=True):
                array[place_N] = tensor.float().cpu().numpy()
            done += len(rows)
            self.context.progress(done, len(self.completions))
        return found
