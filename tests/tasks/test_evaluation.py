"""Scores: means with clustered errors over prompts; what has no reward is counted and not scored."""

import math
from collections import defaultdict
from typing import Any

import pytest

Row = dict[str, Any]
Loop = Any  # the class of conftest.py, which a test module cannot import
GROUP_SIZE = 4  # as in conftest.py


def test_a_score_is_the_mean_over_prompts_with_its_clustered_error(loop: Loop) -> None:
    (score,) = loop.rows("evaluation", "scores")
    prompt_of = {row["rollout_id"]: row["prompt_id"] for row in loop.rows("evaluation rollouts", "rollouts")}
    rewards = defaultdict(list)
    for verdict in loop.rows("evaluation verdicts", "verdicts"):
        rewards[prompt_of[verdict["rollout_id"]]].append(verdict["reward"])
    means = [sum(values) / GROUP_SIZE for values in rewards.values()]
    mean = sum(means) / 8
    variance = sum((m - mean) ** 2 for m in means) / 7
    assert (score["n"], score["k"], score["num_unassigned"]) == (8, GROUP_SIZE, 0)
    assert score["mean"] == pytest.approx(mean, abs=1e-12)
    assert score["stderr"] == pytest.approx(math.sqrt(variance / 8), abs=1e-12)
    assert score["stderr"] > 0
    assert score["pass_at_k"] == sum(max(values) for values in rewards.values()) / 8
    reasons = [row["finish_reason"] for row in loop.rows("evaluation rollouts", "rollouts")]
    assert score["truncation_rate"] == reasons.count("length") / 32
    assert (score["scorer"], score["decoding"], score["temperature"]) == ("parity@1", "sampled", 1.0)
    assert score["policy"] == loop.rows("training 2", "policies")[0]["policy"]
    assert score["prompt_hash"] == loop.part("evaluation prompts", "prompts").digest


def test_completions_without_a_reward_are_counted_and_not_scored(loop: Loop) -> None:
    loop.evaluate("moody", "policy", verifier="moody")
    (score,) = loop.rows("moody", "scores")
    prompt_of = {row["rollout_id"]: row["prompt_id"] for row in loop.rows("moody rollouts", "rollouts")}
    rewards, num_unassigned = defaultdict(list), 0
    for verdict in loop.rows("moody verdicts", "verdicts"):
        if verdict["reward"] is None:
            num_unassigned += 1
        else:
            rewards[prompt_of[verdict["rollout_id"]]].append(verdict["reward"])
    means = [sum(values) / len(values) for values in rewards.values()]
    assert score["num_unassigned"] == num_unassigned > 0
    assert score["mean"] == pytest.approx(sum(means) / len(means), abs=1e-12)


def test_when_no_completion_has_a_reward_there_is_no_score_rather_than_a_zero(loop: Loop) -> None:
    loop.evaluate("broken", "policy", verifier="broken")
    (score,) = loop.rows("broken", "scores")
    assert (score["mean"], score["stderr"], score["pass_at_k"]) == (None, None, None)
    assert score["num_unassigned"] == 32
