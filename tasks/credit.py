"""Stage `credit`: each group's prefix tree, its values, and every completion's advantages."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from storage.artifact import Part
from storage.parquet import flat_list, list_array
from storage.schema import FLOATS, TOKENS
from tasks.config import CreditConfig
from tasks.core.advantage import AdvantageConfig, Advantages, compute_advantages
from tasks.core.prefix_tree import edge_token_ids
from tasks.stage import Context, Summary, stage

VERSION = 1


@stage("credit", version=VERSION)
def credit(context: Context, *, rollouts: Part, verdicts: Part, estimator: str, config: CreditConfig) -> Summary:
    """Build the trees and advantages of the completions that have a reward; the others are left out and counted."""
    rows, num_unassigned = _rewarded(rollouts, verdicts)
    token_ids_N, offsets = flat_list(rows.column("token_ids"))
    groups, group_offsets = _groups(rows.column("group_id"))
    rewards_R = rows.column("reward").to_numpy()
    result = compute_advantages(
        estimator,
        token_ids_N,
        offsets,
        group_offsets,
        rewards_R,
        config=AdvantageConfig(epsilon=config.epsilon, normalize=config.normalize),
    )
    context.staging.add_table("prefix_nodes", _node_columns(result, token_ids_N, groups))
    context.staging.add_table("advantages", _advantage_columns(result, rows, estimator, group_offsets))
    assert result.tree is not None
    return {
        "groups": len(groups),
        "groups_without_signal": int((result.group_std_P == 0).sum()),
        "branch_tokens": round(result.tree.breakpoint_rollout_K.size / max(rewards_R.size, 1), 4),
        "unassigned": num_unassigned,
        "mean_reward": round(float(rewards_R.mean()), 4) if rewards_R.size else None,
    }


def _rewarded(rollouts: Part, verdicts: Part) -> tuple[pa.Table, int]:
    """rollout_id, group_id, token_ids, reward of the completions with a reward, in the rollouts' order."""
    table = rollouts.read(["rollout_id", "group_id", "token_ids"])
    judged = verdicts.read(["rollout_id", "reward"])
    assert table.column("rollout_id").equals(judged.column("rollout_id"))  # both are in key order
    table = table.append_column("reward", judged.column("reward"))
    kept = table.filter(pc.is_valid(table.column("reward"))).combine_chunks()
    return kept, table.num_rows - kept.num_rows


def _groups(group_id: pa.ChunkedArray) -> tuple[list[str], np.ndarray]:
    """Names of the groups in order, and offsets [P+1] of their completions (rows of a group are adjacent)."""
    runs = pc.run_end_encode(group_id.combine_chunks(), run_end_type=pa.int64())
    return runs.values.to_pylist(), np.concatenate([[0], runs.run_ends.to_numpy()]).astype(np.int64)


def _node_columns(result: Advantages, token_ids_N: np.ndarray, groups: list[str]) -> dict[str, object]:
    tree = result.tree
    assert tree is not None
    assert result.value_M is not None
    edges, edge_offsets = edge_token_ids(tree, token_ids_N)
    root_M = _first_node(tree.node_group_M, len(groups))[tree.node_group_M]
    parent_M = np.where(tree.node_parent_M < 0, 0, tree.node_parent_M - root_M)
    return {
        "group_id": np.array(groups, dtype=object)[tree.node_group_M],
        "node": (np.arange(len(root_M)) - root_M).astype(np.int32),
        "parent": pa.array(parent_M.astype(np.int32), mask=tree.node_parent_M < 0),
        "depth": tree.node_depth_M,
        "token_ids": list_array(edges, edge_offsets, TOKENS),
        "num_completions": tree.node_num_completions_M,
        "value": result.value_M,
        "is_branch": tree.node_is_branch_M,
    }


def _first_node(node_group_M: np.ndarray, num_groups: int) -> np.ndarray:
    """Index of each group's root."""
    return np.searchsorted(node_group_M, np.arange(num_groups))


def _advantage_columns(
    result: Advantages, rows: pa.Table, estimator: str, group_offsets: np.ndarray
) -> dict[str, object]:
    num_completions = rows.num_rows
    group_R = np.repeat(np.arange(len(group_offsets) - 1), np.diff(group_offsets))
    assert result.tree is not None
    root_P = _first_node(result.tree.node_group_M, len(group_offsets) - 1)
    return {
        "rollout_id": rows.column("rollout_id"),
        "group_id": rows.column("group_id"),
        "estimator": [estimator] * num_completions,
        "estimator_version": [VERSION] * num_completions,
        "reward": rows.column("reward"),
        "group_mean": result.group_mean_P[group_R],
        "group_std": result.group_std_P[group_R],
        "base_advantage": result.base_R,
        "td_weight": result.td_weight_R,
        "td_positions": list_array(result.td_position_K.astype(np.int32), result.td_offsets, TOKENS),
        "td_values": list_array(result.td_value_K.astype(np.float32), result.td_offsets, FLOATS),
        "leaf_node": (result.tree.leaf_node_R - root_P[group_R]).astype(np.int32),
        "token_advantages": pa.nulls(num_completions, FLOATS),
    }
