"""Figures of a batch in chunks: moments merge, and the largest share of tokens is exact."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.core.batch_statistics import Moments, TopShare


def test_moments_of_two_chunks_are_those_of_all():
    # 1 1 1 4 (1 three times) and 5: mean 12/5, squares 3 (7/5)^2 + (8/5)^2 + (13/5)^2 = 15.2, std sqrt(15.2/4)
    moments = Moments()
    moments.add(np.array([1.0, 4.0]), np.array([3, 1]))
    moments.add(np.array([5.0]))
    assert (moments.count, moments.mean) == (5, pytest.approx(2.4))
    assert moments.std == pytest.approx(3.8**0.5)


def test_moments_of_nothing_and_of_one_value_have_no_spread():
    moments = Moments()
    moments.add(np.zeros(0))
    assert (moments.count, moments.mean, moments.std) == (0, 0, 0)
    moments.add(np.array([7.0, 8.0]), np.array([0, 1]))
    assert (moments.count, moments.mean, moments.std) == (1, 8, 0)


@pytest.mark.parametrize("value", [-0.2, 0.1, 1 / 3])
def test_equal_values_have_exactly_their_mean_and_no_spread(value: float):
    # 24 x -0.2, in chunks and as weights: the plain sum over 24 is off by 2.8e-17
    moments = Moments()
    moments.add(np.full(7, value))
    moments.add(np.array([value, 9.0, value]), np.array([12, 0, 5]))
    assert (moments.count, moments.mean, moments.std) == (24, value, 0)
    assert (moments.low, moments.high) == (value, value)


def choose(values: np.ndarray, share: float, cuts: list[int]) -> np.ndarray:
    top, chunks = TopShare(share), np.split(values, cuts)
    for count in (top.count_upper, top.count_lower):
        for chunk in chunks:
            count(chunk)
    top.close()
    return np.concatenate([top.choose(chunk) for chunk in chunks])


@given(
    st.lists(st.sampled_from([-2.5, -0.0, 0.0, 1e-45, 0.5, 0.5000001, 3.0]) | st.floats(width=32, allow_nan=False)),
    st.floats(0.01, 1),
    st.lists(st.integers(0, 12), max_size=3),
)
@settings(max_examples=100, deadline=None)
def test_the_largest_ceil_of_the_share_are_chosen_however_the_batch_is_cut(
    numbers: list[float], share: float, cuts: list[int]
):
    values = np.array(numbers, dtype=np.float32)
    chosen = choose(values, share, sorted(cuts))
    # a stable sort from the largest down puts equal values in their own order: the first of them are taken
    expected = np.zeros(values.size, dtype=bool)
    expected[np.argsort(-values, kind="stable")[: TopShare(share, num_tokens=values.size).num_chosen]] = True
    assert chosen.tolist() == expected.tolist()


def test_the_share_is_counted_exactly():
    # 0.07 * 100 = 7.000000000000001 in floating point, whose ceiling is 8
    assert TopShare(0.07, num_tokens=100).num_chosen == 7
    assert TopShare(0.2, num_tokens=11).num_chosen == 3  # ceil(2.2)
    assert TopShare(1.0, num_tokens=3).num_chosen == 3
    assert TopShare(0.2, num_tokens=0).num_chosen == 0
