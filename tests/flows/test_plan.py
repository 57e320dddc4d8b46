"""`tempo plan`: hits, misses, which part of a key differs and from what to what; and nothing is executed."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows.history import Cost
from flows.planning import PlannedStage, lines
from storage.artifact import Artifact, Store
from tasks.place import Run

Tempo = Callable[..., tuple[int, str, str]]
Row = dict[str, Any]


@pytest.fixture
def plan(tempo: Tempo, stored: Path, learning: list[str]) -> Callable[..., list[Row]]:
    """The plan of the finished run with other settings: rows of --format json."""

    def plan(*overrides: str, data: Path = stored) -> list[Row]:
        settings = [argument for setting in [*learning, *overrides] for argument in ("--set", setting)]
        code, out, err = tempo("plan", "quickstart", "--data-root", data, "--format", "json", *settings)
        rows = [json.loads(line) for line in out.splitlines()]
        assert err == ""
        assert code == (3 if any(row["plan"] == "run" for row in rows) else 0)
        return rows

    return plan


def to_run(rows: list[Row]) -> list[tuple[int, str, str]]:
    return [(row["step"], row["stage"], row["why"]) for row in rows if row["plan"] == "run"]


def contents(root: Path) -> dict[str, int]:
    return {str(path.relative_to(root)): path.stat().st_mtime_ns for path in root.rglob("*")}


def test_a_finished_run_is_all_hits_and_the_exit_code_is_0(plan):
    assert to_run(plan()) == []


def test_a_plan_writes_nothing(plan, stored, tmp_path):
    before = contents(stored)
    plan("train.learning_rate=1e-4", "steps=7")
    assert contents(stored) == before
    assert len(to_run(plan(data=tmp_path / "nothing"))) == len(plan())
    assert not (tmp_path / "nothing").exists()


def test_a_damaged_artifact_is_planned_as_missing_and_left_where_it_is(plan, data):
    (file,) = list((data / "artifacts" / "credit").glob("*/advantages.parquet"))[:1]
    file.write_bytes(file.read_bytes()[:100])
    (first, *_) = to_run(plan(data=data))
    assert first[1:] == ("credit", "missing")
    assert file.stat().st_size == 100


def test_another_learning_rate_is_named_from_what_to_what_and_what_it_touches_waits(plan):
    rows = plan("train.learning_rate=1e-4")
    first = next(row for row in rows if row["plan"] == "run")
    assert (first["step"], first["stage"], first["why"]) == (1, "training", "changed")
    assert first["reason"] == "config.learning_rate 0.0002 -> 0.0001"
    assert first["seconds"] > 0
    assert first["tokens"] > 0
    assert first["bytes"] > 1e6
    second = rows[rows.index(first) + 1]
    assert (second["step"], second["stage"], second["why"]) == (2, "generation", "waits")
    assert second["reason"] == "policy from step 001 training"


def test_a_new_estimator_reuses_the_rollouts_and_verdicts_of_the_step(plan):
    rows = plan("estimator=grpo")
    assert to_run(rows)[0] == (1, "credit", "changed")
    assert next(row for row in rows if row["plan"] == "run")["reason"] == "estimator tempo -> grpo"
    assert {row["stage"] for row in rows if row["step"] == 1 and row["plan"] == "hit"} == {"generation", "verification"}


def test_another_way_to_score_never_retrains(plan):
    rows = plan("evaluation.num_samples=3")
    assert {row["purpose"] for row in rows if row["plan"] == "run"} == {"eval"}
    assert {row["label"] for row in rows if row["plan"] == "run"} == {"arithmetic sampled"}


def test_a_longer_run_extends_a_shorter_one(plan):
    assert {step for step, _, _ in to_run(plan("steps=6"))} == {5, 6}


def test_a_run_of_another_name_that_begins_alike_shares_what_they_have_in_common(plan):
    assert to_run(plan("run=other")) == []
    assert to_run(plan("run=other", "estimator=rloo"))[0] == (1, "credit", "new")


def test_a_stored_run_is_planned_by_its_name_with_its_own_settings(tempo, stored):
    code, out, _ = tempo("plan", "quickst", "--data-root", stored)
    assert code == 0
    assert out.splitlines()[-1].endswith("nothing to do")
    code, _, err = tempo("plan", "nobody", "--data-root", stored)
    assert code == 2
    assert "'nobody' is no stored run; expected one of: quickstart" in err


def test_the_table_ends_with_sums_and_expected_cost(tempo, stored):
    code, out, _ = tempo("plan", "quicks", "--data-root", stored, "--set", "train.learning_rate=1e-4")
    assert code == 3
    last = out.splitlines()[-1]
    # of step 1 only training changes; steps 2 to 4 have 4 stages each; two evaluations of 2 decodings x 3 stages wait
    assert "25 would run (21 of them only if their inputs change)" in last
    assert "tokens" in last


def test_dropped_weights_are_counted_where_a_stage_would_rebuild_them(tempo, data):
    store = Store(data)
    for folder in (data / "artifacts" / "training").iterdir():
        store.drop_parts(Artifact("training", folder.name, folder), ["checkpoint", "optimizer"])
    code, out, _ = tempo("plan", "quickst", "--data-root", data)
    assert code == 0  # nothing needs them
    code, out, _ = tempo("plan", "quickst", "--data-root", data, "--set", "steps=5")
    lines = [line for line in out.splitlines() if "rebuilds" in line]
    assert [line.split("; ")[-1] for line in lines] == ["rebuilds 4 dropped policies first"]


def test_a_plan_tells_how_much_of_a_benchmark_is_in_the_training_prompts(plan, tmp_path):
    (known,) = [row["overlap"] for row in plan() if row["stage"] == "separation"]
    assert known == {"num_prompts": 8, "num_exact": 0, "num_13gram": 0}
    assert all("overlap" not in row for row in plan() if row["stage"] != "separation")
    (unknown,) = [row["overlap"] for row in plan(data=tmp_path / "nothing") if row["stage"] == "separation"]
    assert unknown is None


def planned(stored: Path, label: str, summary: Row | None) -> PlannedStage:
    place = Run("quickstart", "a", Store(stored)).at(0, "train", label)
    return PlannedStage(place, "separation", "hit" if summary else "new", "", Cost(), summary or {})


def test_overlap_is_warned_of_after_the_sums_and_what_is_not_known_is_said_once(stored, tempo):
    counts = {"benchmark": "gsm8k", "num_prompts": 660, "num_exact": 0, "num_13gram": 2}
    stages = [
        planned(stored, "gsm8k", counts),
        planned(stored, "arithmetic", counts | {"num_exact": 1, "num_13gram": 0}),
        planned(stored, "medqa", counts | {"num_13gram": 0}),
        planned(stored, "math500", None),
        planned(stored, "amc23", None),
    ]
    sums, gsm8k, arithmetic, unknown = list(lines(stages))[5:]
    assert sums.startswith("5 stages: 3 hits")
    assert gsm8k.startswith(
        "warning: gsm8k: 2 of 660 prompts share 13 words in a row with training prompts (exact: 0): "
    )
    assert arithmetic.startswith("warning: arithmetic: 0 of 660 prompts share")
    assert "(exact: 1)" in arithmetic
    assert unknown.startswith("not known yet: whether prompts of math500, amc23 are training prompts")
    _, sql, statement, *options = shlex.split(gsm8k.partition("(exact: 0): ")[2])
    assert sql == "sql"
    assert tempo("sql", statement, *options)[0] == 0  # the command that the warning names runs


def test_a_plan_of_other_sets_than_a_mirror_holds_names_what_is_missing(tempo, tmp_path):
    code, _, err = tempo("plan", "gsm8k", "--hub-root", tmp_path, "--set", "policy=builtin/tiny-qwen3")
    assert code == 2
    assert f"expected the dataset openai/gsm8k in the folder {tmp_path}/openai/gsm8k" in err
