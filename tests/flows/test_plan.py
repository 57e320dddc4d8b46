"""`tempo plan`: hits, misses, which part of a key differs and from what to what; and nothing is executed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from storage.artifact import Artifact, Store

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
