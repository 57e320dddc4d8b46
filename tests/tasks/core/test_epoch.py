"""Prompts of a step: every one once per epoch, whatever the sizes, each step on its own."""

from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.core.epoch import prompts_of_step

SIZES = st.integers(1, 25)
SEEDS = st.integers(0, 2**63 - 1)


def steps(num_prompts: int, prompts_per_step: int, seed: int, num_steps: int) -> list[list[int]]:
    return [prompts_of_step(num_prompts, prompts_per_step, step, seed).tolist() for step in range(1, num_steps + 1)]


@settings(deadline=None)
@given(num_prompts=SIZES, prompts_per_step=SIZES, seed=SEEDS)
def test_every_prompt_is_taken_exactly_once_per_epoch(num_prompts: int, prompts_per_step: int, seed: int) -> None:
    num_epochs = 4
    num_steps = -(-num_epochs * num_prompts // min(prompts_per_step, num_prompts))  # enough for four epochs
    taken = list(chain.from_iterable(steps(num_prompts, prompts_per_step, seed, num_steps)))
    for epoch in range(num_epochs):
        assert sorted(taken[epoch * num_prompts : (epoch + 1) * num_prompts]) == list(range(num_prompts))


@settings(deadline=None)
@given(num_prompts=SIZES, prompts_per_step=SIZES, seed=SEEDS)
def test_a_step_has_its_full_size_and_no_prompt_twice(num_prompts: int, prompts_per_step: int, seed: int) -> None:
    for taken in steps(num_prompts, prompts_per_step, seed, 12):
        assert len(taken) == len(set(taken)) == min(num_prompts, prompts_per_step)
        assert set(taken) <= set(range(num_prompts))


def test_a_step_that_spans_two_epochs_ends_the_one_and_begins_the_other_without_a_repeat() -> None:
    # 5 prompts, 3 a step: step 2 takes the last 2 of epoch 1 and 1 of epoch 2, step 4 the last of epoch 2 and 2 of 3.
    for seed in range(50):
        first, second, third, fourth, fifth = steps(5, 3, seed, 5)
        assert sorted(first + second[:2]) == [0, 1, 2, 3, 4]
        assert sorted(second[2:] + third + fourth[:1]) == [0, 1, 2, 3, 4]
        assert sorted(fourth[1:] + fifth) == [0, 1, 2, 3, 4]
        assert len(set(second)) == len(set(fourth)) == 3


def test_a_step_can_be_drawn_alone() -> None:
    alone = prompts_of_step(11, 4, 40, 3)
    assert alone.tolist() == steps(11, 4, 3, 40)[-1]


def test_another_seed_and_another_epoch_give_another_order() -> None:
    # Two random orders of 100 prompts are equal with probability 1/100!.
    first, second = prompts_of_step(100, 100, 1, 0), prompts_of_step(100, 100, 2, 0)
    assert first.tolist() != second.tolist()
    assert first.tolist() != prompts_of_step(100, 100, 1, 1).tolist()


def test_the_order_is_random_and_even() -> None:
    # Prompt 0 leads the first step of 4,000 seeds about 4,000 / 5 = 800 times: standard deviation 25, 4 of them 101.
    leads = np.bincount([prompts_of_step(5, 2, 1, seed)[0] for seed in range(4000)], minlength=5)
    assert np.abs(leads - 800).max() <= 101


def test_with_fewer_prompts_than_a_step_wants_every_step_takes_all() -> None:
    for taken in steps(3, 512, 0, 4):
        assert sorted(taken) == [0, 1, 2]


def test_an_empty_prompt_set_is_refused() -> None:
    with pytest.raises(ValueError, match="empty prompt set"):
        prompts_of_step(0, 4, 1, 0)
