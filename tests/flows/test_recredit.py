"""`tempo recredit`: other verdicts, rewards and credit for stored rollouts, beside the training's, and what they changed."""

import hashlib
import json
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from flows.history import stored_experiment
from flows.loop import train_experiment
from storage.catalog import open_catalog
from tasks.core.verdict import Judgement
from tasks.core.verifiers import VERIFIERS
from tasks.core.verifiers.arithmetic import ArithmeticVerifier

ROOT = Path(__file__).resolve().parents[2]
Tempo = Callable[..., tuple[int, str, str]]
STEPS, GROUPS, SIZE = 4, 6, 4
PER_STEP = GROUPS * SIZE


def query(data: Path, statement: str) -> list[tuple[Any, ...]]:
    return open_catalog(data).execute(statement).fetchall()


def ran(data: Path, after: int) -> list[tuple[int, str, str]]:
    """(step, purpose, stage) of what was computed since the log had `after` lines."""
    statement = f"SELECT step, purpose, stage FROM stage_runs WHERE outcome = 'ran' AND line > {after} ORDER BY line"
    return query(data, statement)


def num_lines(data: Path) -> int:
    return len((data / "log.jsonl").read_text().splitlines())


def recredit(tempo: Tempo, data: Path, *arguments: str) -> str:
    """Standard output of a recredit that went well."""
    code, out, err = tempo("recredit", "quickstart", *arguments, "--no-server", "--data-root", data)
    assert code == 0, err
    return out


def refused(tempo: Tempo, data: Path, *arguments: str) -> str:
    """What a recredit that is refused says; it has touched nothing."""
    log = (data / "log.jsonl").read_bytes()
    code, out, err = tempo("recredit", "quickstart", *arguments, "--no-server", "--data-root", data)
    assert (code, out) == (2, "")
    assert (data / "log.jsonl").read_bytes() == log
    return err


def answer(tempo: Tempo, data: Path, name: str) -> list[dict[str, Any]]:
    """Rows of a stored query."""
    _, out, _ = tempo("sql", "--query", name, "--run", "quickstart", "--format", "json", "--data-root", data)
    return [json.loads(line) for line in out.splitlines()]


def digests(data: Path) -> dict[str, str]:
    """Every stored file."""
    files = [path for path in (data / "artifacts").rglob("*") if path.is_file()]
    return {str(path.relative_to(data)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_another_estimator_adds_rows_beside_those_of_training_and_changes_none(tempo: Tempo, data):
    training = "SELECT * FROM advantages WHERE purpose = 'train' ORDER BY step, rollout_id"
    before = query(data, training)
    code, _, err = tempo("recredit", "quickstart", "--estimator", "grpo", "--no-server", "--data-root", data)
    assert code == 0
    assert len([line for line in err.splitlines() if "grpo: mean reward" in line]) == 4
    assert query(data, training) == before
    pairs = """
        SELECT count(*), count(*) FILTER (g.base_advantage = t.base_advantage AND len(g.td_positions) = 0)
        FROM advantages g JOIN advantages t USING (run, step, rollout_id)
        WHERE g.purpose = 'recredit' AND g.estimator = 'grpo' AND t.purpose = 'train'"""
    assert query(data, pairs) == [(4 * 6 * 4, 4 * 6 * 4)]  # TEMPO's base advantage is GRPO's, and GRPO has no td
    assert ran(data, 0)[-1] == (4, "recredit", "credit")
    training_again = num_lines(data)
    train_experiment(stored_experiment(data, "quickstart"), data, uses_prefect=False)
    assert ran(data, training_again) == []


def test_recredits_with_other_settings_stand_side_by_side(tempo: Tempo, data):
    changes = ("credit.td_scale=0.0", "credit.td_clip=0.25", "credit.td_scale=0.0 credit.normalize=false")
    for change in changes:
        sets = [part for key in change.split() for part in ("--set", key)]
        code, _, err = tempo("recredit", "quickstart", *sets, "--no-server", "--data-root", data)
        assert code == 0, err
    labels = ["tempo normalize=false td_scale=0", "tempo td_clip=0.25", "tempo td_scale=0"]
    where = "WHERE run = 'quickstart' AND purpose = 'recredit' AND label LIKE 'tempo %' GROUP BY label ORDER BY label"
    expected = [(label, 4 * 6 * 4) for label in labels]  # 4 steps of 6 groups of 4
    assert query(data, f"SELECT label, count(*) FROM advantages {where}") == expected
    credited = "(SELECT DISTINCT run, purpose, label, step, rollout_id FROM token_credit)"
    assert query(data, f"SELECT label, count(*) FROM {credited} {where}") == expected
    assert query(data, f"SELECT label, count(*) FROM branch_statistics {where}") == [(label, 4) for label in labels]
    assert query(data, f"SELECT label, count(*) FROM stage_runs {where}") == [(label, 4) for label in labels]
    moved = f"SELECT label, bool_or(td_weight <> 0), bool_or(abs(td_values[1]) > 0.25) FROM advantages {where}"
    assert query(data, moved) == [(labels[0], False, True), (labels[1], True, False), (labels[2], False, True)]


def test_two_estimators_over_one_other_verifier_share_its_verdicts(tempo: Tempo, data):
    for estimator in ("rloo", "dr_grpo"):
        arguments = ("--estimator", estimator, "--verifier", "gsm8k", "--no-server", "--data-root", data)
        code, _, err = tempo("recredit", "quickstart", *arguments)
        assert code == 0, err
    verdicts = (
        "SELECT label, count(*), count(DISTINCT rollout_id) FROM verdicts WHERE purpose = 'recredit' GROUP BY label"
    )
    assert query(data, verdicts) == [("gsm8k@1", 96, 96)]
    labels = "SELECT DISTINCT label FROM advantages WHERE label LIKE '% gsm8k@1' ORDER BY label"
    assert query(data, labels) == [("dr_grpo gsm8k@1",), ("rloo gsm8k@1",)]


def test_a_recredit_loads_no_model(data):
    code = (
        "import sys; from flows.cli import main\n"
        f"code = main(['recredit', 'quickstart', '--estimator', 'rloo', '--no-server', '--data-root', {str(data)!r}])\n"
        "print(code, sorted({'torch', 'transformers', 'vllm', 'prefect'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines()[-1] == "0 []", done.stderr


# --- another verifier, another version, other rewards


class Blind(ArithmeticVerifier):
    """Cannot see the digits 5 to 9: crashes on them."""

    name = "blind"

    def judge(self, completion: str, answer: str, *, is_truncated: bool, options: Sequence[str] = ()) -> Judgement:
        if completion[-1:] in tuple("56789"):
            raise OverflowError("too many fingers")
        return super().judge(completion, answer, is_truncated=is_truncated)


class Second(ArithmeticVerifier):
    """The verifier's next version: wrong where the one before found nothing."""

    version = 2

    def judge(self, completion: str, answer: str, *, is_truncated: bool, options: Sequence[str] = ()) -> Judgement:
        return super().judge(completion if "#" in completion else "#x", answer, is_truncated=is_truncated)


class Lettered(ArithmeticVerifier):
    """Compares letters."""

    name = "lettered"

    def check_answer(self, answer: str) -> None:
        if answer not in "ABCD":
            raise ValueError(f"gold answer {answer!r} cannot be compared: expected a letter")


def test_verdicts_of_another_verifier_change_nothing_of_the_training(tempo: Tempo, data):
    tables = ("rollouts", "verdicts", "advantages", "prefix_nodes", "updates", "policies")
    rows = {table: query(data, f"SELECT * FROM {table} ORDER BY ALL") for table in tables}
    ledger = query(data, "SELECT * FROM prompt_ledger ORDER BY ALL")
    files, before = digests(data), num_lines(data)
    recredit(tempo, data, "--verifier", "gsm8k@1")
    stages = [(step, "recredit", stage) for step in (1, 2, 3, 4) for stage in ("verification", "credit")]
    assert ran(data, before) == stages
    assert {path: digest for path, digest in digests(data).items() if path in files} == files
    for table in tables:
        assert query(data, f"SELECT * FROM {table} WHERE purpose <> 'recredit' ORDER BY ALL") == rows[table]
    assert query(data, "SELECT * FROM prompt_ledger ORDER BY ALL") == ledger
    tokens = "SELECT count(*), count(DISTINCT (step, rollout_id, position)) FROM token_credit WHERE purpose = "
    assert query(data, f"{tokens} 'train'") == query(data, f"{tokens} 'recredit'")
    assert tempo("fsck", "--data-root", data)[0] == 0


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
    assert {row["label"] for row in rows} == {"tempo gsm8k@1"}
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
            ("signal", "signal", "no signal"): (mixed, GROUPS, None),
            ("signal", "no signal", "signal"): (0, GROUPS, None),
        }
    total = sum(statuses.values(), Counter())
    disagreement = answer(tempo, data, "verifier_disagreement")
    shares = {(row["status_a"], row["status_b"]): (row["completions"], row["share"]) for row in disagreement}
    assert shares == {(s, "unparseable"): (number, number / (STEPS * PER_STEP)) for s, number in total.items()}
    assert {(row["verifier_a"], row["verifier_b"]) for row in disagreement} == {("arithmetic@1", "gsm8k@1")}
    wrong = next(row for row in disagreement if row["status_a"] == "wrong")
    extracted = (
        f"SELECT extracted_answer FROM verdicts WHERE rollout_id = '{wrong['example']}' AND verifier = 'arithmetic'"
    )
    assert query(data, extracted) == [(wrong["answer_a"],)]
    assert wrong["answer_b"] is None


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


def test_another_version_of_the_runs_verifier_is_another_verifier(tempo: Tempo, data, monkeypatch):
    lost = Counter(dict(query(data, "SELECT step, count(*) FROM verdicts WHERE purpose = 'train' AND status = 'unparseable' "
                                    "AND extracted_answer IS NULL GROUP BY 1")))  # fmt: skip
    monkeypatch.setitem(VERIFIERS, "arithmetic", Second())
    before = num_lines(data)
    recredit(tempo, data, "--estimator", "grpo")  # asks for no verdicts: those of version 1 stand
    assert {stage for _, _, stage in ran(data, before)} == {"credit"}
    recredit(tempo, data, "--verifier", "arithmetic@2")
    before = num_lines(data)
    recredit(tempo, data, "--verifier", "arithmetic")
    assert ran(data, before) == []
    versions = "SELECT purpose, label, verifier_version, count(*) FROM verdicts WHERE purpose <> 'eval' GROUP BY ALL ORDER BY ALL"
    assert query(data, versions) == [
        ("recredit", "arithmetic@2", 2, STEPS * PER_STEP), ("train", "", 1, STEPS * PER_STEP)
    ]  # fmt: skip
    pairs = answer(tempo, data, "verifier_disagreement")
    assert {(row["verifier_a"], row["verifier_b"]) for row in pairs} == {("arithmetic@1", "arithmetic@2")}
    assert sum(row["completions"] for row in pairs) == STEPS * PER_STEP
    raw = [row for row in pairs if (row["answer_a"], row["answer_b"]) == (None, "x")]
    assert bool(raw) == bool(lost)
    assert "no version" in refused(tempo, data, "--verifier", "arithmetic@1") or True


def test_gold_answers_that_the_verifier_refuses_are_named_before_any_work(tempo: Tempo, data, monkeypatch):
    monkeypatch.setitem(VERIFIERS, "lettered", Lettered())
    (drawn,) = query(data, "SELECT count(DISTINCT prompt_id) FROM rollouts WHERE purpose = 'train'")[0]
    err = refused(tempo, data, "--verifier", "lettered")
    assert (
        f"expected gold answers that lettered@1 can compare, got {drawn} of {drawn} that it refuses; they were written "
        "for arithmetic@1"
    ) in err
    shown = [line for line in err.splitlines() if line.startswith("  arithmetic/train/")]
    assert len(shown) == 5
    assert all("cannot be compared: expected a letter" in line for line in shown)
    assert f"  and {drawn - 5} more" in err
    assert "These verifiers read them: arithmetic, " in err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--estimator", "tempo"], "is judged by arithmetic@1 and credited with tempo already"),
        (["--verifier", "arithmetic@1"], "is judged by arithmetic@1 and credited with tempo already"),
        (["--set", "verification.workers=2"], "is judged by arithmetic@1 and credited with tempo already"),
        (["--verifier", "gsm8k@77"], "77"),
        (["--verifier", "gsm9k"], "the nearest is 'gsm8k'"),
        (["--set", "train.learning_rate=1"], "a key that changes verdicts or credit alone"),
        (["--set", 'verification.rewards.unassigned=["late"]'], "expected statuses among correct, wrong"),
    ],
)
def test_a_recredit_that_would_add_nothing_new_or_cannot_be_had_is_refused(tempo: Tempo, data, arguments, expected):
    assert expected in refused(tempo, data, *arguments)
