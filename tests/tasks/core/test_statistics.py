"""Means with clustered errors, pass@k and maj@k: by hand, by the textbook's formula, by trying every possibility."""

import doctest
import itertools
import math
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.core import statistics
from tasks.core.statistics import attempts_up_to, clustered_mean, majority_mean, pass_at


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
    votes_R = np.array([0, 3, 0, 0, -1, 1])
    assert majority_mean(votes_R[order], prompt_index_R[order]) == majority_mean(votes_R, prompt_index_R)


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


def counts(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def test_pass_at_k_by_hand() -> None:
    """4 samples. One correct: 1 - C(3,2)/C(4,2) = 1 - 3/6 = 1/2; two: 1 - 1/6 = 5/6; none: 0; three or four: 1."""
    assert pass_at([2], counts(1), counts(4)).item() == 1 / 2
    assert pass_at([2], counts(2), counts(4)).item() == 5 / 6
    assert pass_at([2], counts(0, 1, 2, 3, 4), counts(4, 4, 4, 4, 4)).item() == pytest.approx((1 / 2 + 5 / 6 + 2) / 5)


def test_pass_at_1_is_the_mean_and_pass_at_n_the_share_of_prompts_with_a_correct_sample() -> None:
    one, all_four = pass_at([1, 4], counts(0, 1, 3), counts(4, 4, 4))
    assert one == pytest.approx((0 + 1 / 4 + 3 / 4) / 3, abs=1e-15)
    assert all_four == pytest.approx(2 / 3, abs=1e-15)


def test_a_prompt_with_fewer_samples_than_k_counts_with_all_it_has_and_one_without_samples_not_at_all() -> None:
    """Of 4 samples the verifier failed on 2 of the second prompt and on all of the third."""
    num_correct_P, num_samples_P = counts(1, 1, 0), counts(4, 2, 0)
    by_attempts = pass_at([1, 2, 3, 4], num_correct_P, num_samples_P)
    # first prompt 1/4, 2/4, 3/4, 4/4; second 1/2, then 1 from k = 2 on; two prompts count
    assert by_attempts.tolist() == [(1 / 4 + 1 / 2) / 2, (2 / 4 + 1) / 2, (3 / 4 + 1) / 2, 1]


def test_without_any_sample_there_is_no_pass_at_k() -> None:
    assert np.isnan(pass_at([1, 2], counts(0, 0), counts(0, 0))).all()
    assert np.isnan(pass_at([1], counts(), counts())).all()


@settings(deadline=None)
@given(
    samples_P=st.lists(st.lists(st.booleans(), max_size=6), min_size=1, max_size=5).filter(any),
    k=st.integers(1, 7),
)
def test_pass_at_k_is_the_share_of_all_sets_of_k_samples_that_hold_a_correct_one(
    samples_P: list[list[bool]], k: int
) -> None:
    shares = []
    for samples in samples_P:
        sets = list(itertools.combinations(samples, min(k, len(samples))))
        shares += [Fraction(sum(map(any, sets)), len(sets))] if samples else []
    num_correct_P, num_samples_P = counts(*map(sum, samples_P)), counts(*map(len, samples_P))
    assert pass_at([k], num_correct_P, num_samples_P).item() == pytest.approx(float(sum(shares) / len(shares)), 1e-14)


def test_pass_at_k_loses_no_digits_with_hundreds_of_samples() -> None:
    """One correct sample of n is in k / n of the sets; the product form and factorials in floats both lose digits."""
    for num_samples, k in ((300, 7), (500, 1), (999, 998)):
        assert pass_at([k], counts(1), counts(num_samples)).item() == k / num_samples
    num_correct, num_samples, k = 150, 400, 3  # 1 - (250 * 249 * 248) / (400 * 399 * 398)
    assert pass_at([k], counts(num_correct), counts(num_samples)).item() == float(
        1 - Fraction(250 * 249 * 248, 400 * 399 * 398)
    )


@given(pairs=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), min_size=1, max_size=20))
def test_pass_at_k_never_falls_as_k_grows(pairs: list[tuple[int, int]]) -> None:
    num_correct_P, num_samples_P = counts(*map(min, pairs)), counts(*map(max, pairs))
    by_attempts = pass_at(range(1, 42), num_correct_P, num_samples_P)
    assert np.isnan(by_attempts).all() or (np.diff(by_attempts) >= -1e-15).all()


def test_attempts_are_the_powers_of_two_and_all_samples() -> None:
    assert [attempts_up_to(n) for n in (1, 2, 4, 5, 16)] == [[1], [1, 2], [1, 2, 4], [1, 2, 4, 5], [1, 2, 4, 8, 16]]


def test_the_most_frequent_answer_is_taken_and_correct_ones_are_one_answer_however_they_are_spelled() -> None:
    """Votes: 0 correct (1/2, 0.5 and 50 % alike), 1 and 2 two wrong answers."""
    assert majority_mean(counts(0, 0, 1, 2), counts(5, 5, 5, 5)) == 1.0
    assert majority_mean(counts(0, 1, 1, 2), counts(5, 5, 5, 5)) == 0.0
    assert majority_mean(counts(0, 0, 1, 0, 1, 1), counts(5, 5, 5, 8, 8, 8)) == 0.5


def test_answers_that_tie_share_the_prompt() -> None:
    assert majority_mean(counts(0, 1), counts(3, 3)) == 1 / 2
    assert majority_mean(counts(0, 1, 2), counts(3, 3, 3)) == 1 / 3
    assert majority_mean(counts(0, 0, 1, 1, 2), counts(3, 3, 3, 3, 3)) == 1 / 2  # the third answer is not on top
    assert majority_mean(counts(1, 2), counts(3, 3)) == 0.0


def test_samples_without_an_answer_cast_no_vote_and_a_prompt_without_votes_counts_nothing() -> None:
    assert majority_mean(counts(0, -1, -1, -1), counts(3, 3, 3, 3)) == 1.0
    assert majority_mean(counts(-1, -1, 0), counts(3, 3, 4)) == 0.5
    assert majority_mean(counts(-1, -1), counts(3, 4)) == 0.0
    assert math.isnan(majority_mean(counts(), counts()))


@given(votes_P=st.lists(st.lists(st.integers(-1, 3), min_size=1, max_size=7), min_size=1, max_size=6))
def test_maj_at_k_is_the_chance_of_a_correct_answer_when_one_of_the_most_frequent_is_drawn(
    votes_P: list[list[int]],
) -> None:
    chances = []
    for votes in votes_P:
        tally = Counter(vote for vote in votes if vote >= 0)
        top = [vote for vote in tally if tally[vote] == max(tally.values())]
        chances.append(Fraction(top.count(0), len(top)) if top else Fraction(0))
    index_R = np.repeat(np.arange(len(votes_P)) * 3, list(map(len, votes_P)))
    found = majority_mean(counts(*itertools.chain(*votes_P)), index_R)
    assert found == pytest.approx(float(sum(chances) / len(chances)), abs=1e-14)


def test_the_examples_of_the_module_are_right() -> None:
    failed, attempted = doctest.testmod(statistics)
    assert (failed, attempted) == (0, 3)
