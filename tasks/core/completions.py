"""What an estimator sees: the checked completions of whole groups, and the settings it reads.

Shapes: P prompts (groups), R completions, N tokens, M nodes of the prefix tree, K breakpoints.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.core.prefix_tree import PrefixTree
from tasks.core.ragged import Bool, Float32, Float64, Int64, check_ragged


@dataclass(frozen=True, kw_only=True)
class AdvantageConfig:
    """Switches of the estimators; the head of tasks/core/estimators.py says which estimator reads which."""

    epsilon: float = 1e-6
    """Added to each standard deviation before a division. 1e-6 is the TEMPO authors' (and GRPO's usual) value."""
    normalize: bool = True
    """Divide by the group's std(r) + epsilon. True as in the papers; False as Dr. GRPO advises."""
    td_scale: float = 1.0
    """Factor of tempo's td term. The paper: 1."""
    td_clip: float = 0.0
    """tempo's td is clipped to +- this, in units of reward and before the scale; 0 clips nothing. The paper: 0."""
    min_support: int = 1
    """tempo's td counts only where |D(s_{t+1})| is at least this; 1 is everywhere. The paper: 1."""
    td_normalization: str = "reward"
    """What tempo divides td by: "reward" (std(r), the paper) or "td" (std of the group's td at its
    trainable branch tokens, whatever `normalize` says)."""
    hepo_fraction: float = 0.2
    """Share of the batch's trainable tokens that hepo credits: exactly ceil(share * tokens) of them."""
    gae_lambda: float = 1.0
    """ppo's lambda: 1 is r - V(s_t) at every token, 0 is the one-step difference."""
    gae_gamma: float = 1.0
    """ppo's discount. The paper's setting has none: 1."""
    whiten: bool = True
    """ppo and reinforce_pp: (A - mean) / (std + epsilon) over the batch's trainable tokens."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Completions:
    """R completions of P whole groups. Arrays over N are laid out by `offsets`, which begin at 0."""

    offsets: Int64
    group_offsets: Int64
    rewards_R: Float64
    loss_mask_N: Bool | None = None
    """Tokens that are trained on; None: all."""
    entropies_N: Float32 | None = None
    """Entropy of the policy's distribution from which each token was drawn, in nats."""
    values_N: Float32 | None = None
    """V(s_t): what the critic expects before each token, in units of reward."""
    tree: PrefixTree | None = None
    value_M: Float64 | None = None
    """V of the tree's nodes."""

    @cached_property
    def group_sizes(self) -> Int64:
        """G of each group: [P]."""
        return np.diff(self.group_offsets)

    @cached_property
    def moments(self) -> tuple[Float64, Float64]:
        """Mean and unbiased (ddof=1) standard deviation of each group's rewards: [P] each, 0 for an empty group.

        Equal rewards have exactly that mean and a std of exactly 0 (0.1 seven times does not sum to 0.7).
        """
        rewards_R, group_offsets = self.rewards_R, self.group_offsets
        mean_P, std_P = np.zeros(group_offsets.size - 1), np.zeros(group_offsets.size - 1)
        filled = np.flatnonzero(self.group_sizes)
        if filled.size:
            first, size = group_offsets[filled], self.group_sizes[filled]
            low, high = np.minimum.reduceat(rewards_R, first), np.maximum.reduceat(rewards_R, first)
            mean_P[filled] = np.clip(np.add.reduceat(rewards_R, first) / size, low, high)
            square_R = (rewards_R - np.repeat(mean_P, self.group_sizes)) ** 2
            std_P[filled] = np.sqrt(np.add.reduceat(square_R, first) / np.maximum(size - 1, 1))
        return mean_P, std_P

    @cached_property
    def centered_R(self) -> Float64:
        """r_i - mean(r); exactly 0 without signal."""
        centered_R: Float64 = self.rewards_R - self.spread(self.moments[0])
        return centered_R

    @cached_property
    def has_signal_P(self) -> Bool:
        """Groups whose rewards differ: std(r) > 0."""
        return self.moments[1] > 0

    @cached_property
    def num_trained_R(self) -> Int64:
        """Tokens of each completion that are trained on."""
        if self.loss_mask_N is None:
            return np.diff(self.offsets)
        return np.diff(np.append(0, np.cumsum(self.loss_mask_N))[self.offsets])

    def trainable(self, array_N: NDArray[Any]) -> NDArray[Any]:
        """The entries of the tokens that are trained on."""
        return array_N if self.loss_mask_N is None else array_N[self.loss_mask_N]

    def spread(self, array_P: NDArray[Any]) -> NDArray[Any]:
        """One entry per group to one per completion: [R]."""
        array_R: NDArray[Any] = np.repeat(array_P, self.group_sizes)
        return array_R


def make_completions(
    offsets: Int64,
    group_offsets: Int64,
    rewards_R: Float64,
    *,
    loss_mask_N: Bool | None = None,
    entropies_N: Float32 | None = None,
    values_N: Float32 | None = None,
) -> Completions:
    """The same, checked. Arrays over N hold the completions' tokens only, also where `offsets` do not begin at 0.

    ValueError for rewards, entropies or values that are not finite, and for arrays of another length.
    """
    offsets, group_offsets = check_ragged(offsets, group_offsets)
    num_tokens = int(offsets[-1] - offsets[0])
    return Completions(
        offsets=offsets - offsets[0],
        group_offsets=group_offsets,
        rewards_R=_check_rewards(rewards_R, offsets.size - 1),
        loss_mask_N=None if loss_mask_N is None else _check_mask(loss_mask_N, num_tokens),
        entropies_N=None if entropies_N is None else _check_signal("entropies_N", entropies_N, num_tokens),
        values_N=None if values_N is None else _check_signal("values_N", values_N, num_tokens),
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


def _check_signal(name: str, signal_N: Float32, num_tokens: int) -> Float32:
    array = np.asarray(signal_N, dtype=np.float32)
    if array.shape != (num_tokens,):
        raise ValueError(
            f"{name}: expected {num_tokens} numbers, one per completion token, got shape {array.shape}; they would "
            "stand beside the wrong tokens: compute them for these very completions, masked tokens included"
        )
    bad = np.flatnonzero(~np.isfinite(array))
    if bad.size:
        raise ValueError(
            f"{name}: expected finite numbers, got {array[bad[0]]} at token {bad[0]}; one would spread to the whole "
            "batch: look at the model that computed it (its weights, its precision)"
        )
    return array


def _check_mask(loss_mask_N: Bool, num_tokens: int) -> Bool:
    array = np.asarray(loss_mask_N)
    if array.shape != (num_tokens,) or array.dtype != np.bool_:
        raise ValueError(
            f"loss_mask_N: expected {num_tokens} booleans, one per completion token, got {array.dtype} of shape "
            f"{array.shape}; True marks the tokens that are trained on: pass (mask != 0)"
        )
    return array
