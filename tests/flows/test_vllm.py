"""A run sampled by a real vLLM: one engine for all of it, every weight sync in SQL, and its death survived."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from flows.loop import train_experiment
from storage.catalog import open_catalog
from tasks.engines.sampler import Samples
from tasks.engines.vllm_fleet import EngineFleet
from tasks.experiment import load_experiment

pytestmark = pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed: make setup-vllm")

Tempo = Callable[..., tuple[int, str, str]]
VLLM = ["sampler.engine=vllm", "steps=3"]


def query(data: Path, statement: str) -> list[tuple[Any, ...]]:
    return open_catalog(data).execute(statement).fetchall()


def contents(data: Path) -> list[tuple[Any, ...]]:
    """Every stage of the run and the digests of what it made."""
    return query(
        data,
        "SELECT step, purpose, label, stage, outputs FROM stage_runs WHERE outcome = 'ran' ORDER BY ALL",
    )


def engines() -> dict[int, int]:
    """Engine processes of this machine and their parents."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if b"tasks.engines.vllm_worker" in (folder / "cmdline").read_bytes():
                found[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue  # it ended meanwhile
    return found


@pytest.fixture(scope="module")
def sampled(tmp_path_factory: pytest.TempPathFactory, learning: list[str]) -> Path:
    """The data root of a finished run."""
    data = tmp_path_factory.mktemp("vllm") / "data"
    train_experiment(load_experiment("quickstart", [*learning, *VLLM]), data, uses_prefect=False)
    return data


def test_one_engine_serves_the_run_and_every_policy_is_loaded_into_it_once(sampled: Path) -> None:
    # The warm-started policy is scored and samples step 1; that of step 1 samples step 2; those of 2 and 3 are scored.
    syncs = query(sampled, "SELECT step, purpose, label, num_starts FROM weight_syncs WHERE is_new ORDER BY ALL")
    assert syncs == [
        (0, "eval", "arithmetic sampled", 1),
        (2, "eval", "arithmetic sampled", 0),
        (2, "train", "", 0),
        (3, "eval", "arithmetic sampled", 0),
    ]
    assert os.getpid() not in engines().values()  # and it ended with the run


def test_every_generation_says_which_check_vouches_for_its_weights(sampled: Path, tempo: Tempo) -> None:
    unchecked = query(
        sampled,
        "SELECT r.policy FROM (SELECT DISTINCT run, step, purpose, label, policy FROM rollouts) r "
        "LEFT JOIN weight_syncs s USING (run, step, purpose, label, policy) "
        "WHERE s.max_difference IS NULL OR s.max_difference > 1e-4 OR s.tolerance <> 0.002",
    )
    assert unchecked == []
    statement = "SELECT step, policy, max_difference, tolerance FROM weight_syncs WHERE is_new ORDER BY step"
    code, out, _ = tempo("sql", statement, "--data-root", sampled, "--format", "csv")
    assert code == 0
    assert out.splitlines()[0] == "step,policy,max_difference,tolerance"
    assert len(out.splitlines()) == 1 + 4


def test_trainer_and_sampler_compute_the_same_probabilities(sampled: Path) -> None:
    rows = query(sampled, "SELECT ratio_min, ratio_max FROM updates WHERE phase = 'training' AND update = 0")
    assert len(rows) == 3
    for smallest, largest in rows:
        assert 0.999 < smallest <= largest < 1.001
    assert query(sampled, "SELECT DISTINCT sampler FROM rollouts") == [("vllm",)]


def test_a_run_that_is_stored_starts_no_engine(sampled: Path, learning: list[str]) -> None:
    log = sampled / "logs" / "quickstart" / "vllm-0.log"
    before = log.stat().st_mtime_ns
    line = query(sampled, "SELECT max(line) FROM stage_runs")[0][0]
    train_experiment(load_experiment("quickstart", [*learning, *VLLM]), sampled, uses_prefect=False)
    assert query(sampled, f"SELECT DISTINCT outcome FROM stage_runs WHERE line > {line}") == [("cached",)]
    assert log.stat().st_mtime_ns == before


def test_the_number_of_engines_and_threads_is_no_part_of_what_is_computed(
    sampled: Path, tempo: Tempo, learning: list[str]
) -> None:
    sizes = ["sampler.vllm.data_parallel_size=4", "sampler.vllm.tensor_parallel_size=2", "sampler.vllm.max_num_seqs=7"]
    overrides = [part for override in [*learning, *VLLM, *sizes] for part in ("--set", override)]
    code, out, _ = tempo("plan", "quickstart", *overrides, "--data-root", sampled)
    assert code == 0, out  # 3 if a stage would run


def test_an_engine_killed_in_the_middle_of_a_step_changes_nothing(
    sampled: Path,
    tmp_path: Path,
    learning: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    sample, calls = EngineFleet.sample, []

    def killed_at_the_fourth(self: EngineFleet, *arguments: Any, **options: Any) -> Samples:
        calls.append(self.engines[0].pid)
        if len(calls) == 4:
            os.kill(calls[-1], signal.SIGKILL)
        return sample(self, *arguments, **options)

    monkeypatch.setattr(EngineFleet, "sample", killed_at_the_fourth)
    data = tmp_path / "data"
    train_experiment(load_experiment("quickstart", [*learning, *VLLM]), data, uses_prefect=False)
    assert len(set(calls)) == 2  # one engine, and the one that took its place
    assert f"vLLM's process {calls[3]} was ended by signal 9 (SIGKILL) during 'sample'" in capsys.readouterr().err
    assert query(data, "SELECT sum(num_restarts) FROM generations") == [(1,)]
    restarted = (
        "SELECT is_new, num_starts FROM weight_syncs JOIN generations USING (step, purpose, label) WHERE num_restarts"
    )
    assert query(data, restarted) == [(True, 1)]  # the check of the weights in the new engine
    assert contents(data) == contents(sampled)


def test_an_engine_ends_with_the_run_however_the_run_ends(tmp_path: Path, learning: list[str]) -> None:
    command = [sys.executable, "-m", "flows.cli", "train", "quickstart", "--no-server"]
    overrides = [part for override in [*learning, *VLLM] for part in ("--set", override)]
    command += ["--data-root", str(tmp_path / "data")]
    run = subprocess.Popen([*command, *overrides], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        engine = wait_for(lambda: [pid for pid, parent in engines().items() if parent == run.pid], 120)[0]
    finally:
        run.kill()
        run.wait()
    wait_for(lambda: engine not in engines(), 20)


def wait_for(condition: Callable[[], Any], seconds: float) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.1)
    raise AssertionError(f"still waiting after {seconds} s")


def test_without_vllm_the_run_is_refused_before_any_work(
    tmp_path: Path, tempo: Tempo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.samplers.find_spec", lambda name: None)
    code, _, err = tempo("train", "quickstart", "--set", "sampler.engine=vllm", "--data-root", tmp_path / "data")
    assert code == 2
    assert "vllm, which is not installed: run `make setup-vllm`" in err
    assert not (tmp_path / "data" / "log.jsonl").exists()
