"""Supervised updates (the warm start) and their learning rate."""

import math
from collections.abc import Callable

import pytest

from tasks.core.schedule import learning_rate_factor
from tasks.engines.batch import Batch
from tasks.engines.optimizer import make_optimizer
from tasks.engines.policy import Policy
from tasks.engines.trainer import completion_logprobs, supervised_update


def test_supervised_updates_learn_the_completions_they_are_shown(
    policy: Policy, random_batch: Callable[..., Batch]
) -> None:
    batch = random_batch()
    optimizer, _ = make_optimizer(policy.model, learning_rate=3e-3, weight_decay=0.01, betas=(0.9, 0.999))
    how = {"micro_batch_tokens": 100, "max_grad_norm": 1.0}
    logprobs_N, _ = completion_logprobs(policy, batch.prompts, batch.completions, 1.0)
    rows = [supervised_update(policy, optimizer, batch.prompts, batch.completions, **how) for _ in range(12)]
    assert rows[0]["loss"] == pytest.approx(-logprobs_N.mean().item(), rel=1e-5)
    assert rows[0]["num_tokens"] == len(logprobs_N)
    assert rows[-1]["loss"] < 0.8 * rows[0]["loss"]


@pytest.mark.parametrize(
    ("update_index", "updates", "warmup_updates", "factor"),
    [
        (0, 100, 0, 1.0),  # (1 + cos 0) / 2
        (50, 100, 0, 0.5),  # (1 + cos(pi/2)) / 2
        (25, 100, 0, (1 + math.sqrt(0.5)) / 2),
        (0, 100, 4, 0.25),  # 1/4 of the way up
        (50, 100, 100, 0.5 * 51 / 100),
        (99, 100, 4, (1 - math.cos(math.pi / 100)) / 2),  # the last one is small and not 0
    ],
)
def test_the_learning_rate_rises_linearly_and_falls_along_a_cosine(
    update_index: int, updates: int, warmup_updates: int, factor: float
) -> None:
    found = learning_rate_factor("cosine", update_index, warmup_updates=warmup_updates, total_updates=updates)
    assert found == pytest.approx(factor, abs=1e-12)
