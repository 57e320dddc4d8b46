"""Means over prompts with clustered standard errors, by hand and against the textbook formula."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.core.statistics import clustered_mean, pass_at_all


def test_the_mean_is_over_prompts_and_the_error_from_the_spread_of_their_means() -> None:
    rewards_R = np.array([1.0, 0.0, 1.0, 1.0, 0.0])
    prompt_index_R = np.array([4, 4, 9, 9, 7])  # means 1/2, 1, 0: their mean 1/2, their std (ddof 1) 1/2
    mean, stderr = clustered_mean(rewards_R, prompt_index_R)
    assert mean == 0.5  # not 3/5, the mean of the five rewards
    assert stderr == pytest.approx(0.5 / math.sqrt(3), abs=1e-15)


def test_the_order_of_the_samples_does_not_matter() -> None:
    rewards_R, prompt_index_R = np.array([1.0, 0.0, 1.0, 1.0, 0.0, 0.5]), np.array([0, 0, 1, 1, 2, 2])
    order = np.array([5, 0, 3, 2, 4, 1])
    assert clustered_mean(rewards_R[order], prompt_index_R[order]) == clustered_mean(rewards_R, prompt_index_R)
    assert pass_at_all(rewards_R[order], prompt_index_R[order]) == pass_at_all(rewards_R, prompt_index_R)


@settings(deadline=None)
@given(
    rewards_PG=st.integers(1, 5).flatmap(
        lambda k: st.lists(st.lists(st.sampled_from([0.0, 1.0, 0.25]), min_size=k, max_size=k), min_size=2, max_size=12)
    )
)
def test_with_k_samples_each_the_error_is_the_clustered_one_of_all_samples(rewards_PG: list[list[float]]) -> None:
    """Miller (arXiv 2411.00640, eq. 4) over R = n k samples, times the small-sample factor n / (n - 1):

    stderr^2 = n / (n - 1) / R^2 * sum over prompts of sum over pairs (i, j) of a prompt of (x_i - mean) (x_j - mean)
    """
    array_PG = np.array(rewards_PG)
    num_prompts, num_samples = array_PG.shape
    mean, stderr = clustered_mean(array_PG.ravel(), np.repeat(np.arange(num_prompts), num_samples))
    overall = sum(map(sum, rewards_PG)) / array_PG.size
    pairs = sum((x - overall) * (y - overall) for row in rewards_PG for x in row for y in row)
    variance = num_prompts / (num_prompts - 1) / array_PG.size**2 * pairs
    assert mean == pytest.approx(overall, abs=1e-12)
    assert stderr == pytest.approx(math.sqrt(max(variance, 0)), abs=1e-8)


def test_repeating_every_sample_does_not_shrink_the_error() -> None:
    rewards_R, prompt_index_R = np.array([1.0, 0.0, 1.0]), np.array([0, 1, 2])
    once, twice = (
        clustered_mean(rewards_R, prompt_index_R),
        clustered_mean(rewards_R.repeat(2), prompt_index_R.repeat(2)),
    )
    assert twice == once


def test_one_prompt_has_a_mean_but_no_error() -> None:
    mean, stderr = clustered_mean(np.array([1.0, 0.0, 0.0, 1.0]), np.zeros(4, dtype=np.int64))
    assert mean == 0.5
    assert math.isnan(stderr)


def test_a_prompt_passes_when_its_best_sample_earns_one() -> None:
    rewards_R = np.array([0.0, 1.0, 0.0, 0.0, 0.5, 0.9])
    prompt_index_R = np.array([3, 3, 5, 5, 8, 8])  # bests 1, 0, 0.9: one prompt of three passes
    assert pass_at_all(rewards_R, prompt_index_R) == pytest.approx(1 / 3)
