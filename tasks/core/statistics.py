"""What repeated samples of prompts say of a policy: means with honest standard errors, pass@k, maj@k.

Every function takes the samples that have a verdict. Those that have none (the verifier failed) are left out before:
prompts may keep different numbers of samples, and a prompt that keeps none is in no figure.
"""

from collections.abc import Sequence
from functools import cache
from math import comb

import numpy as np
from numpy.typing import NDArray


def clustered_mean(values_R: NDArray[np.float64], prompt_index_R: NDArray[np.int64]) -> tuple[float, float]:
    """Mean over prompts of each prompt's mean value, and its standard error clustered by prompt.

        m_p = mean of prompt p's values;  mean = (1/n) sum m_p;  stderr = std(m_p, ddof=1) / sqrt(n)

    Samples of one prompt are not independent, prompts are (Miller, Adding Error Bars to Evals, arXiv 2411.00640, §2.2).
    With one prompt the standard error is NaN: a single cluster says nothing about others.
    """
    _, index_R = np.unique(prompt_index_R, return_inverse=True)
    counts = np.bincount(index_R)
    means = np.bincount(index_R, weights=values_R) / counts
    stderr = means.std(ddof=1) / np.sqrt(means.size) if means.size > 1 else np.nan
    return float(means.mean()), float(stderr)


def pass_at(
    attempts: Sequence[int], num_correct_P: NDArray[np.int64], num_samples_P: NDArray[np.int64]
) -> NDArray[np.float64]:
    """pass@k at each k of `attempts`: the chance that one of k samples is correct, averaged over prompts.

        n samples of a prompt, c of them correct:  1 - C(n - c, k) / C(n, k)

    the share of the sets of k samples that hold a correct one, which is unbiased (Chen et al., arXiv 2107.03374, §2.1).
    A prompt with fewer than k samples counts with all that it has, 1 if one is correct: nothing unbiased exists there,
    and this can only be too low. So pass@k never falls as k grows. Prompts without samples are left out.
    Degenerate case: without any prompt, NaN.

    A prompt enters through (n, c) alone: prompts are counted by it, and the formula is evaluated once a pair.

    >>> pass_at([1, 2], np.array([1, 0]), np.array([3, 3])).round(3).tolist()  # 1/3 and 1 - C(2,2)/C(3,2) = 2/3, halved
    [0.167, 0.333]
    """
    width = int(num_samples_P.max(initial=0)) + 1
    num_prompts_Q = np.bincount(num_samples_P * width + num_correct_P)
    pairs_Q = np.flatnonzero(num_prompts_Q)
    pairs_Q = pairs_Q[pairs_Q >= width]  # below: no samples
    if not pairs_Q.size:
        return np.full(len(attempts), np.nan)
    weights_Q = num_prompts_Q[pairs_Q]
    chances_KQ = np.array([[_pass_chance(*divmod(pair, width), k) for pair in pairs_Q.tolist()] for k in attempts])
    return np.asarray(chances_KQ @ weights_Q / weights_Q.sum())


@cache
def _pass_chance(num_samples: int, num_correct: int, k: int) -> float:
    """1 - C(n - c, k) / C(n, k) as the quotient of two integers, rounded once; with k > n, k = n."""
    k = min(k, num_samples)
    sets = comb(num_samples, k)
    return (sets - comb(num_samples - num_correct, k)) / sets


def attempts_up_to(num_samples: int) -> list[int]:
    """1, 2, 4, ... and `num_samples` itself.

    >>> attempts_up_to(6)
    [1, 2, 4, 6]
    """
    powers = [1 << i for i in range(num_samples.bit_length())]
    return sorted({*powers, num_samples})


def majority_mean(votes_R: NDArray[np.int64], prompt_index_R: NDArray[np.int64]) -> float:
    """maj@k: the share of prompts whose most frequent answer is correct.

    A vote is 0 for a correct answer, however it is spelled, a positive number that names a wrong answer, and negative
    for a sample that casts none. Where m answers are the most frequent, one of them correct, the prompt counts 1 / m:
    what drawing one of them would give on average. A prompt without votes counts 0.
    (Wang et al., Self-Consistency, arXiv 2203.11171.) Without any sample, NaN.

    >>> majority_mean(np.array([0, 0, 5, 0, 7, -1]), np.array([0, 0, 0, 1, 1, 1]))  # 2 of 3; 1 beside 1: a half
    0.75
    """
    num_prompts = np.unique(prompt_index_R).size
    if not num_prompts:
        return np.nan
    has_vote = votes_R >= 0
    if not has_vote.any():
        return 0.0
    width = int(votes_R.max()) + 1
    answers_A, num_votes_A = np.unique(prompt_index_R[has_vote] * width + votes_R[has_vote], return_counts=True)
    prompt_A, vote_A = np.divmod(answers_A, width)
    starts_V = np.flatnonzero(np.diff(prompt_A, prepend=-1))  # answers are sorted by prompt
    top_V = np.maximum.reduceat(num_votes_A, starts_V)
    is_top_A = num_votes_A == np.repeat(top_V, np.diff(starts_V, append=prompt_A.size))
    num_tied_V = np.add.reduceat(is_top_A.astype(np.int64), starts_V)
    is_correct_V = np.add.reduceat(is_top_A & (vote_A == 0), starts_V, dtype=np.int64)
    return float((is_correct_V / num_tied_V).sum() / num_prompts)
