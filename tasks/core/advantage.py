"""Advantages: how much better each token made the outcome, from the rewards of a group's completions.

`compute_advantages` is the one entrance to all estimators; their formulas and sources are in tasks/core/estimators.py.
For most of them an advantage is that of its completion but at the few tokens where completions part, so it is kept
sparse: base and temporal differences (td). `.advantages` is the dense array, made when it is asked for.
"""

import dataclasses
import difflib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.core.completions import AdvantageConfig, Completions, make_completions
from tasks.core.estimators import (
    DENSE,
    ESTIMATORS,
    HAS_TD,
    NEEDS_TREE,
    SIGNALS,
    Statistics,
    check_signals,
    gather_statistics,
)
from tasks.core.prefix_tree import PrefixTree, build_prefix_tree, node_values
from tasks.core.ragged import Bool, Float64, Int32, Int64, check_tokens

__all__ = [
    "DENSE",
    "ESTIMATORS",
    "HAS_TD",
    "SIGNALS",
    "AdvantageConfig",
    "Advantages",
    "check_signals",
    "compute_advantages",
    "dense_advantages",
    "gather_statistics",
    "make_completions",
]

DEFAULT_CONFIG = AdvantageConfig()


@dataclass(frozen=True, kw_only=True, eq=False)
class Advantages:
    """Advantages of R completions. Sparse where that is exact: base_R[i] + td_weight_R[i] * td[i, t]; else dense_N.

    Zero-copy list columns: (td_offsets, td_position_K) and (td_offsets, td_value_K).
    """

    base_R: Float64
    """Sequence-level part, the same for all tokens of the completion; 0 for ppo, which has none."""
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
    """tempo: V(s_{t+1}) - V(s_t) in raw reward, after clip and support; tempo_loo: the same against a baseline without
    i. Never 0, no entries for the other estimators. Masked tokens keep theirs: it says what happened in the tree."""
    td_weight_R: Float64
    """Factor of td in the advantage: td_scale / (std + epsilon), std of rewards or td; td_scale if not normalised; 0
    without signal or td."""
    offsets: Int64
    """Offsets of the completions into `advantages`: the offsets given, shifted to begin at 0."""
    tree: PrefixTree | None
    """The prefix tree, if it was built or passed."""
    value_M: Float64 | None
    """V of the tree's nodes, if there is a tree."""
    num_trained_R: Int64
    """Tokens of each completion that are trained on."""
    loss_mask_N: Bool | None = None
    """Tokens that are trained on, as given; None: all. The others' advantage is 0 whatever base and td say."""
    dense_N: NDArray[np.float32] | None = None
    """Advantages of an estimator in DENSE; None for the others."""
    returns_N: NDArray[np.float32] | None = None
    """ppo's targets for the critic, in units of reward: advantage before whitening + value; None for the others."""

    @cached_property
    def advantages(self) -> NDArray[np.float32]:
        """One advantage per token, float32 [N], laid out by `offsets`; exactly 0 at masked tokens. Made once."""
        if self.dense_N is not None:
            dense_N = self.dense_N if self.loss_mask_N is None else self.dense_N.copy()
        else:
            dense_N = dense_advantages(
                self.base_R, self.td_weight_R, self.td_offsets, self.td_position_K, self.td_value_K, self.offsets
            )
        if self.loss_mask_N is not None:
            dense_N[~self.loss_mask_N] = 0.0
        return dense_N

    def moved(self) -> tuple[float, float]:
        """(sum of |td part|, sum of |base part|) over the trainable tokens; td's share is the first in their sum.

        The td part of a token is td_weight * td, its base part the rest. A dense estimator has no td part.
        """
        if self.dense_N is not None:
            return 0.0, float(np.abs(self.advantages, dtype=np.float64).sum())
        td_K = np.abs(self.td_weight_R[self.td_rollout_K] * self.td_value_K)
        if self.loss_mask_N is not None:
            td_K = td_K[self.loss_mask_N[self.offsets[self.td_rollout_K] + self.td_position_K]]
        return float(td_K.sum()), float((np.abs(self.base_R) * self.num_trained_R).sum())


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
    entropies_N: NDArray[np.float32] | None = None,
    values_N: NDArray[np.float32] | None = None,
    loss_mask_N: Bool | None = None,
    statistics: Statistics | None = None,
) -> Advantages:
    """Advantages of all groups' completions under one of ESTIMATORS (formulas: tasks/core/estimators.py).

    `tree`: the prefix tree of the same buffers, where there is one already; else it is built, unless `with_tree` is
    False and the estimator does not need it. Rewards may be any finite numbers. `entropies_N` and `values_N`: what
    SIGNALS says the estimator needs, one number per token of the completions. `loss_mask_N`: True where a token is
    trained on (completions of several segments); the tree is of all tokens, the masked ones get exactly 0 and enter no
    statistics. `statistics`: of the batch that these completions are a part of (gather_statistics); without it they
    are the batch.

    A group of one completion, or with equal rewards, has no signal: exactly 0 everywhere, but for the two estimators
    that head of estimators.py names. Empty completions and groups are fine. ValueError for an unknown estimator or
    normaliser, contradictory buffers, numbers that are not finite, a missing signal, a tree of other buffers.
    """
    signals = {"entropies": entropies_N, "values": values_N}
    _check_choice("estimator", estimator, ESTIMATORS)
    _check_choice("td_normalization", config.td_normalization, ("reward", "td"))
    check_signals(estimator, [name for name, signal in signals.items() if signal is not None])
    given = make_completions(
        offsets, group_offsets, rewards_R, loss_mask_N=loss_mask_N, entropies_N=entropies_N, values_N=values_N
    )
    token_ids_N = check_tokens(token_ids_N, offsets)
    if tree is not None:
        _check_tree(tree, offsets, group_offsets)
    elif with_tree or estimator in NEEDS_TREE:
        tree = build_prefix_tree(token_ids_N, offsets, group_offsets)
    if tree is not None:
        given = dataclasses.replace(given, tree=tree, value_M=node_values(tree, given.rewards_R))
    return _credit(estimator, given, config, statistics or gather_statistics(estimator, config, lambda: [given]))


def _credit(estimator: str, given: Completions, config: AdvantageConfig, statistics: Statistics | None) -> Advantages:
    terms = ESTIMATORS[estimator](given, config, statistics)
    num_completions = given.rewards_R.size
    return Advantages(
        base_R=terms.base_R,
        group_mean_P=given.moments[0],
        group_std_P=given.moments[1],
        td_offsets=np.append(0, np.cumsum(np.bincount(terms.td_rollout_K, minlength=num_completions))),
        td_rollout_K=terms.td_rollout_K,
        td_position_K=terms.td_position_K,
        td_value_K=terms.td_value_K,
        td_weight_R=np.zeros(num_completions) if terms.td_weight_R is None else terms.td_weight_R,
        offsets=given.offsets,
        tree=given.tree,
        value_M=given.value_M,
        num_trained_R=given.num_trained_R,
        loss_mask_N=given.loss_mask_N,
        dense_N=terms.dense_N,
        returns_N=terms.returns_N,
    )


def _check_choice(name: str, choice: str, choices: Any) -> None:
    if choice not in choices:
        nearest = difflib.get_close_matches(choice, choices, n=1, cutoff=0.0)[0]
        raise ValueError(f"{name}: expected one of {', '.join(choices)}, got {choice!r}; did you mean {nearest!r}?")


def _check_tree(tree: PrefixTree, offsets: Int64, group_offsets: Int64) -> None:
    if not (np.array_equal(tree.offsets, offsets) and np.array_equal(tree.group_offsets, group_offsets)):
        raise ValueError(
            f"tree: expected the prefix tree of these {offsets.size - 1} completions, got one of "
            f"{tree.offsets.size - 1} with other offsets; its nodes would name the wrong completions: build it with "
            "build_prefix_tree from the same buffers"
        )
