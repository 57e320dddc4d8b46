"""Figures of a whole batch, gathered chunk by chunk: what whitening and HEPO's share of tokens are counted over.

A batch can be larger than memory. Both classes are fed its chunks in order, once per pass, and hold a few numbers; what
they give does not depend on where the chunks are cut (moments: to float64 rounding; the chosen tokens: exactly).
"""

import math
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from tasks.core.ragged import Bool, Float32, Float64, Int64


@dataclass
class Moments:
    """Count, mean and unbiased standard deviation of weighted values, merged as Chan, Golub and LeVeque do (1983).

    Equal values have exactly that mean and a std of exactly 0: 24 x -0.2 do not sum to -4.8, and whitening would scale
    what the rounding leaves.
    """

    count: float = 0.0
    """Sum of the weights: tokens."""
    mean: float = 0.0
    """Weighted mean; 0 for no values."""
    squares: float = 0.0
    """Sum of weight * (value - mean)^2."""
    low: float = math.inf
    """Smallest value with a positive weight."""
    high: float = -math.inf
    """Largest value with a positive weight."""

    def add(self, values: Float64, weights: NDArray[np.number] | None = None) -> None:
        """Merge values with their weights (how many tokens carry each; 1 if not given)."""
        weights = np.ones(values.size) if weights is None else weights
        count = float(weights.sum())
        if count == 0:
            return
        counted = values[weights > 0]
        low, high = float(counted.min()), float(counted.max())
        mean = min(max(float((weights * values).sum()) / count, low), high)
        squares = float((weights * (values - mean) ** 2).sum())
        total, shift = self.count + count, mean - self.mean
        self.squares += squares + shift**2 * self.count * count / total
        self.low, self.high = min(self.low, low), max(self.high, high)
        self.mean = min(max(self.mean + shift * count / total, self.low), self.high)
        self.count = total

    @property
    def std(self) -> float:
        """sqrt(sum w (x - mean)^2 / (sum w - 1)); 0 for fewer than two values."""
        return math.sqrt(self.squares / (self.count - 1)) if self.count > 1 else 0.0


@dataclass
class TopShare:
    """Chooses exactly ceil(share * tokens) tokens with the largest values of a batch (float32), in two counting passes.

    A float32 as an ordered 32-bit key has 65,536 upper and 65,536 lower halves: the first pass counts upper halves, the
    second the lower halves in the one where the threshold lies. `choose` then goes through the batch a third time, in
    the same order: every value above the threshold is taken, and of those equal to it the first ones.
    """

    share: float
    num_tokens: int = 0
    threshold: int = 2**32
    """Key of the smallest chosen value; 2**32 before it is known, and when nothing is to be chosen."""
    ties_left: int = 0
    """How many more of the values equal to the threshold are to be taken."""
    _upper: Int64 = field(default_factory=lambda: np.zeros(2**16, dtype=np.int64))
    _lower: Int64 = field(default_factory=lambda: np.zeros(2**16, dtype=np.int64))

    @property
    def num_chosen(self) -> int:
        """ceil(share * tokens), exactly: 0.07 of 100 tokens are 7 (as floats they would be 7.000000000000001)."""
        return math.ceil(Fraction(str(self.share)) * self.num_tokens)

    def count_upper(self, values: Float32) -> None:
        """First pass over the batch's values."""
        self.num_tokens += values.size
        self._upper += np.bincount(_keys(values) >> 16, minlength=2**16)

    def count_lower(self, values: Float32) -> None:
        """Second pass."""
        keys = _keys(values)
        upper, _ = _nth_from_above(self._upper, self.num_chosen)
        self._lower += np.bincount(keys[keys >> 16 == upper] & 0xFFFF, minlength=2**16)

    def close(self) -> None:
        """Know the threshold, after both passes."""
        if self.num_chosen:
            upper, left = _nth_from_above(self._upper, self.num_chosen)
            lower, self.ties_left = _nth_from_above(self._lower, left)
            self.threshold = (upper << 16) + lower

    def choose(self, values: Float32) -> Bool:
        """Which of the next values of the batch belong to the share."""
        keys = _keys(values)
        chosen: Bool = keys > self.threshold
        ties = np.flatnonzero(keys == self.threshold)[: self.ties_left]
        self.ties_left -= ties.size
        chosen[ties] = True
        return chosen


def _keys(values: Float32) -> Int64:
    """32-bit numbers in the order of the float32 values (0 and -0 alike), as int64."""
    bits = (values + np.float32(0.0)).view(np.uint32)
    return np.where(bits >> 31, ~bits, bits | np.uint32(2**31)).astype(np.int64)


def _nth_from_above(counts: Int64, n: int) -> tuple[int, int]:
    """Bin of the n-th largest value (n from 1), and which one from above it is inside that bin."""
    above = np.cumsum(counts[::-1])
    place = int(np.searchsorted(above, n))
    return counts.size - 1 - place, n - (int(above[place - 1]) if place else 0)
