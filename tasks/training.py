"""Stage `training`: the step's optimiser updates on its rollouts and advantages; writes the next policy."""

from dataclasses import fields
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from storage.artifact import Part
from storage.parquet import flat_list
from storage.schema import UPDATES
from tasks.completions import loss_mask, prompt_tokens, ragged
from tasks.config import CriticConfig, TrainConfig
from tasks.core.advantage import dense_advantages
from tasks.learners import Learners
from tasks.policy import add_policy
from tasks.refused import refused
from tasks.stage import Context, Summary, stage

if TYPE_CHECKING:
    from tasks.core.objective import Objective
    from tasks.engines.batch import Batch
    from tasks.engines.policy import Policy


@stage("training", version=5)
def training(
    context: Context,
    *,
    policy: Part,
    optimizer: Part | None,
    critic: Part | None,
    base: Part | None,
    adapter: Part | None,
    prompts: Part,
    rollouts: Part,
    advantages: Part,
    signals: Part | None,
    config: TrainConfig,
    critic_config: CriticConfig | None,
    is_critic_warmup: bool,
    temperature: float,
    max_tokens: int,
    seed: int,
) -> Summary:
    """Split the step's groups into updates_per_step mini-batches (whole groups, seeded order) and update on each.

    A critic is updated on the same mini-batches, and alone on them while `is_critic_warmup`. With low-rank adapters the
    policy is `base` with `adapter` (none: new ones) added to its weights, and the adapters are what learns.
    """
    import torch

    from tasks.engines import policy as engine

    trained = _load(context, base if base is not None else policy)
    credited = advantages.read()
    batch = _batch(prompts, rollouts, credited, signals)
    torch.manual_seed(seed)
    learners = Learners(trained, critic, config, critic_config, _objective(config, temperature, max_tokens), adapter)
    if optimizer is not None:
        learners.load(optimizer.path)
    rollout_ids = credited.column("rollout_id").to_numpy()
    rows: list[dict[str, Any]] = []
    mini_batches = _mini_batches(batch.group_index_R, config.updates_per_step, seed)
    for indices in mini_batches:
        rows.append(_update(context, learners, batch, rollout_ids, indices, is_critic_warmup, len(rows)))
        context.progress(len(rows), len(mini_batches))
    learners.save(context)
    trained.digest = add_policy(context, trained, parent=policy.digest, origin="training")
    context.staging.add_table("updates", update_columns(rows, "critic_warmup" if is_critic_warmup else "training"))
    context.staging.add_table("update_groups", _update_groups(credited.column("group_id").to_numpy(), mini_batches))
    engine.keep_policy(trained)
    return _summary(rows)


def _load(context: Context, source: Part) -> "Policy":
    """The policy that will be changed: no longer the one kept in memory."""
    from tasks.engines import policy as engine

    trained = engine.load_policy(source.path, source.digest, engine.choose_device(context.device))
    engine.forget_policy()
    engine.configure_cpu(context.threads, trained.num_parameters)
    return trained


def _update(
    context: Context,
    learners: Learners,
    batch: "Batch",
    rollout_ids: np.ndarray,
    indices: np.ndarray,
    is_critic_warmup: bool,
    update: int,
) -> dict[str, Any]:
    """One update on the mini-batch `indices`, which is kept as evidence when it is refused."""
    taken = batch.take(indices)
    try:
        return learners.update(taken, is_critic_warmup)
    except FloatingPointError as error:
        ids = rollout_ids[indices].tolist()
        raise refused(context, error, learners.policy, taken, ids, learners.objective, update) from None


def _summary(rows: list[dict[str, Any]]) -> Summary:
    """Figures of the last update (the explained variance: of all), and the tokens of all; None where there is none."""
    digits = {"loss": 6, "grad_norm": 4, "entropy": 4, "value_loss": 6}
    last = {name: rows[-1].get(name) for name in digits}
    figures = {name: round(value, digits[name]) if value is not None else None for name, value in last.items()}
    explained = [row["explained_variance"] for row in rows if "explained_variance" in row]
    figures["explained_variance"] = round(sum(explained) / len(explained), 4) if explained else None
    return figures | {"tokens": sum(row["num_tokens"] for row in rows)}


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


def _batch(prompts: Part, rollouts: Part, credited: pa.Table, signals: Part | None) -> "Batch":
    """The step's credited completions with their prompts, sampler log-probabilities and dense advantages."""
    from tasks.engines.batch import Batch

    sampled = rollouts.read(["rollout_id", "prompt_id", "token_ids", "sampler_logprobs", "loss_mask"])
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
    _, offsets = flat_list(sampled.column("token_ids"))
    _, group_index_R = np.unique(credited.column("group_id").to_numpy(), return_inverse=True)
    returns, mask_N = credited.column("token_returns"), loss_mask(sampled, offsets)
    return Batch(
        prompts=prompt_tokens(prompts, sampled),
        completions=ragged(sampled, "token_ids"),
        group_index_R=group_index_R.astype(np.int64),
        sampler_logprobs=ragged(sampled, "sampler_logprobs"),
        advantages=np.split(token_advantages(credited, offsets), offsets[1:-1]),
        returns=ragged(credited, "token_returns") if returns.null_count == 0 else None,
        loss_mask=None if mask_N is None else np.split(mask_N, offsets[1:-1]),
        **(_signals(signals, credited) if signals is not None else {}),
    )


def _signals(signals: Part, credited: pa.Table) -> dict[str, Any]:
    """Those signals of the credited completions that updates use, as far as they were asked for."""
    rows = signals.read(["rollout_id", "trainer_logprobs", "kept_mass", "reference_logprobs", "values"])
    rows = rows.filter(pc.is_in(rows.column("rollout_id"), credited.column("rollout_id")))
    return {name: ragged(rows, name) for name in rows.column_names[1:] if rows.column(name).null_count == 0}


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
