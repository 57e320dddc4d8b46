"""Stage `generation`: the policy completes the step's prompts; one row of rollouts per completion."""

import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from storage.artifact import Part
from storage.parquet import flat_list, list_array
from storage.schema import FLAGS, FLOATS, TOKENS
from tasks.config import SamplerConfig
from tasks.core.epoch import epochs_of_step, prompts_of_step
from tasks.core.seeds import derive_seed
from tasks.policy import POLICY_ID_DIGITS
from tasks.stage import Context, Summary, stage

if TYPE_CHECKING:
    from tasks.engines.sampler import Samples
    from tasks.engines.weight_sync import WeightSync


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which prompts: those of a training step, or (step None) all of the table."""

    step: int | None
    prompts_per_step: int | None
    seed: int

    def rows(self, num_prompts: int) -> np.ndarray:
        if self.step is None:
            return np.arange(num_prompts)
        assert self.prompts_per_step is not None
        return prompts_of_step(num_prompts, self.prompts_per_step, self.step, self.seed)

    def epochs(self, num_prompts: int) -> list[int | None]:
        """Epoch of each of `rows`; None outside training."""
        if self.step is None:
            return [None] * num_prompts
        assert self.prompts_per_step is not None
        return list(epochs_of_step(num_prompts, self.prompts_per_step, self.step).tolist())


@stage("generation", version=4)
def generation(
    context: Context,
    *,
    policy: Part,
    prompts: Part,
    selection: Selection,
    sampler: SamplerConfig,
    num_samples: int,
    decoding: str,
    seed: int,
) -> Summary:
    """Sample `num_samples` completions of each selected prompt, each from its own random stream."""
    from tasks.engines import policy as engine
    from tasks.engines.sampler import SamplingParams

    clock = Clock()
    table = prompts.read(["prompt_id", "prompt_token_ids"])
    chosen = selection.rows(table.num_rows)
    asked = _chosen_prompts(table, chosen)
    held = engine.load_policy(policy.path, policy.digest, engine.choose_device(context.device))
    engine.configure_cpu(context.threads, held.num_parameters)
    clock.stop("read")
    machine, sync = context.samplers.get(sampler, held, policy.path)
    clock.stop("sync")
    temperature = sampler.temperature if decoding == "sampled" else 0.0
    how = {"temperature": temperature, "top_p": sampler.top_p, "max_tokens": sampler.max_tokens}
    seeds = completion_seeds(derive_seed(seed, decoding), len(chosen) * num_samples)
    params, progress = SamplingParams(**how), context.progress
    samples = machine.sample(asked, num_samples=num_samples, seeds_R=seeds, params=params, progress=progress)
    sync = context.samplers.sync if samples.num_restarts else sync  # new engines, and a check of their weights
    clock.stop("sampling")
    texts = held.tokenizer.batch_decode(np.split(samples.token_ids_N, samples.offsets[1:-1]), skip_special_tokens=True)
    clock.stop("text")
    of_policy = {"policy": policy.digest[:POLICY_ID_DIGITS], "sampler": machine.name}
    same_for_all = of_policy | {"decoding": decoding} | how
    prompt_ids = [table.column("prompt_id")[int(p)].as_py() for p in chosen]
    columns = _identifiers(context.identity, prompt_ids, selection.epochs(table.num_rows), num_samples)
    columns |= {"text": texts, "seed": seeds} | {name: [value] * len(texts) for name, value in same_for_all.items()}
    context.staging.add_table("rollouts", columns | _sampled_columns(samples))
    clock.stop("write")
    _add_facts(context, of_policy, asked, samples, sync, clock.seconds)
    return {
        "completions": len(texts),
        "tokens": len(samples.token_ids_N),
        "truncated": round(float(samples.is_truncated_R.mean()), 4),
    }


def _chosen_prompts(table: pa.Table, chosen: np.ndarray) -> list[np.ndarray]:
    values, offsets = flat_list(table.column("prompt_token_ids"))
    return [values[offsets[i] : offsets[i + 1]] for i in chosen]


class Clock:
    """Where a stage's time goes."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def stop(self, name: str) -> None:
        """What passed since the last stop was `name`."""
        now = time.perf_counter()
        self.seconds[name], self._last = now - self._last, now


def _identifiers(key: str, prompt_ids: list[str], epochs: list[int | None], num_samples: int) -> dict[str, Any]:
    """Group and rollout ids are the stage's key and counters: unique among all generations, the same when rerun."""
    groups = [f"{key[:12]}-{g:05d}" for g in range(len(prompt_ids))]
    return {
        "rollout_id": [f"{group}-{i:03d}" for group in groups for i in range(num_samples)],
        "group_id": [group for group in groups for _ in range(num_samples)],
        "prompt_id": [prompt_id for prompt_id in prompt_ids for _ in range(num_samples)],
        "epoch": [epoch for epoch in epochs for _ in range(num_samples)],
    }


def _add_facts(
    context: Context,
    of_policy: dict[str, str],
    asked: list[np.ndarray],
    samples: "Samples",
    sync: "WeightSync | None",
    seconds: dict[str, float],
) -> None:
    """The tables of one row: what this generation did and, where engines hold the weights, the check of these."""
    num_completions = len(samples.is_truncated_R)
    facts = {
        "num_prompts": len(asked),
        "num_completions": num_completions,
        "num_tokens": len(samples.token_ids_N),
        "num_prompt_tokens": sum(map(len, asked)) * num_completions // max(len(asked), 1),
        "num_cached_prompt_tokens": samples.num_cached_prompt_tokens,
        "num_restarts": samples.num_restarts,
    } | {f"{name}_seconds": value for name, value in seconds.items()}
    context.staging.add_table("generations", {name: [value] for name, value in (of_policy | facts).items()})
    if sync is not None:
        row = asdict(sync) | {"policy": of_policy["policy"]}
        context.staging.add_table("weight_syncs", {name: [value] for name, value in row.items()})


def _sampled_columns(samples: "Samples") -> dict[str, Any]:
    return {
        "token_ids": list_array(samples.token_ids_N, samples.offsets, TOKENS),
        "sampler_logprobs": list_array(samples.sampler_logprobs_N, samples.offsets, FLOATS),
        "loss_mask": pa.nulls(len(samples.offsets) - 1, FLAGS),
        "finish_reason": np.where(samples.is_truncated_R, "length", "stop").tolist(),
    }


def completion_seeds(seed: int, num_completions: int) -> np.ndarray:
    """One 63-bit seed per completion, int64 [R]."""
    return (np.random.SeedSequence(seed).generate_state(num_completions, np.uint64) >> 1).astype(np.int64)
