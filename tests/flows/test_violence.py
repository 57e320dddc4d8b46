"""Violence: killed at random instants, its newest file torn, its disk filled, a run ends as if nothing had been."""

import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flows.loop import train_experiment
from flows.progress import RunListener, watching
from storage.catalog import VIEWS, open_catalog
from storage.schema import TABLES
from tasks.experiment import load_experiment
from tasks.stage import DiskFull, Place

ROOT = Path(__file__).resolve().parents[2]
CONTENTS = """
    SELECT stage, step, purpose, label, key, outputs FROM stage_runs WHERE outcome IN ('ran', 'cached')
    QUALIFY row_number() OVER (PARTITION BY stage, step, purpose, label ORDER BY line DESC) = 1"""
"""Key and content digest of every part of every stage: weights, optimiser states, tables."""


def all_rows(data: Path) -> dict[str, list[tuple[Any, ...]]]:
    """Every row of every table and view of a run, without measured seconds; and what every stage's contents are."""
    catalog = open_catalog(data)
    rows = {"contents": catalog.execute(f"SELECT * FROM ({CONTENTS}) ORDER BY ALL").fetchall()}
    for name in (*TABLES, *VIEWS):
        columns = TABLES[name].columns if name in TABLES else ()
        without = ", ".join(c.name for c in columns if c.is_measurement and c.name != "checkpoint")
        kept = f"* EXCLUDE ({without})" if without else "*"
        rows[name] = catalog.execute(f"SELECT {kept} FROM {name} ORDER BY ALL").fetchall()
        if name in VIEWS:  # DuckDB adds up in the order in which its threads come: the last digit differs at times
            rows[name] = [tuple(round(v, 12) if isinstance(v, float) else v for v in row) for row in rows[name]]
    return rows


class Victims:
    """The program victims.py: each `start` is a run in a process of its own."""

    def __init__(self, trace: Path, settings: list[str]) -> None:
        self.trace = trace
        self.program = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("victims.py")), str(trace), *settings],
            cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True,
        )  # fmt: skip

    def start(self, data: Path, events: int = 0, seconds: float = 0) -> bool:
        """Run until it ends (True) or is killed (False)."""
        assert self.program.stdin is not None
        assert self.program.stdout is not None
        print(data, events, seconds, sep="\t", file=self.program.stdin, flush=True)
        status = int(self.program.stdout.readline())
        assert status in (0, signal.SIGKILL), f"the run ended with {status}: its error is on standard error"
        return status == 0

    def killed_in(self) -> str:
        """The stage it was killed in, or 'between stages'; and whether that was on the way to a commit."""
        lines = self.trace.read_text().splitlines() or ["before the first stage"]
        last = lines.pop() if lines[-1].startswith("killed") else ""
        stage = lines[-1] if lines else "before the first stage"
        return stage + (" (commit)" if "rename" in last or "manifest" in last or "log.jsonl" in last else "")


@pytest.fixture
def victims(tmp_path: Path, learning: list[str]) -> Iterator[Victims]:
    victims = Victims(tmp_path / "trace", learning)
    yield victims
    victims.program.kill()
    victims.program.wait(30)


def tear_the_newest_file(root: Path, chance: random.Random) -> list[str]:
    """Cut the file that was written last at a random length, as a power cut may; its name, none where no file is."""
    files = [path for path in root.rglob("*") if path.is_file()]
    if not files:
        return []
    newest = max(files, key=lambda path: path.stat().st_mtime_ns)
    os.truncate(newest, chance.randrange(newest.stat().st_size + 1))
    return [newest.name]


def torture(victims: Victims, tmp_path: Path, reference: Path, num_kills: int, seed: int) -> str:
    """Kill runs at `num_kills` random instants, resuming each time; each run that ends is compared with `reference`."""
    chance, expected = random.Random(seed), all_rows(reference)
    stages: Counter[str] = Counter()
    torn: Counter[str] = Counter()
    num_runs = differences = 0
    while stages.total() < num_kills:
        data, num_runs = tmp_path / f"run{num_runs}", num_runs + 1
        is_done = False
        while not is_done and stages.total() < num_kills:
            kind = chance.choices(["in time", "before a change of a file", "between stages"], [4, 5, 1])[0]
            seconds = chance.uniform(0.05, 3) if kind == "in time" else 0
            events = {"before a change of a file": chance.randint(1, 220), "between stages": -chance.randint(1, 15)}
            is_done = victims.start(data, events.get(kind, 0), seconds)
            if not is_done:
                stages[victims.killed_in()] += 1
                if chance.random() < 0.3:
                    torn.update(tear_the_newest_file(data, chance))
        assert victims.start(data)
        found = all_rows(data)
        differences += sum(found[name] != expected[name] for name in expected)
    hit = ", ".join(f"{stage} {count}" for stage, count in sorted(stages.items()))
    return (
        f"violence: {stages.total()} kills in {num_runs} runs, {torn.total()} files torn "
        f"({', '.join(f'{name} {count}' for name, count in sorted(torn.items()))}); killed in: {hit}; "
        f"differences: {differences}"
    )


def test_runs_killed_at_six_random_instants_end_as_the_undisturbed_one(victims, tmp_path, stored, capsys):
    summary = torture(victims, tmp_path, stored, num_kills=6, seed=1)
    with capsys.disabled():
        print(f"\n{summary}")
    assert summary.endswith("differences: 0")


@pytest.mark.slow
def test_runs_killed_at_forty_random_instants_in_all_stages_end_as_the_undisturbed_one(
    victims, tmp_path, stored, capsys
):
    summary = torture(victims, tmp_path, stored, num_kills=40, seed=2)
    with capsys.disabled():
        print(f"\n{summary}")
    assert summary.endswith("differences: 0")
    for stage in ("warm_start", "generation", "training", "between stages", "(commit)"):
        assert stage in summary


class Filler(RunListener):
    """Fills the disk when a stage begins for the first time."""

    def __init__(self, experiment: Any, disk: Path, stage: str) -> None:
        from rich.console import Console

        super().__init__(experiment, Console(stderr=True))
        self.disk, self.stage = disk, stage
        self.ballast = disk / "ballast"

    def stage_started(self, place: Place, stage: str) -> None:
        if stage == self.stage:
            with self.ballast.open("wb", buffering=0) as ballast:
                try:
                    while True:
                        ballast.write(bytes(65536))
                except OSError:
                    pass


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96m", "tmpfs", disk], capture_output=True, timeout=20)
    if mounted.returncode:
        pytest.skip("a small tmpfs cannot be mounted here: " + mounted.stderr.decode().strip())
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True, timeout=20)


def test_a_disk_that_fills_up_in_any_stage_stops_the_run_there_and_space_lets_it_go_on(disk, stored, learning):
    experiment, data = load_experiment("quickstart", learning), disk / "data"
    stages = list(
        dict.fromkeys(row[0] for row in open_catalog(stored).execute("SELECT stage FROM stage_runs").fetchall())
    )
    assert {"policy", "prompts", "warm_start", "generation", "verification", "credit", "training"} < set(stages)
    for stage in stages:
        filler = Filler(experiment, disk, stage)
        with watching(filler), pytest.raises(DiskFull, match="Free some space"):
            train_experiment(experiment, data, uses_prefect=False)
        filler.ballast.unlink()
    train_experiment(experiment, data, uses_prefect=False)
    assert all_rows(data) == all_rows(stored)
