"""Generalised advantage estimation (GAE) over ragged completions, and how well a critic explains its targets.

Source: GAE, arXiv 1506.02438, equations 11 to 16; the reward of a completion comes with its last token.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.core.ragged import Float64, Int64


def generalized_advantages(
    rewards_R: Float64, values_N: NDArray[Any], offsets: Int64, *, gamma: float, lambda_: float
) -> Float64:
    """A_t = delta_t + gamma lambda A_{t+1}, delta_t = r_t + gamma V(s_{t+1}) - V(s_t): float64 [N].

    V(s_t) is values_N: what the critic says before token t. r_t is 0 but at the last token, where it is that of the
    completion; after it the episode is over (V = 0, A = 0). gamma = lambda = 1: A_t = r - V(s_t). lambda = 0: A_t =
    delta_t. Empty completions have no token and no advantage. `offsets` begin at 0.

    One vectorised round for each position from the end, over the completions that are that long.
    """
    values: Float64 = values_N.astype(np.float64)
    length_R = np.diff(offsets)
    delta_N = -values
    delta_N[:-1] += gamma * values[1:]
    filled = np.flatnonzero(length_R)
    last = offsets[filled + 1] - 1
    delta_N[last] = rewards_R[filled] - values[last]
    longest_first = filled[np.argsort(-length_R[filled], kind="stable")]
    end, lengths = offsets[longest_first + 1] - 1, length_R[longest_first]
    alive_T = np.searchsorted(-lengths, -np.arange(1, int(lengths[0]) if lengths.size else 1), side="left")
    for back, alive in enumerate(alive_T.tolist(), start=1):
        place = end[:alive] - back
        delta_N[place] += gamma * lambda_ * delta_N[place + 1]
    return delta_N


def explained_variance(values_N: NDArray[Any], returns_N: NDArray[Any]) -> float:
    """1 - Var(returns - values) / Var(returns): 1 for a perfect critic, 0 for a constant one, negative for a worse one.

    0 where the returns do not vary (there is nothing to explain), and for no tokens.
    """
    returns_N = np.asarray(returns_N, dtype=np.float64)
    spread = float(returns_N.var()) if returns_N.size else 0.0
    if spread == 0.0:
        return 0.0
    return 1.0 - float((returns_N - values_N).var()) / spread
