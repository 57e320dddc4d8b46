"""`tempo runs`, `tempo fsck` and `tempo gc` on a real run that is damaged, killed, shared, redone and forgotten."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows.loop import train_experiment
from flows.planning import request_rerun
from flows.takes import Rerun
from storage.catalog import open_catalog
from storage.garbage import ORPHAN_SECONDS
from storage.lock import RootLocked, root_lock
from tasks.experiment import load_experiment

Tempo = Callable[..., tuple[int, str, str]]


def artifact_with(data: Path, stage: str, file: str) -> Path:
    """One file of one artifact of a stage."""
    return sorted((data / "artifacts" / stage).glob(f"*/{file}"))[0]


def train(data: Path, learning: list[str], *overrides: str) -> None:
    train_experiment(load_experiment("quickstart", [*learning, *overrides]), data, uses_prefect=False)


def findings(tempo: Tempo, data: Path) -> list[dict[str, Any]]:
    code, out, _ = tempo("fsck", "--data-root", data, "--format", "json")
    found: list[dict[str, Any]] = json.loads(out)
    assert code == (1 if any(not finding["is_note"] for finding in found) else 0)
    return found


def num_ran_last(data: Path) -> int:
    last = "line > (SELECT max(line) FROM run_events WHERE state = 'started')"
    ((count,),) = (
        open_catalog(data).execute(f"SELECT count(*) FILTER (outcome = 'ran') FROM stage_runs WHERE {last}").fetchall()
    )
    return int(count)


# --- fsck


def test_a_sound_data_root_has_no_findings(tempo: Tempo, stored):
    assert findings(tempo, stored) == []


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("stage", "file", "damage", "kind"),
    [
        ("credit", "advantages.parquet", flip, "changed file"),
        ("training", "checkpoint/model.safetensors", flip, "changed file"),
        ("generation", "rollouts.parquet", lambda file: os.truncate(file, 100), "torn file"),
        ("verification", "verdicts.parquet", Path.unlink, "missing file"),
        ("training", "manifest.json", lambda file: os.truncate(file, 100), "unreadable manifest"),
        (
            "credit",
            "manifest.json",
            lambda file: file.write_text(file.read_text().replace('"tempo"', '"grpo"')),
            "wrong key",
        ),
    ],
)
def test_damage_is_found_named_set_aside_and_healed_by_the_next_run(
    tempo: Tempo, data, learning, stage, file, damage, kind
):
    rows = open_catalog(data).execute("SELECT * FROM token_credit ORDER BY ALL").fetchall()
    path = artifact_with(data, stage, file)
    name = f"{stage}/{path.relative_to(data / 'artifacts' / stage).parts[0]}"
    damage(path)
    found = findings(tempo, data)
    assert (kind, name) in {(finding["kind"], finding["artifact"]) for finding in found}
    code, out, _ = tempo("fsck", "--repair", "--data-root", data)
    assert code == 1
    assert f"{name} is set aside in" in out
    assert not (data / "artifacts" / name).exists()
    (evidence,) = (data / "quarantine").iterdir()
    assert kind in (evidence / "reason.txt").read_text()
    assert {finding["kind"] for finding in findings(tempo, data)} <= {"missing artifact", "policy without parent"}
    train(data, learning)
    assert findings(tempo, data) == []
    assert open_catalog(data).execute("SELECT * FROM token_credit ORDER BY ALL").fetchall() == rows


def test_what_only_costs_disk_is_a_note(tempo: Tempo, data):
    (data / "artifacts" / ".staging" / "left-1-a").mkdir(parents=True)
    log = data / "log.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join(lines[:-1]) + lines[-1][:40])  # the end of the run
    artifact_with(data, "credit", "manifest.json").with_name("notes.txt").write_text("mine")
    found = findings(tempo, data)
    assert {finding["kind"] for finding in found} == {"staging folder", "torn log line", "unexpected file"}
    assert all(finding["is_note"] for finding in found)


def test_a_policy_without_its_parent_is_found(tempo: Tempo, data):
    import shutil

    shutil.rmtree(next((data / "artifacts" / "warm_start").iterdir()))
    found = {finding["kind"]: finding for finding in findings(tempo, data)}
    assert set(found) == {"missing artifact", "policy without parent"}
    assert found["missing artifact"]["artifact"].startswith("warm_start/")


# --- gc


def test_gc_says_what_it_would_remove_and_removes_nothing_until_told(tempo: Tempo, data, learning):
    experiment, asked = request_rerun(data, "quickstart", Rerun(from_stage="credit", step=2))
    train_experiment(experiment, data, uses_prefect=False, rerun=asked)
    before = sorted((data / "artifacts").glob("*/*"))
    code, out, _ = tempo("gc", "--data-root", data)
    assert code == 0
    assert "only of earlier attempts or forgotten runs" in out
    assert "1 would be removed" in out  # the credit of step 2 as it was first computed
    assert sorted((data / "artifacts").glob("*/*")) == before
    code, out, _ = tempo("gc", "--delete", "--data-root", data)
    assert "1 removed" in out
    assert len(sorted((data / "artifacts").glob("*/*"))) == len(before) - 1
    train(data, learning)  # goes on with the rerun's attempt
    assert num_ran_last(data) == 0
    assert findings(tempo, data) == []


def test_gc_never_removes_what_a_kept_run_needs_when_another_is_forgotten(tempo: Tempo, data, learning):
    train(data, learning, "run=other", "train.learning_rate=1e-3")
    code, out, _ = tempo("gc", "--delete", "--forget", "quickstart", "--data-root", data)
    assert code == 0
    assert "forgotten: quickstart" in out
    runs = [json.loads(line)["run"] for line in tempo("runs", "--format", "json", "--data-root", data)[1].splitlines()]
    assert runs == ["other"]
    assert findings(tempo, data) == []
    train(data, learning, "run=other", "train.learning_rate=1e-3")
    assert num_ran_last(data) == 0
    train(data, learning)  # and a forgotten run is made again: from step 1's training on, the rest is other's too
    ran = open_catalog(data).execute(
        "SELECT min(step), count(DISTINCT stage) FROM stage_runs WHERE run = 'quickstart' AND outcome = 'ran' "
        "AND line > (SELECT max(line) FROM run_events WHERE state = 'forgotten') AND purpose = 'train'"
    )
    assert ran.fetchall() == [(1, 4)]


def test_an_artifact_that_no_log_knows_is_left_alone_for_an_hour(tempo: Tempo, data):
    log = data / "log.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    position = max(i for i, line in enumerate(lines) if '"stage": "evaluation"' in line)
    log.write_text("".join(lines[:position] + lines[position + 1 :]))
    assert "0 would be removed" in tempo("gc", "--data-root", data)[1]
    for folder in (data / "artifacts" / "evaluation").iterdir():
        old = folder.stat().st_mtime - ORPHAN_SECONDS
        os.utime(folder, (old, old))
    assert "1 would be removed" in tempo("gc", "--data-root", data)[1]


def test_an_unknown_run_cannot_be_forgotten(tempo: Tempo, data):
    code, _, err = tempo("gc", "--forget", "nobody", "--data-root", data)
    assert code == 2
    assert "--forget nobody: no such run; expected one of quickstart" in err


# --- locks and runs


def test_nothing_is_removed_while_somebody_writes(tempo: Tempo, data):
    with root_lock(data, exclusive=False):
        for command in (["gc", "--delete"], ["fsck", "--repair"]):
            code, _, err = tempo(*command, "--data-root", data)
            assert code == 1
            assert "is being written to" in err
            assert "Nothing is removed while somebody writes" in err


HOLD = """
import sys, time
from pathlib import Path
from storage.lock import root_lock, run_lock
data = Path(sys.argv[1])
with root_lock(data, exclusive=False), run_lock(data / "locks" / "quickstart.lock", "quickstart"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_run_is_running_while_its_lock_is_held_and_killed_when_the_holder_is_gone(tempo: Tempo, data):
    log = data / "log.jsonl"
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:-1]))  # without its end: as after kill -9
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(data)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == "held\n"
        (row,) = map(json.loads, tempo("runs", "--format", "json", "--data-root", data)[1].splitlines())
        assert row["state"] == "running"
        assert row["holder"].startswith(f"process {holder.pid} on ")
        with (
            pytest.raises(RootLocked, match=rf"quickstart \(process {holder.pid} on "),
            root_lock(data, exclusive=True),
        ):
            pass
    finally:
        holder.kill()
        holder.wait(30)
    (row,) = map(json.loads, tempo("runs", "--format", "json", "--data-root", data)[1].splitlines())
    assert (row["state"], row["holder"]) == ("killed", None)


def test_runs_show_state_last_stage_age_and_size(tempo: Tempo, data):
    (row,) = map(json.loads, tempo("runs", "--format", "json", "--data-root", data)[1].splitlines())
    assert (row["run"], row["state"], row["last_stage"]) == ("quickstart", "completed", "evaluation 4")
    files = [file for file in (data / "artifacts").rglob("*") if file.is_file() and file.name != "manifest.json"]
    assert row["size"] == f"{sum(file.stat().st_size for file in files) / 1e6:,.1f} MB"
    assert re.fullmatch(r"\d+ (s|min)( \d+ s)? ago", row["last_event"])


def test_two_different_runs_in_one_data_root_at_once_end_as_if_alone(tmp_path, stored, learning):
    data = tmp_path / "data"
    code = (
        "import sys; from pathlib import Path; from flows.loop import train_experiment; "
        "from tasks.experiment import load_experiment; "
        "train_experiment(load_experiment('quickstart', sys.argv[2:]), Path(sys.argv[1]), uses_prefect=False)"
    )
    commands = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(data), *learning, f"run={run}", f"estimator={estimator}"],
            stderr=subprocess.DEVNULL,
        )
        for run, estimator in (("one", "tempo"), ("two", "grpo"))
    ]
    assert [command.wait(240) for command in commands] == [0, 0]
    policies = "SELECT step, policy FROM policies WHERE run = '{}' ORDER BY ALL"
    alone = open_catalog(stored).execute(policies.format("quickstart")).fetchall()
    assert open_catalog(data).execute(policies.format("one")).fetchall() == alone
    assert len(open_catalog(data).execute(policies.format("two")).fetchall()) == len(alone)
