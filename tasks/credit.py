"""Stage `credit`: each group's prefix tree, its values, and every completion's advantages.

The rollouts are read in chunks of whole groups (storage/groups.py) and the tables written chunk by chunk, so memory is
bounded by row groups. reinforce_pp, hepo and ppo count over all of the step's tokens: their figures are gathered in
passes of their own before (one; hepo two), which read lengths or signals again rather than hold them. Signals are
always read once before: what is wrong with them is told before anything is written.
"""

import dataclasses
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from storage.artifact import Part
from storage.groups import GroupReader, group_runs
from storage.parquet import flat_list, list_array, ranges_array
from storage.schema import FLOATS, TOKENS
from tasks.completions import loss_mask, per_token
from tasks.config import CreditConfig
from tasks.core.advantage import (
    SIGNALS,
    AdvantageConfig,
    Advantages,
    check_signals,
    compute_advantages,
    gather_statistics,
    make_completions,
)
from tasks.core.prefix_tree import edge_ranges
from tasks.credit_summary import CreditTally, first_divergence
from tasks.stage import Context, Summary, stage

VERSION = 3


@stage("credit", version=VERSION)
def credit(
    context: Context,
    *,
    rollouts: Part,
    verdicts: Part,
    estimator: str,
    config: CreditConfig,
    signals: Part | None = None,
) -> Summary:
    """Build the trees and advantages of the completions that have a reward; the others are left out and counted.

    `signals`: the table of that name, for an estimator that needs what models say (tasks.core.advantage.SIGNALS).
    ValueError, before anything is written, for rows of a group that are not adjacent, tables of other rollouts, and
    rewards or signals that are missing or not finite.
    """
    settings = AdvantageConfig(**dataclasses.asdict(config))
    names = SIGNALS.get(estimator, ()) if signals is not None else ()
    check_signals(estimator, names)
    parts = {"rollouts": rollouts, "verdicts": verdicts} | ({"signals": signals} if names and signals else {})
    reader = GroupReader({name: part.open() for name, part in parts.items()})
    reader.check(finite={"verdicts": "reward"})

    def completions() -> Iterator[Any]:
        for chunk in _chunks(reader, names):
            yield make_completions(chunk.offsets, chunk.group_offsets, chunk.rewards_R, **chunk.signals)

    statistics = gather_statistics(estimator, settings, completions)
    if names and statistics is None:  # no statistics have seen the signals yet
        deque(completions(), maxlen=0)
    tally = CreditTally(num_completions=reader.rollouts.metadata.num_rows)
    with context.staging.open_table("prefix_nodes") as nodes, context.staging.open_table("advantages") as advantages:
        for chunk in _chunks(reader, names):
            result = compute_advantages(
                estimator,
                chunk.token_ids_N,
                chunk.offsets,
                chunk.group_offsets,
                chunk.rewards_R,
                config=settings,
                statistics=statistics,
                **chunk.signals,
            )
            nodes.add(_node_columns(result, chunk))
            advantages.add(_advantage_columns(result, chunk, estimator))
            tally.add(result, chunk.rewards_R)
    return tally.summary()


@dataclass(frozen=True, kw_only=True, eq=False)
class Chunk:
    """Completions with a reward, of whole groups."""

    rollout_id: pa.Array
    group_id: pa.Array
    groups: pa.Array
    """Names of the groups."""
    token_ids_N: np.ndarray
    offsets: np.ndarray
    group_offsets: np.ndarray
    rewards_R: np.ndarray
    signals: dict[str, np.ndarray | None]
    """loss_mask_N and what models say of the tokens."""


def _chunks(reader: GroupReader, names: tuple[str, ...]) -> Iterator[Chunk]:
    columns = {"rollouts": ["rollout_id", "token_ids", "loss_mask"], "verdicts": ["reward"], "signals": names}
    for rows in reader.chunks(columns):
        kept = rows.filter(pc.is_valid(rows.column("reward"))) if rows.column("reward").null_count else rows
        if not kept.num_rows:
            continue
        token_ids_N, offsets = flat_list(kept.column("token_ids"))
        groups, group_offsets = group_runs(kept.column("group_id"))
        yield Chunk(
            rollout_id=kept.column("rollout_id").combine_chunks(),
            group_id=kept.column("group_id").combine_chunks(),
            groups=groups,
            token_ids_N=token_ids_N,
            offsets=offsets,
            group_offsets=group_offsets,
            rewards_R=kept.column("reward").to_numpy(),
            signals={"loss_mask_N": loss_mask(kept, offsets)}
            | {f"{name}_N": per_token(kept, f"signals.{name}", name, offsets) for name in names},
        )


def _node_columns(result: Advantages, chunk: Chunk) -> dict[str, object]:
    tree = result.tree
    assert tree is not None
    root_M = _roots(result)[tree.node_group_M]
    parent_M = np.where(tree.node_parent_M < 0, 0, tree.node_parent_M - root_M)
    return {
        "group_id": chunk.groups.take(pa.array(tree.node_group_M)),
        "node": (np.arange(len(root_M)) - root_M).astype(np.int32),
        "parent": pa.array(parent_M.astype(np.int32), mask=tree.node_parent_M < 0),
        "depth": tree.node_depth_M,
        "token_ids": ranges_array(chunk.token_ids_N, *edge_ranges(tree), TOKENS),
        "num_completions": tree.node_num_completions_M,
        "value": result.value_M,
        "is_branch": tree.node_is_branch_M,
    }


def _roots(result: Advantages) -> np.ndarray:
    """Each group's root: its first node."""
    assert result.tree is not None
    return np.flatnonzero(result.tree.node_parent_M < 0)  # no group of a chunk is empty


def _advantage_columns(result: Advantages, chunk: Chunk, estimator: str) -> dict[str, object]:
    tree, num_completions = result.tree, chunk.rewards_R.size
    assert tree is not None
    group_R = np.repeat(np.arange(len(chunk.groups)), np.diff(chunk.group_offsets))
    divergence_R = first_divergence(result)[group_R]
    return {
        "rollout_id": chunk.rollout_id,
        "group_id": chunk.group_id,
        "estimator": pa.repeat(estimator, num_completions),
        "estimator_version": pa.repeat(pa.scalar(VERSION, pa.int32()), num_completions),
        "reward": chunk.rewards_R,
        "group_mean": result.group_mean_P[group_R],
        "group_std": result.group_std_P[group_R],
        "base_advantage": result.base_R,
        "td_weight": result.td_weight_R,
        "td_positions": list_array(result.td_position_K.astype(np.int32), result.td_offsets, TOKENS),
        "td_values": list_array(result.td_value_K.astype(np.float32), result.td_offsets, FLOATS),
        "leaf_node": (tree.leaf_node_R - _roots(result)[group_R]).astype(np.int32),
        "token_advantages": _dense(None if result.dense_N is None else result.advantages, result.offsets),
        "token_returns": _dense(result.returns_N, result.offsets),
        "num_trained_tokens": result.num_trained_R.astype(np.int32),
        "num_branch_tokens": np.bincount(tree.breakpoint_rollout_K, minlength=num_completions).astype(np.int32),
        "divergence": pa.array(divergence_R.astype(np.int32), mask=divergence_R < 0),
    }


def _dense(array_N: np.ndarray | None, offsets: np.ndarray) -> pa.Array:
    """A list per completion; NULL where there is nothing."""
    return pa.nulls(offsets.size - 1, FLOATS) if array_N is None else list_array(array_N, offsets, FLOATS)
