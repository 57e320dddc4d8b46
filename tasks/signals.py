"""Stage `signals`: what models say of the stored rollouts' tokens: logprobs, entropies and values, as a table."""

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
"""Places in one forward pass without gradient."""
OF_POLICY = ("trainer_logprobs", "entropies", "kept_mass")
SIGNALS = (*OF_POLICY, "reference_logprobs", "values")


def signals_of_estimator(estimator: str) -> tuple[str, ...]:
    """Signals that the credit stage needs for this estimator."""
    return ESTIMATOR_SIGNALS.get(estimator, ())


def needs_critic(experiment: Experiment) -> bool:
    return "values" in signals_of_estimator(experiment.estimator)


def signals_of_training(experiment: Experiment) -> tuple[str, ...]:
    """Signals that the updates need: for importance sampling (from a nucleus: with the mass that it keeps), for the KL
    to the reference, and for the critic."""
    compares_engines = experiment.train.importance_sampling != "none"
    needed = {
        "trainer_logprobs": compares_engines,
        "kept_mass": compares_engines and experiment.sampler.top_p < 1,
        "reference_logprobs": experiment.train.kl_coefficient > 0,
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
    top_p: float,
    precision: str,
) -> Summary:
    """Compute the `wanted` signals of every token of every rollout; models that none of them needs are None.

    `top_p` is the sampler's where kept_mass is wanted, and 1 elsewhere: nothing else depends on it.
    """
    rows = rollouts.read(["rollout_id", "group_id", "prompt_id", "token_ids"])
    forward = _Forward(context, prompts, rows, temperature, precision)
    found: dict[str, np.ndarray] = {}
    if set(wanted) & set(OF_POLICY):
        assert policy is not None
        found |= dict(zip(OF_POLICY, forward.logprobs(policy, top_p), strict=False))  # no kept_mass at top_p = 1
    if "values" in wanted:
        assert critic is not None
        found["values"] = forward.values(critic, policy)
    if "reference_logprobs" in wanted:
        assert reference is not None
        found["reference_logprobs"] = forward.logprobs(reference)[0]
    columns: dict[str, Any] = {name: rows.column(name) for name in ("rollout_id", "group_id")}
    for name in SIGNALS:
        columns[name] = pa.nulls(rows.num_rows, FLOATS)
        if name in wanted:
            columns[name] = list_array(found[name], forward.offsets, FLOATS)
    context.staging.add_table("signals", columns)
    means = {f"mean_{name}": round(float(found[name].mean()), 4) for name in wanted if found[name].size}
    return means | {"tokens": int(forward.offsets[-1])}


class _Forward:
    """Passes of models over the completions, without gradient and each shared prefix once; results are flat, [N]."""

    def __init__(self, context: Context, prompts: Part, rows: pa.Table, temperature: float, precision: str) -> None:
        self.context, self.temperature = context, temperature
        self.prompts, self.completions = prompt_tokens(prompts, rows), ragged(rows, "token_ids")
        self.offsets = np.cumsum([0, *(len(completion) for completion in self.completions)])
        _, group_index_R = np.unique(rows.column("group_id").to_numpy(), return_inverse=True)
        self.passes: dict[str, Any] = {
            "group_index_R": group_index_R.astype(np.int64),
            "layout": "auto",
            "micro_batch_tokens": MICRO_BATCH_TOKENS,
            "precision": precision,
        }

    def logprobs(self, policy: Part, top_p: float = 1.0) -> list[np.ndarray]:
        """Log-probabilities and entropies under a policy, at the sampling temperature; below top_p = 1 the kept mass
        too."""
        from tasks.engines.trainer import completion_logprobs

        held = self._policy(policy)
        asked = (held, self.prompts, self.completions, self.temperature)
        found = completion_logprobs(*asked, top_p=top_p, **self.passes)
        return [tensor_N.float().cpu().numpy() for tensor_N in found]

    def values(self, critic: Part, policy: Part | None) -> np.ndarray:
        """V(s_t) of a critic; `policy` lends its backbone to one without its own."""
        from tasks.engines import critic as machine
        from tasks.engines import policy as engine

        held = self._policy(policy) if policy is not None else None
        judge = machine.load_critic(critic.path, engine.choose_device(self.context.device))
        size = judge.num_parameters + (held.num_parameters if held is not None else 0)
        engine.configure_cpu(self.context.threads, size)
        found_N = machine.predict_values(judge, held, self.prompts, self.completions, **self.passes)
        values_N: np.ndarray = found_N.float().cpu().numpy()
        return values_N

    def _policy(self, policy: Part) -> "Policy":
        from tasks.engines import policy as engine

        held = engine.load_policy(policy.path, policy.digest, engine.choose_device(self.context.device))
        engine.configure_cpu(self.context.threads, held.num_parameters)
        return held
