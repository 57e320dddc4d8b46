"""`tempo recredit`: other verdicts and other credit of stored rollouts, beside those of the training."""

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from flows.history import stored_experiment
from flows.loop import train_experiment
from tasks.core.verdict import Judgement, Status
from tasks.core.verifiers import VERIFIERS
from tasks.core.verifiers.arithmetic import ArithmeticVerifier
from tests.flows.stored import num_lines, query, ran

ROOT = Path(__file__).resolve().parents[2]
Tempo = Callable[..., tuple[int, str, str]]
STEPS, GROUPS, SIZE = 4, 6, 4
PER_STEP = GROUPS * SIZE


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
    assert query(data, verdicts) == [("gsm8k@2", 96, 96)]
    labels = "SELECT DISTINCT label FROM advantages WHERE label LIKE '% gsm8k@2' ORDER BY label"
    assert query(data, labels) == [("dr_grpo gsm8k@2",), ("rloo gsm8k@2",)]


def test_a_recredit_loads_no_model(data):
    code = (
        "import sys; from flows.cli import main\n"
        f"code = main(['recredit', 'quickstart', '--estimator', 'rloo', '--no-server', '--data-root', {str(data)!r}])\n"
        "print(code, sorted({'torch', 'transformers', 'vllm', 'prefect'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines()[-1] == "0 []", done.stderr


class Second(ArithmeticVerifier):
    """The verifier's next version: wrong, where the one before found nothing."""

    version = 2

    def judge(self, completion: str, answer: str, *, is_truncated: bool, options: Sequence[str] = ()) -> Judgement:
        said = super().judge(completion, answer, is_truncated=is_truncated)
        return Judgement(status=Status.WRONG, extracted_answer="") if said.status == Status.UNPARSEABLE else said


class Lettered(ArithmeticVerifier):
    """Compares letters."""

    name = "lettered"

    def check_answer(self, answer: str, options: Sequence[str] = ()) -> None:
        if answer not in "ABCD":
            raise ValueError(f"gold answer {answer!r} cannot be compared: expected a letter")


def test_verdicts_of_another_verifier_change_nothing_of_the_training(tempo: Tempo, data):
    tables = ("rollouts", "verdicts", "advantages", "prefix_nodes", "updates", "policies")
    rows = {table: query(data, f"SELECT * FROM {table} ORDER BY ALL") for table in tables}
    ledger = query(data, "SELECT * FROM prompt_ledger ORDER BY ALL")
    files, before = digests(data), num_lines(data)
    recredit(tempo, data, "--verifier", "gsm8k@2")
    stages = [(step, "recredit", stage) for step in (1, 2, 3, 4) for stage in ("verification", "credit")]
    assert ran(data, before) == stages
    assert {path: digest for path, digest in digests(data).items() if path in files} == files
    for table in tables:
        assert query(data, f"SELECT * FROM {table} WHERE purpose <> 'recredit' ORDER BY ALL") == rows[table]
    assert query(data, "SELECT * FROM prompt_ledger ORDER BY ALL") == ledger
    tokens = "SELECT count(*), count(DISTINCT (step, rollout_id, position)) FROM token_credit WHERE purpose = "
    assert query(data, f"{tokens} 'train'") == query(data, f"{tokens} 'recredit'")
    assert tempo("fsck", "--data-root", data)[0] == 0


def test_another_version_of_the_runs_verifier_is_another_verifier(tempo: Tempo, data, monkeypatch):
    own = dict(query(data, "SELECT status, count(*) FROM verdicts WHERE purpose = 'train' GROUP BY status"))
    assert own["unparseable"] > 0
    monkeypatch.setitem(VERIFIERS, "arithmetic", Second())
    before = num_lines(data)
    recredit(tempo, data, "--estimator", "grpo")  # asks for no verdicts: those of version 1 stand
    assert {stage for _, _, stage in ran(data, before)} == {"credit"}
    recredit(tempo, data, "--verifier", "arithmetic@2")
    before = num_lines(data)
    recredit(tempo, data, "--verifier", "arithmetic")
    assert ran(data, before) == []
    versions = "SELECT purpose, label, verifier_version, count(*) FROM verdicts WHERE purpose <> 'eval' GROUP BY ALL"
    assert query(data, f"{versions} ORDER BY ALL") == [
        ("recredit", "arithmetic@2", 2, STEPS * PER_STEP),
        ("train", "", 1, STEPS * PER_STEP),
    ]
    pairs = answer(tempo, data, "verifier_disagreement")
    assert {(row["verifier_a"], row["verifier_b"]) for row in pairs} == {("arithmetic@1", "arithmetic@2")}
    changed = {(row["status_a"], row["status_b"]): row["completions"] for row in pairs}
    assert changed == {(status, "wrong" if status == "unparseable" else status): n for status, n in own.items()}
    assert "and no other; write 'arithmetic@2'" in refused(tempo, data, "--verifier", "arithmetic@1")


def test_an_experiment_may_name_its_verifiers_version_and_its_rows_name_both(tempo: Tempo, data, learning):
    from tasks.experiment import load_experiment

    before = num_lines(data)
    train_experiment(load_experiment("quickstart", [*learning, "verifier=arithmetic@1"]), data, uses_prefect=False)
    assert ran(data, before) == []  # the same verdicts
    code, _, err = tempo("train", "quickstart", "--set", "verifier=arithmetic@2", "--data-root", data)
    assert (code, "write 'arithmetic@1'" in err) == (2, True)


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


@pytest.mark.parametrize("version", ["v1", "v2", "v3", "v4", "v5"])
def test_a_run_of_any_schema_is_judged_again(tempo: Tempo, tmp_path, version: str):
    """What a version did not store yet (options of prompts, masks of rollouts) is NULL, to stages and to contracts."""
    root = tmp_path / "data"
    shutil.copytree(Path(__file__).parents[1] / "storage" / "golden" / version, root)
    recredit(tempo, root, "--verifier", "exact")
    judged = query(root, "SELECT verifier, count(*) FROM verdicts WHERE purpose = 'recredit' GROUP BY ALL")
    assert judged == [("exact", 6)]  # step 1: 2 prompts x 3 completions
    assert query(root, "SELECT count(*) FROM advantages WHERE purpose = 'recredit'") == [(6,)]
