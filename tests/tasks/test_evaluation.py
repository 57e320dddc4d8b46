"""Scores: means with clustered errors over prompts, parts, passes and statuses; failed verdicts are counted apart."""

import math
from collections import defaultdict
from typing import Any

import pytest

from storage.contracts import ContractBreach
from storage.schema import TABLES
from tasks.core.verdict import Status
from tasks.evaluation import evaluation
from tasks.stage import Context, Summary, stage

Row = dict[str, Any]
Loop = Any  # the class of conftest.py, which a test module cannot import
GROUP_SIZE = 4  # as in conftest.py
ANSWERS = {"correct": "7", "wrong": "8", "other": "9", "unparseable": None, "truncated": None}
REWARDS = {"correct": 1.0, "wrong": 0.0, "unparseable": 0.0, "truncated": 0.0}


@stage("written", version=1)
def written(context: Context, *, verdicts: Any, subjects: Any, levels: Any) -> Summary:
    """Prompts, and rollouts whose verdicts are `verdicts`: a list for each prompt; 'other' is another wrong answer."""
    ids = [f"set/test/{p:06d}" for p in range(len(verdicts))]
    rollouts = [(p, i, name) for p, names in enumerate(verdicts) for i, name in enumerate(names)]
    given = {
        "prompts": [
            {"prompt_id": ids[p], "revision": "r1", "subject": subjects[p], "level": levels[p]} for p in range(len(ids))
        ],
        "rollouts": [
            {
                "rollout_id": f"g-{p:05d}-{i:03d}",
                "prompt_id": ids[p],
                "finish_reason": "length" if name == "truncated" else "stop",
                "decoding": "sampled",
                "temperature": 0.7,
                "top_p": 0.9,
                "max_tokens": 64,
                "sampler": "transformers",
            }
            for p, i, name in rollouts
        ],
        "verdicts": [
            {
                "rollout_id": f"g-{p:05d}-{i:03d}",
                "verifier": "math",
                "verifier_version": 3,
                "status": "wrong" if name == "other" else name,
                "reward": REWARDS.get("wrong" if name == "other" else name),
                "extracted_answer": ANSWERS.get(name),
            }
            for p, i, name in rollouts
        ],
    }
    empty = {"string": "", "int32": 0, "int64": 0, "double": 0.0}
    for table, rows in given.items():
        blank = {c.name: None if c.nullable else empty.get(str(c.type), []) for c in TABLES[table].columns}
        complete = [blank | row for row in rows]
        context.staging.add_table(table, {name: [row[name] for row in complete] for name in blank})
    return {}


def score(
    loop: Loop, verdicts: list[list[str]], subjects: list[str | None] | None = None, levels: list[str] | None = None
) -> dict[str, list[Row]]:
    """The tables of the score of these verdicts."""
    none = [None] * len(verdicts)
    loop("written", written, verdicts=verdicts, subjects=subjects or none, levels=levels or none)
    parts = {name: loop.part("written", name) for name in ("prompts", "rollouts", "verdicts")}
    loop("scored", evaluation, benchmark="set", **parts)
    return {name: loop.rows("scored", name) for name in ("scores", "score_parts", "score_passes", "score_statuses")}


def test_a_score_by_hand(fresh: Loop) -> None:
    """Three prompts, four completions each: shares correct 2/4, 1/4 and 0/4."""
    tables = score(
        fresh,
        [
            ["correct", "correct", "wrong", "other"],
            ["correct", "wrong", "wrong", "truncated"],
            ["unparseable", "truncated", "truncated", "wrong"],
        ],
    )
    (found,) = tables["scores"]
    assert (found["n"], found["k"], found["num_unassigned"]) == (3, 4, 0)
    assert found["mean"] == pytest.approx((1 / 2 + 1 / 4 + 0) / 3, abs=1e-15)
    # the shares are 1/4 above, at and 1/4 below their mean: variance (1/16 + 0 + 1/16) / 2 = 1/16
    assert found["stderr"] == pytest.approx(1 / 4 / math.sqrt(3), abs=1e-15)
    assert found["pass_at_k"] == pytest.approx(2 / 3, abs=1e-15)
    # correct 2, wrong 1, other 1; then wrong 2, correct 1; then wrong 1
    assert found["maj_at_k"] == pytest.approx(1 / 3, abs=1e-15)
    assert found["truncation_rate"] == 3 / 12
    assert found["macro_mean"] is None
    assert tables["score_parts"] == []
    # pass@2: 1 - C(2,2)/C(4,2) = 5/6; 1 - C(3,2)/C(4,2) = 1/2; 0
    passes = {row["attempts"]: row["pass_at_k"] for row in tables["score_passes"]}
    assert passes == pytest.approx({1: found["mean"], 2: (5 / 6 + 1 / 2) / 3, 4: 2 / 3}, abs=1e-15)
    statuses = {row["status"]: (row["num_completions"], row["rate"]) for row in tables["score_statuses"]}
    assert statuses == dict.fromkeys(Status, (0, 0)) | {
        "correct": (3, 3 / 12), "wrong": (5, 5 / 12), "unparseable": (1, 1 / 12), "truncated": (3, 3 / 12)
    }  # fmt: skip


def test_a_score_says_how_it_was_made(fresh: Loop) -> None:
    (found,) = score(fresh, [["correct"]])["scores"]
    names = ("scorer", "dataset_revision", "temperature", "top_p", "max_tokens", "sampler")
    assert [found[name] for name in names] == ["math@3", "r1", 0.7, 0.9, 64, "transformers"]
    assert found["prompt_hash"] == fresh.part("written", "prompts").digest
    assert found["stderr"] is None  # one prompt says nothing of others


def test_the_macro_mean_gives_each_subject_the_same_weight(fresh: Loop) -> None:
    """anatomy 1, 1 and 0 of 1: 2/3; genetics 0; and a prompt without a subject, correct: a part of its own."""
    verdicts = [["correct"], ["correct"], ["wrong"], ["wrong"], ["correct"]]
    subjects = ["anatomy", "anatomy", "anatomy", "genetics", None]
    tables = score(fresh, verdicts, subjects, levels=["1", "2", "1", "2", "2"])
    (found,) = tables["scores"]
    assert found["mean"] == pytest.approx(3 / 5, abs=1e-15)
    assert found["macro_mean"] == pytest.approx((2 / 3 + 0 + 1) / 3, abs=1e-15)
    parts = {(row["kind"], row["part"]): (row["n"], row["mean"]) for row in tables["score_parts"]}
    assert parts == {
        ("level", "1"): (2, 1 / 2),
        ("level", "2"): (3, 2 / 3),
        ("subject", "(none)"): (1, 1),
        ("subject", "anatomy"): (3, pytest.approx(2 / 3)),
        ("subject", "genetics"): (1, 0),
    }
    (anatomy,) = [row for row in tables["score_parts"] if row["part"] == "anatomy"]
    # shares 1, 1, 0 about 2/3: variance (1/9 + 1/9 + 4/9) / 2 = 1/3
    assert anatomy["stderr"] == pytest.approx(math.sqrt(1 / 3 / 3), abs=1e-15)


def test_what_the_verifier_failed_on_is_counted_and_in_no_figure(fresh: Loop) -> None:
    """First prompt: 1 of 2 judged; second: nothing is; third: 0 of 3."""
    tables = score(
        fresh,
        [["correct", "wrong", "crashed"], ["timeout", "timeout", "out_of_memory"], ["wrong", "truncated", "wrong"]],
        subjects=["a", "b", "b"],
    )
    (found,) = tables["scores"]
    assert (found["n"], found["k"], found["num_unassigned"]) == (3, 3, 4)
    assert found["mean"] == pytest.approx((1 / 2 + 0) / 2, abs=1e-15)
    assert found["maj_at_k"] == (1 / 2 + 0) / 2
    # k = 1: 1/2 and 0; k = 2, 3: the first prompt has two judged completions, one of them correct
    passes = {row["attempts"]: row["pass_at_k"] for row in tables["score_passes"]}
    assert passes == {1: 1 / 4, 2: 1 / 2, 3: 1 / 2}
    assert found["pass_at_k"] == 1 / 2
    parts = [(row["part"], row["n"], row["mean"]) for row in tables["score_parts"]]
    assert parts == [("a", 1, 1 / 2), ("b", 2, 0)]
    assert found["macro_mean"] == 1 / 4


def test_when_the_verifier_failed_on_everything_there_is_no_score_rather_than_a_zero(fresh: Loop) -> None:
    tables = score(fresh, [["crashed", "timeout"], ["crashed", "crashed"]], subjects=["a", "b"])
    (found,) = tables["scores"]
    assert [found[name] for name in ("mean", "stderr", "macro_mean", "pass_at_k", "maj_at_k")] == [None] * 5
    assert found["num_unassigned"] == 4
    assert [row["pass_at_k"] for row in tables["score_passes"]] == [None, None]


def test_a_reward_of_another_scale_does_not_move_a_score_and_a_reward_that_hides_a_failure_is_refused(
    fresh: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(REWARDS, "correct", 5.0)
    (found,) = score(fresh, [["correct", "wrong"], ["wrong", "wrong"]])["scores"]
    assert found["mean"] == 1 / 4
    monkeypatch.setitem(REWARDS, "crashed", -1.0)
    with pytest.raises(ContractBreach, match="score_counts_every_completion"):
        score(fresh, [["correct", "crashed"]])


def test_a_score_of_real_completions_is_the_mean_over_prompts_of_their_verdicts(loop: Loop) -> None:
    (found,) = loop.rows("evaluation", "scores")
    prompt_of = {row["rollout_id"]: row["prompt_id"] for row in loop.rows("evaluation rollouts", "rollouts")}
    rewards = defaultdict(list)
    for verdict in loop.rows("evaluation verdicts", "verdicts"):
        rewards[prompt_of[verdict["rollout_id"]]].append(verdict["reward"])
    means = [sum(values) / GROUP_SIZE for values in rewards.values()]
    mean = sum(means) / 8
    variance = sum((m - mean) ** 2 for m in means) / 7
    assert (found["n"], found["k"], found["num_unassigned"]) == (8, GROUP_SIZE, 0)
    assert found["mean"] == pytest.approx(mean, abs=1e-12)
    assert found["stderr"] == pytest.approx(math.sqrt(variance / 8), abs=1e-12)
    assert found["stderr"] > 0
    assert found["pass_at_k"] == sum(max(values) for values in rewards.values()) / 8
    reasons = [row["finish_reason"] for row in loop.rows("evaluation rollouts", "rollouts")]
    assert found["truncation_rate"] == reasons.count("length") / 32
    assert (found["scorer"], found["decoding"], found["temperature"]) == ("parity@1", "sampled", 1.0)
    assert found["policy"] == loop.rows("training 2", "policies")[0]["policy"]
    assert found["prompt_hash"] == loop.part("evaluation prompts", "prompts").digest


def test_real_verifiers_that_raise_leave_completions_out_of_the_mean(loop: Loop) -> None:
    loop.evaluate("moody", "policy", verifier="moody")
    (found,) = loop.rows("moody", "scores")
    prompt_of = {row["rollout_id"]: row["prompt_id"] for row in loop.rows("moody rollouts", "rollouts")}
    rewards, num_unassigned = defaultdict(list), 0
    for verdict in loop.rows("moody verdicts", "verdicts"):
        if verdict["reward"] is None:
            num_unassigned += 1
        else:
            rewards[prompt_of[verdict["rollout_id"]]].append(verdict["reward"])
    means = [sum(values) / len(values) for values in rewards.values()]
    assert found["num_unassigned"] == num_unassigned > 0
    assert found["mean"] == pytest.approx(sum(means) / len(means), abs=1e-12)
