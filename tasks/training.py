"""Stage `training`: the step's optimiser updates on its rollouts and advantages; writes the next policy."""

from dataclasses import fields
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from storage.artifact import Part
from storage.parquet import flat_list
from storage.schema import UPDATES
from tasks.config import TrainConfig
from tasks.core.advantage import dense_advantages
from tasks.core.schedule import learning_rate_factor
from tasks.policy import add_policy
from tasks.stage import Context, Summary, stage

if TYPE_CHECKING:
    from tasks.core.objective import Objective


@stage("training", version=3)
def training(
    context: Context,
    *,
    policy: Part,
    optimizer: Part | None,
    prompts: Part,
    rollouts: Part,
    advantages: Part,
    config: TrainConfig,
    temperature: float,
    max_tokens: int,
    seed: int,
) -> Summary:
    """Split the step's groups into updates_per_step mini-batches (whole groups, seeded order) and update on each."""
    import torch

    from tasks.engines import optimizer as optimizers
    from tasks.engines import policy as engine
    from tasks.engines import trainer

    trained = engine.load_policy(policy.path, policy.digest, engine.choose_device(context.device))
    engine.forget_policy()
    engine.configure_cpu(context.threads, trained.num_parameters)
    batch = _batch(prompts, rollouts, credited := advantages.read())
    adam, names = optimizers.make_optimizer(
        trained.model,
        **{name: getattr(config, name) for name in ("learning_rate", "weight_decay", "decays")},
        betas=(config.beta1, config.beta2),
    )
    torch.manual_seed(seed)
    if optimizer is not None:
        optimizers.load_optimizer(adam, names, optimizer.path)
    rows = []
    mini_batches = _mini_batches(batch.group_index_R, config.updates_per_step, seed)
    passes = {name: getattr(config, name) for name in ("micro_batch_tokens", "max_grad_norm", "layout", "precision")}
    for indices in mini_batches:
        optimizers.set_learning_rate(adam, learning_rate(config, optimizers.updates_done(adam)))
        taken, objective = batch.take(indices), _objective(config, temperature, max_tokens)
        rows.append(trainer.policy_update(trained, adam, taken, objective, **passes))
        context.progress(len(rows), len(mini_batches))
    trained.digest = add_policy(context, trained, parent=policy.digest, origin="training")
    optimizers.save_optimizer(adam, names, context.staging.path / "optimizer")
    context.staging.add_folder("optimizer", context.staging.path / "optimizer")
    context.staging.add_table("updates", update_columns(rows, "training"))
    context.staging.add_table("update_groups", _update_groups(credited.column("group_id").to_numpy(), mini_batches))
    engine.keep_policy(trained)
    return _summary(rows)


def _summary(rows: list[dict[str, Any]]) -> Summary:
    """Figures of the last update, and the tokens of all."""
    return {
        "loss": round(rows[-1]["loss"], 6),
        "grad_norm": round(rows[-1]["grad_norm"], 4),
        "entropy": round(rows[-1]["entropy"], 4),
        "tokens": sum(row["num_tokens"] for row in rows),
    }


def learning_rate(config: TrainConfig, update: int) -> float:
    """Of an update of the run, counted from 0."""
    return config.learning_rate * learning_rate_factor(
        config.schedule, update, warmup_updates=config.warmup_updates, total_updates=config.schedule_updates
    )


def _objective(config: TrainConfig, temperature: float, max_tokens: int) -> "Objective":
    """The objective's fields are keys of the configuration, but for two that come from the sampler's."""
    from tasks.core.objective import Objective

    keys = {field.name for field in fields(Objective)} - {"temperature", "max_tokens"}
    return Objective(**{key: getattr(config, key) for key in keys}, temperature=temperature, max_tokens=max_tokens)


def _mini_batches(group_index_R: np.ndarray, updates_per_step: int, seed: int) -> list[np.ndarray]:
    """Rows of each update: whole groups in a seeded order; groups without any reward may leave fewer than planned."""
    order = np.random.default_rng(seed).permutation(group_index_R.max() + 1)
    parts = np.array_split(order, min(updates_per_step, order.size))
    return [np.flatnonzero(np.isin(group_index_R, groups)) for groups in parts]


def _update_groups(group_id_R: np.ndarray, mini_batches: list[np.ndarray]) -> dict[str, Any]:
    """Columns of update_groups: which update took which group."""
    taken = [np.unique(group_id_R[rows], return_counts=True) for rows in mini_batches]
    return {
        "update": np.repeat(np.arange(len(taken), dtype=np.int32), [groups.size for groups, _ in taken]),
        "group_id": np.concatenate([groups for groups, _ in taken]).tolist(),
        "num_completions": np.concatenate([counts for _, counts in taken]).astype(np.int32),
    }


def _batch(prompts: Part, rollouts: Part, credited: pa.Table) -> Any:
    """The step's credited completions with their prompts, sampler log-probabilities and dense advantages."""
    from tasks.engines.batch import Batch

    sampled = rollouts.read(["rollout_id", "prompt_id", "token_ids", "sampler_logprobs"])
    num_sampled = sampled.num_rows
    if num_sampled != credited.num_rows:  # completions without a reward were left out of the advantages
        sampled = sampled.filter(pc.is_in(sampled.column("rollout_id"), credited.column("rollout_id")))
    assert sampled.column("rollout_id").equals(credited.column("rollout_id"))  # both are in key order
    if not credited.num_rows:
        raise ValueError(
            f"expected at least one completion with a reward, got none of the step's {num_sampled}: the verifier "
            "failed on every one of them (verdicts.status says how), so there is nothing to train on. Mend the "
            "verifier, raise its version, and run the same command again"
        )
    token_ids_N, offsets = flat_list(sampled.column("token_ids"))
    logprobs_N, _ = flat_list(sampled.column("sampler_logprobs"))
    asked = prompts.read(["prompt_id", "prompt_token_ids"])
    values, prompt_offsets = flat_list(asked.column("prompt_token_ids"))
    rows = dict(zip(asked.column("prompt_id").to_pylist(), np.split(values, prompt_offsets[1:-1]), strict=True))
    _, group_index_R = np.unique(credited.column("group_id").to_numpy(), return_inverse=True)
    return Batch(
        prompts=[rows[prompt_id] for prompt_id in sampled.column("prompt_id").to_pylist()],
        completions=np.split(token_ids_N, offsets[1:-1]),
        group_index_R=group_index_R.astype(np.int64),
        sampler_logprobs=np.split(logprobs_N, offsets[1:-1]),
        advantages=np.split(token_advantages(credited, offsets), offsets[1:-1]),
    )


def token_advantages(credited: pa.Table, offsets: np.ndarray) -> np.ndarray:
    """float32 [N]: base_advantage of the completion + td_weight * td at its branch tokens; or the dense column."""
    stored = credited.column("token_advantages")
    if stored.null_count == 0:
        return flat_list(stored)[0]
    positions_K, td_offsets = flat_list(credited.column("td_positions"))
    return dense_advantages(
        credited.column("base_advantage").to_numpy(),
        credited.column("td_weight").to_numpy(),
        td_offsets,
        positions_K,
        flat_list(credited.column("td_values"))[0],
        offsets,
    )


def update_columns(rows: list[dict[str, Any]], phase: str) -> dict[str, list[Any]]:
    """Columns of the updates table from one dictionary per update; figures a phase does not have are NULL."""
    columns: dict[str, list[Any]] = {c.name: [row.get(c.name) for row in rows] for c in UPDATES.columns}
    return columns | {"update": list(range(len(rows))), "phase": [phase] * len(rows)}
