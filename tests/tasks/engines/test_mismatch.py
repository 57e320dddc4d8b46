"""How far sampler and trainer are apart, as the updates table says it: by hand, and through updates."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from tasks.core.objective import Objective
from tasks.engines.batch import Batch
from tasks.engines.figures import mismatch
from tasks.engines.optimizer import make_optimizer
from tasks.engines.policy import Policy
from tasks.engines.trainer import completion_logprobs, policy_update

ENDS = ("min", "p05", "p50", "p95", "max")
TRAINER = torch.tensor([-3.0, -1.0, -2.0, -4.0, -5.0, -6.0])
LN2 = math.log(2)
SEVENTH = 123.0
"""What stands beside a tool's tokens, which no policy drew."""


def floats(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def hand_made(**signals: object) -> Batch:
    """Two completions of three tokens, of which each has one that is not trained on; the sampler gave the others
    1/2, 1, 2 and 4 times fewer probability than TRAINER: differences of -1, 0, 1 and 2 times log 2."""
    batch = Batch(
        prompts=[np.array([1], np.int32)] * 2,
        completions=[np.array([3, 4, 5], np.int32)] * 2,
        group_index_R=np.zeros(2, np.int64),
        sampler_logprobs=[floats(-3 + LN2, SEVENTH, -2.0), floats(-4 - LN2, -5 - 2 * LN2, SEVENTH)],
        advantages=[floats(1, 0, 1), floats(-1, -1, 0)],
        loss_mask=[np.array([True, False, True]), np.array([True, True, False])],
    )
    return replace(batch, **signals)


def quantiles(row: dict[str, float], name: str = "mismatch") -> list[float]:
    return [row[f"{name}_{end}"] for end in ENDS]


def test_quantiles_and_kl_are_those_of_the_trained_tokens_differences() -> None:
    row = mismatch(hand_made(), TRAINER)
    # of -1, 0, 1, 2: 5 % lies 0.15 of the way from the first to the second, 95 % 0.85 from the third to the fourth
    assert quantiles(row) == pytest.approx([q * LN2 for q in (-1, -0.85, 0.5, 1.85, 2)], abs=1e-6)
    # mean(e^d - 1 - d): e^d = 1/2, 1, 2, 4, together 7.5; the differences add up to 2 log 2
    assert row["mismatch_kl"] == pytest.approx((7.5 - 4 - 2 * LN2) / 4, abs=1e-6)
    assert "kept_mass" not in row


def test_the_mass_of_the_trainer_s_nucleus_is_taken_off_and_its_mean_is_that_of_the_trained_tokens() -> None:
    # renormalised over half of the mass a log-probability is log 2 higher, so that each difference grows by log 2
    kept = [floats(0.5, 1.0, 0.5), floats(0.5, 0.5, 1.0)]
    row = mismatch(hand_made(kept_mass=kept), TRAINER)
    assert quantiles(row) == pytest.approx([(q + 1) * LN2 for q in (-1, -0.85, 0.5, 1.85, 2)], abs=1e-6)
    assert row["kept_mass"] == 0.5
    exact = [floats(-3 + LN2, SEVENTH, -2 + LN2), floats(-4 + LN2, -5 + LN2, SEVENTH)]
    same = mismatch(hand_made(kept_mass=kept, sampler_logprobs=exact), TRAINER)
    assert quantiles(same) == pytest.approx([0] * 5, abs=1e-6)  # the same engine, whatever its nucleus
    assert same["mismatch_kl"] == pytest.approx(0, abs=1e-9)


def test_the_trainer_is_the_policy_before_the_step_where_that_is_known() -> None:
    before = [floats(*TRAINER[:3].tolist()), floats(*TRAINER[3:].tolist())]
    moved = TRAINER + 0.7
    assert mismatch(hand_made(trainer_logprobs=before), moved) == mismatch(hand_made(), TRAINER)


def trained(policy: Policy, batch: Batch, objective: Objective, updates: int) -> list[dict[str, float]]:
    optimizer, _ = make_optimizer(policy.model, learning_rate=1e-2, weight_decay=0.0, betas=(0.9, 0.999))
    how = {"micro_batch_tokens": 200, "max_grad_norm": 1.0}
    return [policy_update(policy, optimizer, batch, objective, **how) for _ in range(updates)]


def sampled_by(policy: Policy, batch: Batch, shift: float) -> Batch:
    """The batch as an engine gives it whose log-probabilities are `shift` below the policy's, which is known."""
    own = [tensor.numpy() for tensor in torch.split(
        completion_logprobs(policy, batch.prompts, batch.completions, 1.0)[0], batch.lengths_R.tolist()
    )]  # fmt: skip
    return replace(batch, trainer_logprobs=own, sampler_logprobs=[logprobs - np.float32(shift) for logprobs in own])


def test_importance_sampling_makes_first_ratios_1_and_hides_no_mismatch_of_the_engines(
    make_policy: Callable[..., Policy], random_batch: Callable[..., Batch]
) -> None:
    policy = make_policy()
    first, second = trained(policy, sampled_by(policy, random_batch(), 0.25), Objective(importance_sampling="token"), 2)
    assert quantiles(first, "ratio") == pytest.approx([1] * 5, abs=1e-4)
    assert max(abs(ratio - 1) for ratio in quantiles(second, "ratio")) > 1e-2  # the policy has moved
    for row in (first, second):
        assert quantiles(row) == pytest.approx([0.25] * 5, abs=1e-5)
        assert row["mismatch_kl"] == pytest.approx(math.exp(0.25) - 1.25, abs=1e-5)


def test_without_it_the_first_update_s_mismatch_is_the_log_of_its_ratios(
    make_policy: Callable[..., Policy], random_batch: Callable[..., Batch]
) -> None:
    policy = make_policy()
    batch = replace(sampled_by(policy, random_batch(), 0.0), trainer_logprobs=None)
    sampler = [logprobs + rng for logprobs, rng in zip(batch.sampler_logprobs, random_batch().advantages, strict=True)]
    (row,) = trained(policy, replace(batch, sampler_logprobs=sampler), Objective(), 1)
    for end in ("min", "p50", "max"):  # these are values of one token or the middle of two close ones
        assert row[f"mismatch_{end}"] == pytest.approx(math.log(row[f"ratio_{end}"]), abs=1e-3)
    assert row["mismatch_kl"] == pytest.approx(row["kl"], rel=1e-4)
