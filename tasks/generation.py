"""Stage `generation`: the policy completes the step's prompts; one row of rollouts per completion."""

from dataclasses import dataclass

import numpy as np

from storage.artifact import Part
from storage.parquet import flat_list, list_array
from storage.schema import FLOATS, TOKENS
from tasks.config import SamplerConfig
from tasks.core.epoch import prompts_of_step
from tasks.core.seeds import derive_seed
from tasks.policy import POLICY_ID_DIGITS
from tasks.stage import Context, Summary, stage


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


@stage("generation", version=1)
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
    from tasks.engines.transformers_sampler import TransformersSampler

    table = prompts.read(["prompt_id", "prompt_token_ids"])
    values, offsets = flat_list(table.column("prompt_token_ids"))
    chosen = selection.rows(table.num_rows)
    held = engine.load_policy(policy.path, policy.digest, engine.choose_device(context.device))
    engine.choose_threads(context.threads, held.num_parameters)
    temperature = sampler.temperature if decoding == "sampled" else 0.0
    num_rollouts = len(chosen) * num_samples
    seeds = (np.random.SeedSequence(derive_seed(seed, decoding)).generate_state(num_rollouts, np.uint64) >> 1).astype(
        np.int64
    )
    machine = TransformersSampler(held, batch_tokens=sampler.batch_tokens)
    samples = machine.sample(
        [values[offsets[i] : offsets[i + 1]] for i in chosen],
        num_samples=num_samples,
        seeds_R=seeds,
        params=SamplingParams(temperature=temperature, top_p=sampler.top_p, max_tokens=sampler.max_tokens),
        progress=context.progress,
    )
    rows = np.split(samples.token_ids_N, samples.offsets[1:-1])
    groups = [f"{context.key[:12]}-{g:05d}" for g in range(len(chosen))]
    ids = table.column("prompt_id").to_pylist()
    context.staging.add_table(
        "rollouts",
        {
            "rollout_id": [f"{group}-{i:03d}" for group in groups for i in range(num_samples)],
            "group_id": [group for group in groups for _ in range(num_samples)],
            "prompt_id": [ids[p] for p in chosen for _ in range(num_samples)],
            "token_ids": list_array(samples.token_ids_N, samples.offsets, TOKENS),
            "sampler_logprobs": list_array(samples.sampler_logprobs_N, samples.offsets, FLOATS),
            "text": held.tokenizer.batch_decode(rows, skip_special_tokens=True),
            "finish_reason": np.where(samples.is_truncated_R, "length", "stop").tolist(),
            "policy": [policy.digest[:POLICY_ID_DIGITS]] * num_rollouts,
            "sampler": [machine.name] * num_rollouts,
            "seed": seeds,
            "decoding": [decoding] * num_rollouts,
            "temperature": [temperature] * num_rollouts,
            "top_p": [sampler.top_p] * num_rollouts,
            "max_tokens": [sampler.max_tokens] * num_rollouts,
        },
    )
    return {
        "completions": num_rollouts,
        "tokens": len(samples.token_ids_N),
        "truncated": round(float(samples.is_truncated_R.mean()), 4),
    }


def completion_seeds(seed: int, num_completions: int) -> np.ndarray:
    """One 63-bit seed per completion, int64 [R]."""
    return (np.random.SeedSequence(seed).generate_state(num_completions, np.uint64) >> 1).astype(np.int64)
