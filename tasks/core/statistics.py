"""Means of repeated samples with honest standard errors."""

import numpy as np
from numpy.typing import NDArray


def clustered_mean(rewards_R: NDArray[np.float64], prompt_index_R: NDArray[np.int64]) -> tuple[float, float]:
    """Mean over prompts of each prompt's mean reward, and its standard error clustered by prompt.

        m_p = mean of prompt p's rewards;  mean = (1/n) sum m_p;  stderr = std(m_p, ddof=1) / sqrt(n)

    Samples of one prompt are not independent, prompts are (Miller, Adding Error Bars to Evals, arXiv 2411.00640, §2.2).
    With one prompt the standard error is NaN: a single cluster says nothing about others.
    """
    _, index_R = np.unique(prompt_index_R, return_inverse=True)
    counts = np.bincount(index_R)
    means = np.bincount(index_R, weights=rewards_R) / counts
    stderr = means.std(ddof=1) / np.sqrt(means.size) if means.size > 1 else np.nan
    return float(means.mean()), float(stderr)


def pass_at_all(rewards_R: NDArray[np.float64], prompt_index_R: NDArray[np.int64]) -> float:
    """Share of prompts with at least one reward of 1 or more among all their samples: pass@k at k = samples drawn."""
    _, index_R = np.unique(prompt_index_R, return_inverse=True)
    best = np.full(index_R.max() + 1, -np.inf)
    np.maximum.at(best, index_R, rewards_R)
    return float((best >= 1).mean())
