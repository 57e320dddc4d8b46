"""What a recredit changed, as the stored queries recredit_changes and verifier_disagreement count it on a real run."""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from storage.catalog import open_catalog
from tasks.core.verdict import Judgement
from tasks.core.verifiers import VERIFIERS
from tasks.core.verifiers.arithmetic import ArithmeticVerifier

Tempo = Callable[..., tuple[int, str, str]]
STEPS, GROUPS, SIZE = 4, 6, 4
PER_STEP = GROUPS * SIZE


def query(data: Path, statement: str) -> list[tuple[Any, ...]]:
    return open_catalog(data).execute(statement).fetchall()


def recredit(tempo: Tempo, data: Path, *arguments: str) -> str:
    """Standard output of a recredit that went well."""
    code, out, err = tempo("recredit", "quickstart", *arguments, "--no-server", "--data-root", data)
    assert code == 0, err
    return out


def answer(tempo: Tempo, data: Path, name: str) -> list[dict[str, Any]]:
    """Rows of a stored query."""
    _, out, _ = tempo("sql", "--query", name, "--run", "quickstart", "--format", "json", "--data-root", data)
    return [json.loads(line) for line in out.splitlines()]


class Blind(ArithmeticVerifier):
    """Cannot see the digits 5 to 9: crashes on them."""

    name = "blind"

    def judge(self, completion: str, answer: str, *, is_truncated: bool, options: Sequence[str] = ()) -> Judgement:
        if completion[-1:] in tuple("56789"):
            raise OverflowError("too many fingers")
        return super().judge(completion, answer, is_truncated=is_truncated)


def test_what_another_verifier_changed_is_counted_by_step(tempo: Tempo, data):
    """gsm8k looks for '####' or a box, and arithmetic's completions have neither: every one is unparseable."""
    statuses, correct_of = defaultdict(Counter), defaultdict(Counter)
    for step, group, status in query(data, "SELECT step, group_id, status FROM verdicts WHERE purpose = 'train'"):
        statuses[step][status] += 1
        correct_of[step][group] += status == "correct"
    sizes = dict(query(data, "SELECT step, max(abs(advantage)) FROM token_credit GROUP BY step"))
    out = recredit(tempo, data, "--verifier", "gsm8k")
    for name in ("recredit_changes", "verifier_disagreement"):
        assert f"sql --query {name} --run quickstart" in out
    rows = answer(tempo, data, "recredit_changes")
    assert {row["label"] for row in rows} == {"tempo gsm8k@2"}
    for step in range(1, STEPS + 1):
        found = {(row["change"], row["before"], row["after"]): row for row in rows if row["step"] == step}
        for before in {"correct", "wrong"} & set(statuses[step]):
            assert found.pop(("status", before, "unparseable"))["changed"] == statuses[step][before]
        mixed = sum(0 < number < SIZE for number in correct_of[step].values())
        counts = {key: (row["changed"], row["total"], row["max_difference"]) for key, row in found.items()}
        assert counts == {
            ("reward", None, None): (statuses[step]["correct"], PER_STEP, 1.0),  # 1 -> 0
            # in a mixed group every r_i - mean is not 0; now all are 0
            ("advantage", None, None): (mixed * SIZE, PER_STEP, pytest.approx(sizes[step])),
        } | ({("signal", "signal", "no signal"): (mixed, GROUPS, None)} if mixed else {})


def test_any_two_verifiers_are_compared_on_the_rollouts_that_both_judged(tempo: Tempo, data):
    """exact takes all the text for the answer, and gsm8k finds none in it."""
    texts = """
        SELECT v.status,
               CASE WHEN trim(text) = '' THEN 'unparseable' WHEN text = answer THEN 'correct' ELSE 'wrong' END,
               count(*)
        FROM verdicts v JOIN rollouts r USING (run, step, purpose, rollout_id)
        JOIN prompts p USING (run, purpose, prompt_id) WHERE purpose = 'train' GROUP BY ALL"""
    by_exact = {(own, exact): number for own, exact, number in query(data, texts)}
    assert {own for own, _ in by_exact} == {"correct", "wrong", "unparseable"}  # none was truncated
    own, exact = Counter(), Counter()
    for (status, other), number in by_exact.items():
        own[status] += number
        exact[other] += number
    assert answer(tempo, data, "verifier_disagreement") == []
    recredit(tempo, data, "--verifier", "gsm8k")
    recredit(tempo, data, "--verifier", "exact@1")
    rows = answer(tempo, data, "verifier_disagreement")
    found: dict[tuple[str, str], dict[tuple[str, str], tuple[int, float]]] = defaultdict(dict)
    for row in rows:
        pair = (row["verifier_a"], row["verifier_b"])
        found[pair][row["status_a"], row["status_b"]] = (row["completions"], row["share"])
    num = STEPS * PER_STEP
    assert found == {
        ("arithmetic@1", "exact@1"): {statuses: (n, n / num) for statuses, n in by_exact.items()},
        ("arithmetic@1", "gsm8k@2"): {(status, "unparseable"): (n, n / num) for status, n in own.items()},
        ("exact@1", "gsm8k@2"): {(status, "unparseable"): (n, n / num) for status, n in exact.items()},
    }
    example = next(row for row in rows if (row["verifier_b"], row["status_a"]) == ("exact@1", "wrong"))
    text = f"SELECT text FROM rollouts WHERE rollout_id = '{example['example']}'"
    assert query(data, text) == [(example["answer_b"],)]
    assert example["answer_b"].endswith(f"#{example['answer_a']}")


def test_every_change_of_an_advantage_is_the_difference_of_what_token_credit_shows(tempo: Tempo, data):
    recredit(tempo, data, "--set", "verification.rewards.wrong=-1")
    recredit(tempo, data, "--set", "credit.td_scale=2")
    recredit(tempo, data, "--estimator", "reinforce_pp")  # every token is whitened
    recredit(tempo, data, "--estimator", "prm_weighted")
    expected = """
        SELECT r.label, r.step, max(abs(r.advantage - t.advantage)),
               count(DISTINCT r.rollout_id) FILTER (r.advantage <> t.advantage)
        FROM token_credit r JOIN token_credit t USING (run, step, rollout_id, position)
        WHERE r.purpose = 'recredit' AND t.purpose = 'train' GROUP BY ALL ORDER BY ALL"""
    rows = [row for row in answer(tempo, data, "recredit_changes") if row["change"] == "advantage"]
    found = [(row["label"], row["step"], row["max_difference"], row["changed"]) for row in rows]
    assert found == query(data, expected)
    assert len(found) == 4 * STEPS


def test_other_rewards_for_the_same_verdicts_are_other_rows_and_change_no_status(tempo: Tempo, data):
    wrong = dict(
        query(data, "SELECT step, count(*) FROM verdicts WHERE purpose = 'train' AND status = 'wrong' GROUP BY 1")
    )
    recredit(tempo, data, "--set", "verification.rewards.wrong=-0.5", "--set", "credit.td_clip=0.25")
    assert query(data, "SELECT DISTINCT label FROM verdicts WHERE purpose = 'recredit'") == [
        ("arithmetic@1 rewards.wrong=-0.5",)
    ]
    assert query(data, "SELECT DISTINCT label FROM advantages WHERE purpose = 'recredit'") == [
        ("tempo arithmetic@1 rewards.wrong=-0.5 td_clip=0.25",)
    ]
    rewards = "SELECT status, min(reward), max(reward) FROM verdicts WHERE purpose = 'recredit' GROUP BY 1 ORDER BY 1"
    assert ("wrong", -0.5, -0.5) in query(data, rewards)
    rows = answer(tempo, data, "recredit_changes")
    assert not [row for row in rows if row["change"] == "status"]
    changed = {row["step"]: (row["changed"], row["max_difference"]) for row in rows if row["change"] == "reward"}
    assert changed == {step: (number, 0.5) for step, number in wrong.items()}
    assert answer(tempo, data, "verifier_disagreement") == []  # one verifier, whatever its verdicts are worth


def test_completions_that_the_other_verifier_fails_on_lose_their_reward_and_leave_their_group(
    tempo: Tempo, data, monkeypatch
):
    monkeypatch.setitem(VERIFIERS, "blind", Blind())
    ends = "SELECT step, text, status FROM verdicts JOIN rollouts USING (run, step, purpose, rollout_id, group_id)"
    rows = query(data, f"{ends} WHERE purpose = 'train'")
    unseen = Counter(step for step, text, _ in rows if text[-1:] in tuple("56789"))
    breach = tempo("recredit", "quickstart", "--verifier", "blind", "--no-server", "--data-root", data)
    assert breach[0] == 1
    assert "--set contracts.max_null_verdicts=SHARE" in breach[2]
    code, _, err = tempo(
        "recredit", "quickstart", "--verifier", "blind", "--set", "contracts.max_null_verdicts=1", "--no-server",
        "--data-root", data,
    )  # fmt: skip
    assert code == 0
    assert "OverflowError: too many fingers" in err
    found = answer(tempo, data, "recredit_changes")
    gone = Counter()
    for row in found:
        if row["change"] == "status":
            assert row["after"] == "crashed"
            gone[row["step"]] += row["changed"]
    assert gone == unseen
    assert {row["step"]: row["changed"] for row in found if row["change"] == "reward"} == dict(unseen)
