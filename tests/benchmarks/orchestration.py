"""What artifacts and Prefect cost: per step beside the same computation with neither, and on a run of many steps.

    python tests/benchmarks/orchestration.py [--steps 27] [--long 1000] [--artifacts 10000] [--folder DIR]

Per step: the quickstart's own step (48 prompts x 8 completions, 4 updates), the same seeds and results in all columns.
`bare` keeps tables, weights and optimiser in memory: no Parquet, no digest, no fsync, no log, no contract, no task.
Each column is a process of its own that waits for its turn; the goal: less than 5 % of a step, and less than 300 ms.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]
TEMPO = Path(sys.executable).with_name("tempo")
COLUMNS = ("bare", "artifacts", "artifacts + prefect")
WARM = ["warm_start.updates=120", "evaluation.num_samples=0", "evaluation.greedy=false", "benchmarks=[]"]
TURN = 3
"""Steps of a column in a row: long enough that its server's afterwork falls into its own time."""


def run_column(column: str, steps: int, data: Path) -> None:
    """Train in this process, `TURN` steps whenever a line comes in; each turn's seconds per step go out as a line."""
    from rich.console import Console

    from flows.loop import train_experiment
    from flows.progress import RunListener, watching
    from flows.server import prefect_server, without_server
    from tasks.experiment import load_experiment

    experiment = load_experiment("quickstart", [*WARM, f"steps={steps}"])

    class Baton(RunListener):
        number, began = 0, 0.0

        def stage_started(self, place: Any, stage: str) -> None:
            if stage == "generation":
                if self.number % TURN == 0:
                    self.hand_over()
                self.number += 1

        def hand_over(self) -> None:
            print((time.perf_counter() - self.began) / TURN, flush=True)
            sys.stdin.readline()
            self.began = time.perf_counter()

    baton = Baton(experiment, Console(file=open(os.devnull, "w")))  # noqa: SIM115 (for the life of the process)
    with prefect_server(data) if column == COLUMNS[2] else without_server(data), watching(baton):
        if column == "bare":
            from bare import train_bare

            train_bare(experiment, baton, data)
        elif column == COLUMNS[1]:
            train_experiment(experiment, data, uses_prefect=False)
        else:
            from prefect import flow

            flow(
                lambda: train_experiment(experiment, data, uses_prefect=True), name="benchmark", persist_result=False
            )()
        baton.hand_over()


def measure_steps(steps: int, folder: Path) -> None:
    """Turns of TURN steps go round all columns, A B C C B A: each is compared with the bare one beside it."""
    from flows.loop import train_experiment
    from tasks.experiment import load_experiment

    prepared = folder / "prepared"  # policy, prompts and warm start: once, for all columns
    train_experiment(load_experiment("quickstart", [*WARM, "steps=0"]), prepared, uses_prefect=False)
    running = {}
    for column in COLUMNS:
        data = shutil.copytree(prepared, folder / column)
        command = [sys.executable, __file__, "--column", column, "--steps", str(steps), "--folder", str(data)]
        running[column] = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        running[column].stdout.readline()  # it has prepared itself and waits
    seconds: dict[str, list[float]] = {column: [] for column in COLUMNS}
    for turn in range(steps // TURN):
        for column in COLUMNS if turn % 2 else reversed(COLUMNS):
            running[column].stdin.write("go\n")
            running[column].stdin.flush()
            seconds[column].append(float(running[column].stdout.readline()))
    for process in running.values():
        process.communicate("end\n")
    bare = seconds["bare"][1:]  # the first turn loads code and warms caches
    print(f"one quickstart step, medians over {len(bare)} turns of {TURN} steps (ms):")
    for column, values in seconds.items():
        over = statistics.median(value - beside for value, beside in zip(values[1:], bare, strict=True))
        share = over / statistics.median(bare)
        median = statistics.median(values[1:])
        print(f"  {column:<22} {median * 1e3:7.0f}   over bare {over * 1e3:6.0f} ms = {share:6.1%}")


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


def measure_catalogue(steps: int, folder: Path) -> None:
    """Opening the catalogue of many artifacts, in a process of its own that has loaded the libraries."""
    from long_run import make_long_run, without_fsync

    data = folder / "many"
    with without_fsync():
        make_long_run(data, steps)
    count = sum(1 for _ in (data / "artifacts").glob("*/*"))
    code = (
        "import sys, time, duckdb, pyarrow, storage.schema; from pathlib import Path; "
        "from storage.catalog import open_catalog\n"
        "for _ in range(3):\n"
        "    began = time.perf_counter(); catalog = open_catalog(Path(sys.argv[1])); opened = time.perf_counter()\n"
        "    catalog.execute('SELECT sum(mean) FROM scores').fetchall()\n"
        "    print(f'  open {opened - began:5.2f}   first query {time.perf_counter() - opened:5.2f}')"
    )
    print(f"the catalogue over {count} artifacts (seconds):", flush=True)
    subprocess.run([sys.executable, "-c", code, str(data)], cwd=ROOT, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=27)
    parser.add_argument("--long", type=int, default=1000)
    parser.add_argument("--artifacts", type=int, default=10_000)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--column", choices=COLUMNS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.column:
        run_column(options.column, options.steps, options.folder)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        if options.steps >= 2 * TURN:
            measure_steps(options.steps, folder)
        if options.long:
            measure_long(options.long, folder)
        if options.artifacts:
            measure_catalogue(options.artifacts * 1000 // 4071, folder)  # a run of 1,000 steps has 4,071 artifacts


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # as the command does: prefect's threads outlive every flow
