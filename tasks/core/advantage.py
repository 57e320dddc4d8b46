"""Advantages: how much better each token made the outcome, from the rewards of a group's completions.

| estimator | advantage of token t of completion i                            | source                         |
|-----------|-----------------------------------------------------------------|--------------------------------|
| tempo     | (r_i - mean(r) + V(s_{t+1}) - V(s_t)) / (std(r) + epsilon)      | TEMPO, arXiv 2509.18314        |
| grpo      | (r_i - mean(r)) / (std(r) + epsilon)                            | GRPO, arXiv 2402.03300         |
| dr_grpo   | r_i - mean(r)                                                   | Dr. GRPO, arXiv 2503.20783     |
| rloo      | r_i - mean of the others' r                                     | RLOO, arXiv 2402.14740         |

mean and std (unbiased, ddof=1) are over the completions of the group; V is the value of a prefix tree node. The
temporal difference (td) V(s_{t+1}) - V(s_t) is 0 but at the few tokens where completions part, so it is kept sparse.
"""

import difflib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.core.prefix_tree import (
    Float64,
    Int32,
    Int64,
    PrefixTree,
    build_prefix_tree,
    check_layout,
    node_values,
)

ESTIMATORS = ("tempo", "grpo", "dr_grpo", "rloo")


@dataclass(frozen=True, kw_only=True)
class AdvantageConfig:
    """What an estimator does to the group's rewards. dr_grpo and rloo divide by nothing and read neither field."""

    epsilon: float = 1e-6
    """Added to std(r) before the division, in units of reward. 1e-6 is the TEMPO authors' (and GRPO's usual) value."""
    normalize: bool = True
    """Whether tempo and grpo divide by std(r) + epsilon. True as in both papers; False as Dr. GRPO advises."""


DEFAULT_CONFIG = AdvantageConfig()


@dataclass(frozen=True, kw_only=True, eq=False)
class Advantages:
    """Advantages of R completions, sparse: that of token t of completion i is base_R[i] + td_weight_R[i] * td[i, t].

    Zero-copy list columns: (td_offsets, td_position_K) and (td_offsets, td_value_K).
    """

    base_R: Float64
    """Sequence-level part, the same for all tokens of the completion."""
    group_mean_P: Float64
    """Mean raw reward of the group; 0 for a group without completions."""
    group_std_P: Float64
    """Unbiased (ddof=1) standard deviation of the group's raw rewards; 0 for one completion, none, or equal rewards."""
    td_offsets: Int64
    """Where each completion's entries begin among the K, and where the last ends: [R+1]."""
    td_rollout_K: Int64
    """Completion of each nonzero td; sorted by completion, then position."""
    td_position_K: Int32
    """t: index in its completion of the token that moved the value."""
    td_value_K: Float64
    """V(s_{t+1}) - V(s_t) in raw reward, never 0. No entries for an estimator without a tree."""
    td_weight_R: Float64
    """Factor of td in the advantage: 1 / (std + epsilon), 1 if not normalised, 0 without signal or without td."""
    offsets: Int64
    """Offsets of the completions into `advantages`: the offsets given, shifted to begin at 0."""
    tree: PrefixTree | None
    """The prefix tree, if it was built or passed."""
    value_M: Float64 | None
    """V of the tree's nodes, if there is a tree."""

    @cached_property
    def advantages(self) -> NDArray[np.float32]:
        """One advantage per token, float32 [N], laid out by `offsets`. Computed on first use."""
        return dense_advantages(
            self.base_R, self.td_weight_R, self.td_offsets, self.td_position_K, self.td_value_K, self.offsets
        )


def dense_advantages(
    base_R: Float64,
    td_weight_R: Float64,
    td_offsets: Int64,
    td_position_K: Int32,
    td_value_K: NDArray[np.floating[Any]],
    offsets: Int64,
) -> NDArray[np.float32]:
    """float32 [N] from the sparse form that `Advantages` and the advantages table hold: base + weight * td."""
    dense_N = np.repeat(base_R.astype(np.float32), np.diff(offsets))
    rollout_K = np.repeat(np.arange(base_R.size), np.diff(td_offsets))
    credit_K = base_R[rollout_K] + td_weight_R[rollout_K] * td_value_K
    dense_N[offsets[rollout_K] + td_position_K] = credit_K
    return dense_N


def compute_advantages(
    estimator: str,
    token_ids_N: Int32,
    offsets: Int64,
    group_offsets: Int64,
    rewards_R: Float64,
    *,
    config: AdvantageConfig = DEFAULT_CONFIG,
    tree: PrefixTree | None = None,
    with_tree: bool = True,
) -> Advantages:
    """Advantages of all groups' completions under one of ESTIMATORS (formulas: head of this module).

    `tree`: the prefix tree of the same buffers, where there is one already; else it is built, unless `with_tree` is
    False and the estimator does not need it. Rewards may be any finite numbers.

    A group of one completion, or with equal rewards, has no signal: exactly 0 everywhere. Empty completions and groups
    are fine. ValueError for an unknown estimator, contradictory buffers, rewards not finite, a tree of other buffers.
    """
    _check_estimator(estimator)
    token_ids_N, offsets, group_offsets = check_layout(token_ids_N, offsets, group_offsets)
    rewards_R = _check_rewards(rewards_R, offsets.size - 1)
    if tree is not None:
        _check_tree(tree, offsets, group_offsets)
    elif with_tree or estimator == "tempo":
        tree = build_prefix_tree(token_ids_N, offsets, group_offsets)
    value_M = None if tree is None else node_values(tree, rewards_R)
    group_sizes = np.diff(group_offsets)
    mean_P, std_P = _group_moments(rewards_R, group_offsets)
    scale_R = np.repeat(_scale(estimator, std_P, group_sizes, config), group_sizes)
    td_rollout_K, td_position_K, td_value_K = np.zeros(0, np.int64), np.zeros(0, np.int32), np.zeros(0)
    td_weight_R = np.zeros(rewards_R.size)
    if estimator == "tempo" and tree is not None and value_M is not None:
        td_rollout_K, td_position_K, td_value_K = _temporal_differences(tree, value_M)
        np.divide(1.0, scale_R, out=td_weight_R, where=np.repeat(std_P > 0, group_sizes))
    td_offsets = np.append(0, np.cumsum(np.bincount(td_rollout_K, minlength=rewards_R.size)))
    return Advantages(
        base_R=(rewards_R - np.repeat(mean_P, group_sizes)) / scale_R,
        group_mean_P=mean_P,
        group_std_P=std_P,
        td_offsets=td_offsets,
        td_rollout_K=td_rollout_K,
        td_position_K=td_position_K,
        td_value_K=td_value_K,
        td_weight_R=td_weight_R,
        offsets=offsets - offsets[0],
        tree=tree,
        value_M=value_M,
    )


def _scale(estimator: str, std_P: Float64, group_sizes: Int64, config: AdvantageConfig) -> Float64:
    """What r_i - mean(r) is divided by in each group; 1 where std is 0, so that epsilon = 0 makes no NaN."""
    if estimator == "rloo":  # r_i - (sum - r_i) / (G - 1) = (r_i - mean) * G / (G - 1)
        rloo_P: Float64 = np.maximum(group_sizes - 1, 1) / np.maximum(group_sizes, 1)
        return rloo_P
    if config.normalize and estimator in ("tempo", "grpo"):
        return np.where(std_P > 0, std_P + config.epsilon, 1.0)
    return np.ones(std_P.size)


def _temporal_differences(tree: PrefixTree, value_M: Float64) -> tuple[Int64, Int32, Float64]:
    """td = V(s_{t+1}) - V(s_t) at the breakpoints where it is not 0: completion, position t, value."""
    parent_M = np.maximum(tree.node_parent_M, 0)
    td_K = (value_M - value_M[parent_M])[tree.breakpoint_node_K]
    kept = np.flatnonzero(td_K)
    return tree.breakpoint_rollout_K[kept], tree.breakpoint_position_K[kept], td_K[kept]


def _group_moments(rewards_R: Float64, group_offsets: Int64) -> tuple[Float64, Float64]:
    """Mean and unbiased standard deviation of each group's rewards.

    Equal rewards have exactly that mean and a std of exactly 0 (0.1 seven times does not sum to 0.7).
    """
    mean_P, std_P = np.zeros(group_offsets.size - 1), np.zeros(group_offsets.size - 1)
    sizes = np.diff(group_offsets)
    filled = np.flatnonzero(sizes)
    if filled.size:
        first, size = group_offsets[filled], sizes[filled]
        low, high = np.minimum.reduceat(rewards_R, first), np.maximum.reduceat(rewards_R, first)
        mean_P[filled] = np.clip(np.add.reduceat(rewards_R, first) / size, low, high)
        square_R = (rewards_R - np.repeat(mean_P, sizes)) ** 2
        std_P[filled] = np.sqrt(np.add.reduceat(square_R, first) / np.maximum(size - 1, 1))
    return mean_P, std_P


def _check_estimator(estimator: str) -> None:
    if estimator not in ESTIMATORS:
        nearest = difflib.get_close_matches(estimator, ESTIMATORS, n=1, cutoff=0.0)[0]
        raise ValueError(
            f"estimator: expected one of {', '.join(ESTIMATORS)}, got {estimator!r}; did you mean {nearest!r}?"
        )


def _check_rewards(rewards_R: Float64, num_completions: int) -> Float64:
    array = np.asarray(rewards_R, dtype=np.float64)
    if array.shape != (num_completions,):
        raise ValueError(
            f"rewards_R: expected {num_completions} rewards, one per completion of offsets, got shape {array.shape}; "
            "a completion without a verdict has no reward: leave it out of offsets too"
        )
    bad = np.flatnonzero(~np.isfinite(array))
    if bad.size:
        raise ValueError(
            f"rewards_R: expected finite rewards, got {array[bad[0]]} at index {bad[0]}; it would spread to its whole "
            "group: give the completion a reward, or leave it out"
        )
    return array


def _check_tree(tree: PrefixTree, offsets: Int64, group_offsets: Int64) -> None:
    if not (np.array_equal(tree.offsets, offsets) and np.array_equal(tree.group_offsets, group_offsets)):
        raise ValueError(
            f"tree: expected the prefix tree of these {offsets.size - 1} completions, got one of "
            f"{tree.offsets.size - 1} with other offsets; its nodes would name the wrong completions: build it with "
            "build_prefix_tree from the same buffers"
        )
