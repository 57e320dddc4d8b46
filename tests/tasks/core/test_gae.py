"""GAE (arXiv 1506.02438) against its definition, and how much of its targets a critic explains."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.core.gae import explained_variance, generalized_advantages


def by_definition(reward: float, values: list[float], gamma: float, lambda_: float) -> list[float]:
    """A_t = sum_l (gamma lambda)^l delta_{t+l}, equation 16, as it is written."""
    after = [*values[1:], 0.0]
    rewards = [0.0] * (len(values) - 1) + [reward]
    delta = [r + gamma * v1 - v0 for r, v0, v1 in zip(rewards, values, after, strict=False)]
    return [sum((gamma * lambda_) ** k * d for k, d in enumerate(delta[t:])) for t in range(len(values))]


LENGTHS = st.lists(st.integers(0, 30), max_size=6)


@given(LENGTHS, st.sampled_from([1.0, 0.9]), st.sampled_from([1.0, 0.95, 0.0]), st.integers(0, 99))
@settings(max_examples=100, deadline=None)
def test_ragged_completions_get_the_sum_of_their_discounted_deltas(lengths, gamma, lambda_, seed):
    rng = random.Random(seed)
    completions = [(rng.uniform(-2, 2), [rng.uniform(-2, 2) for _ in range(length)]) for length in lengths]
    expected = [a for reward, values in completions for a in by_definition(reward, values, gamma, lambda_)]
    found = generalized_advantages(
        np.array([reward for reward, _ in completions]),
        np.array([v for _, values in completions for v in values]),
        np.cumsum([0, *lengths]),
        gamma=gamma,
        lambda_=lambda_,
    )
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_lambda_1_is_the_reward_minus_the_value():
    # deltas 0.5 - 0.25 and 3 - 0.5 add up to 3 - 0.25
    found = generalized_advantages(np.array([3.0]), np.array([0.25, 0.5]), np.array([0, 2]), gamma=1.0, lambda_=1.0)
    assert found.tolist() == [2.75, 2.5]


def test_explained_variance_is_1_for_the_truth_0_for_a_constant_and_negative_for_the_opposite():
    returns = np.array([0.0, 1.0, 1.0, 0.0])  # variance 1/4
    assert explained_variance(returns, returns) == 1.0
    assert explained_variance(np.full(4, 0.7), returns) == pytest.approx(0.0)
    # values 1 - r: errors 2r - 1 are +-1, variance 1: 1 - 1/(1/4) = -3
    assert explained_variance(1 - returns, returns) == -3.0
    # errors of +-1/4 around r: variance 1/16: 1 - (1/16)/(1/4) = 3/4
    assert explained_variance(returns + np.array([0.25, 0.25, -0.25, -0.25]), returns) == pytest.approx(0.75)


def test_explained_variance_is_0_where_there_is_nothing_to_explain():
    assert explained_variance(np.array([0.1, 0.2]), np.array([1.0, 1.0])) == 0.0
    assert explained_variance(np.zeros(0), np.zeros(0)) == 0.0
