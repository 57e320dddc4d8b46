"""Verdicts through the kept pool, and what each status is worth."""

from collections.abc import Iterator

import pytest

from tasks.core.verdict import Status
from tasks.core.verifiers import get_verifier
from tasks.experiment import ConfigError, apply_overrides, load_experiment
from tasks.judges import Judges, Row
from tasks.verification import reward_of
from tasks.verification_config import FAILURES, STATUSES, RewardsConfig, VerificationConfig

QUICK = VerificationConfig(workers=1, timeout_seconds=1.0, memory_mb=256)


@pytest.fixture(scope="module")
def judges() -> Iterator[Judges]:
    judges = Judges()
    yield judges
    judges.close()


def boxed(*answers: str) -> list[Row]:
    return [Row(completion=f"So \\boxed{{{answer}}}.", answer="2(x+1)") for answer in answers]


def test_the_configuration_names_the_statuses_of_a_verdict() -> None:
    assert tuple(Status) == STATUSES
    assert FAILURES == (Status.TIMEOUT, Status.OUT_OF_MEMORY, Status.CRASHED)


def test_by_default_only_a_verifier_that_failed_leaves_the_reward_unassigned() -> None:
    assert {status: reward_of(status, RewardsConfig()) for status in Status} == {
        "correct": 1.0,
        "wrong": 0.0,
        "unparseable": 0.0,
        "truncated": 0.0,
        "timeout": None,
        "out_of_memory": None,
        "crashed": None,
    }


def test_rewards_and_what_has_none_are_settings_of_the_experiment() -> None:
    settings = ["verification.rewards.wrong=-1", 'verification.rewards.unassigned=["truncated", "crashed"]']
    rewards = apply_overrides(load_experiment("quickstart"), settings).verification.rewards
    rewarded = [reward_of(Status(status), rewards) for status in ("wrong", "truncated", "crashed", "timeout")]
    assert rewarded == [-1.0, None, None, 0.0]
    with pytest.raises(ConfigError, match=r"unassigned: expected statuses among correct, .*, got 'late'"):
        apply_overrides(load_experiment("quickstart"), ['verification.rewards.unassigned=["late"]'])


def test_text_and_algebra_judge_side_by_side_and_verdicts_come_in_order(judges: Judges) -> None:
    rows = [*boxed("2x+2", "2(x+1)", "2x", "\\text{none}", "2(1+x)"), Row(completion="no box", answer="2(x+1)")]
    verdicts = list(judges.judge(get_verifier("math"), rows, QUICK))
    statuses = [verdict.judgement.status for verdict in verdicts]
    assert statuses == ["correct", "correct", "wrong", "wrong", "correct", "unparseable"]
    assert [verdict.num_attempts for verdict in verdicts] == [1] * 6


def test_more_rows_than_are_read_ahead_keep_their_order(judges: Judges, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.judges.AHEAD", 4)
    read: list[int] = []

    def rows() -> Iterator[Row]:
        for i in range(40):
            read.append(i)
            yield Row(completion=f"\\boxed{{y+{i}}}", answer=f"{i + (i % 5 == 0)}+y")

    for done, verdict in enumerate(judges.judge(get_verifier("math"), rows(), QUICK)):
        assert verdict.judgement.status == ("wrong" if done % 5 == 0 else "correct")
        assert len(read) - done <= 5


def test_a_verifier_s_warning_is_told_once() -> None:
    told: list[str] = []
    judges = Judges(note=told.append)
    fuzzy = get_verifier("paper_medqa")
    row = Row(completion="fever", answer="B", options=("cough", "fever"))
    for _ in range(2):
        (verdict,) = judges.judge(fuzzy, [row], QUICK)
        assert verdict.judgement.status == "correct"
    assert told == [fuzzy.warning]
