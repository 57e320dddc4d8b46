"""What artifacts and Prefect cost: per step beside the same computation with neither, and on a run of many steps.

    python tests/benchmarks/orchestration.py [--steps 12] [--long 1000] [--folder DIR]

Per step: the quickstart's own step (48 prompts x 8 completions, 4 updates), the same seeds and results in all columns.
`bare` keeps tables, weights and optimiser in memory: no Parquet, no digest, no fsync, no log, no contract, no task.
Columns alternate A B B A in processes of their own. The goal: less than 5 % of a step, and less than 300 ms.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]
TEMPO = Path(sys.executable).with_name("tempo")
COLUMNS = ("bare", "artifacts", "artifacts + prefect")
WARM = ["warm_start.updates=120", "evaluation.num_samples=0", "evaluation.greedy=false", "benchmarks=[]"]
SKIPPED = 2
"""First steps of a process that are not counted: they load code and warm caches."""


def step_seconds(column: str, steps: int, data: Path) -> list[float]:
    """Wall seconds of each step in this process."""
    from rich.console import Console

    from flows.loop import train_experiment
    from flows.progress import RunListener, watching
    from flows.server import prefect_server, without_server
    from tasks.experiment import load_experiment

    experiment = load_experiment("quickstart", [*WARM, f"steps={steps}"])
    began: list[float] = []

    class Clock(RunListener):
        def stage_started(self, place: Any, stage: str) -> None:
            if stage == "generation":
                began.append(time.perf_counter())

    clock = Clock(experiment, Console(file=open(os.devnull, "w")))  # noqa: SIM115 (for the life of the process)
    with prefect_server(data) if column == COLUMNS[2] else without_server(data), watching(clock):
        if column == "bare":
            from bare import train_bare

            train_bare(experiment, clock)
        elif column == COLUMNS[1]:
            train_experiment(experiment, data, uses_prefect=False)
        else:
            from prefect import flow

            flow(
                lambda: train_experiment(experiment, data, uses_prefect=True), name="benchmark", persist_result=False
            )()
        began.append(time.perf_counter())
    return [after - before for before, after in pairwise(began)][SKIPPED:]


def measure_steps(steps: int, folder: Path) -> None:
    seconds: dict[str, list[float]] = {column: [] for column in COLUMNS}
    for turn, column in enumerate([*COLUMNS, *reversed(COLUMNS)]):
        command = [sys.executable, __file__, "--column", column, "--steps", str(steps), "--folder", f"{folder}/{turn}"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        seconds[column] += json.loads(done.stdout.splitlines()[-1])
    medians = {column: statistics.median(values) for column, values in seconds.items()}
    print(f"one quickstart step, median of {2 * (steps - SKIPPED)} (ms):")
    for column, median in medians.items():
        over = median - medians["bare"]
        print(f"  {column:<22} {median * 1e3:7.0f}   over bare {over * 1e3:6.0f} ms = {over / medians['bare']:6.1%}")


def measure_long(steps: int, folder: Path) -> None:
    from long_run import TEMPLATE, make_long_run, without_fsync

    data = folder / "long"
    with without_fsync():
        make_long_run(data, steps)
    settings = [a for s in [*TEMPLATE, f"steps={steps}", "evaluate_every=100"] for a in ("--set", s)]
    log = (data / "log.jsonl").stat().st_size / 1e6
    count = sum(1 for _ in (data / "artifacts").glob("*/*"))
    print(f"a run of {steps} steps: {count} artifacts, a log of {log:.1f} MB (seconds, whole commands):")
    commands = {
        "tempo plan": ["plan", "quickstart", *settings],
        "tempo runs": ["runs"],
        "tempo sql": ["sql", "SELECT count(*) FROM updates"],
        "train, cached, no server": ["train", "quickstart", "--no-server", *settings],
        "train, cached, with Prefect": ["train", "quickstart", *settings],
    }
    for name, command in commands.items():
        started = time.perf_counter()
        done = subprocess.run([str(TEMPO), *command, "--data-root", str(data)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        print(f"  {name:<28} {time.perf_counter() - started:7.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--long", type=int, default=1000)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--column", choices=COLUMNS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.column:
        print(json.dumps(step_seconds(options.column, options.steps, options.folder)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        if options.steps > SKIPPED:
            measure_steps(options.steps, folder)
        if options.long:
            measure_long(options.long, folder)


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # as the command does: prefect's threads outlive every flow
