"""Processes to be killed: a program that imports everything once, and forks a training for each line it reads.

    python victims.py DATA_ROOT TRACE SETTING...        then lines on standard input: EVENTS SECONDS

Each line starts the run in a fork, which kills itself with SIGKILL before its EVENTS-th change to a file below the data
root (0: never; negative: after so many stages), or SECONDS after it began (0: never). The answer is one line: its wait
status. TRACE holds, one line each, what the run was doing.
"""

import io
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from flows.loop import train_experiment
from flows.progress import RunListener, watching
from tasks.engines import policy, trainer, transformers_sampler  # noqa: F401 (imported before the fork: seconds)
from tasks.experiment import load_experiment

CHANGES = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate"}


class Tracer(RunListener):
    """Writes which stage has begun, and that it has ended."""

    def __init__(self, experiment: Any, trace: int) -> None:
        super().__init__(experiment, Console(file=io.StringIO()))
        self.trace = trace
        self.stages_left = 0

    def write(self, text: str) -> None:
        os.write(self.trace, f"{text}\n".encode())

    def stage_started(self, place: Any, stage: str) -> None:
        self.write(stage)

    def stage_finished(self, place: Any, stage: str, *rest: Any) -> None:
        super().stage_finished(place, stage, *rest)
        self.write("between stages")
        self.stages_left -= 1
        if self.stages_left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def kill_before_change(number: int, root: str, write: Callable[[str], None]) -> None:
    """SIGKILL to this process right before its `number`-th change to a file below `root`."""
    left = [number]

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, mode, flags = arguments
            is_change = bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)) if mode is None else "r" not in str(mode)
        else:
            path, is_change = arguments[0] if arguments else "", event in CHANGES
        if is_change and isinstance(path, str | os.PathLike) and str(path).startswith(root):
            left[0] -= 1
            if left[0] == 0:
                write(f"killed before {event} of {Path(path).name}")
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def train(data: Path, trace: Path, settings: list[str], events: int, seconds: float) -> None:
    experiment = load_experiment("quickstart", settings)
    tracer = Tracer(experiment, os.open(trace, os.O_WRONLY | os.O_CREAT | os.O_TRUNC))
    tracer.stages_left = max(-events, 0)
    if events > 0:
        kill_before_change(events, str(data), tracer.write)
    if seconds:
        signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        signal.setitimer(signal.ITIMER_REAL, seconds)
    with watching(tracer):
        train_experiment(experiment, data, uses_prefect=False)


def main() -> None:
    trace, settings = Path(sys.argv[1]), sys.argv[2:]
    for line in sys.stdin:
        data, events, seconds = line.split("\t")
        child = os.fork()
        if not child:
            try:
                train(Path(data), trace, settings, int(events), float(seconds))
            except BaseException as error:
                print(repr(error), file=sys.stderr, flush=True)
                os._exit(1)
            os._exit(0)
        print(os.waitpid(child, 0)[1], flush=True)


if __name__ == "__main__":
    main()
