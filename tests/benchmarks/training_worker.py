"""What every contender of training.py shares: one process a contender, told what to do line by line; its meters.

A worker prints "ready", then answers each line of its standard input with one line of JSON:

    first    one update; writes its gradient (and what else the contender can show) to the work folder
    memory   one update; {"peak_bytes": most resident memory during the update - resident memory before it}
    time     one update; {"wall_seconds", "cpu_seconds"}
    exit     ends the process

Before `memory`, glibc gives freed pages back (malloc_trim) and the kernel's high-water mark is reset
(/proc/self/clear_refs): the figure is what the update adds to weights, gradients and moments, which are there already.
"""

import contextlib
import ctypes
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))


class Link:
    """The line to the coordinator. Whatever else the process prints goes to standard error."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)
        self.command = ""

    def wait(self) -> str:
        self.command = sys.stdin.readline().strip() or "exit"
        return self.command

    def say(self, answer: dict[str, Any]) -> None:
        self._out.write(json.dumps(answer) + "\n")


class Meter:
    """Seconds and resident memory between `start` and `stop`."""

    def start(self, with_memory: bool) -> None:
        self._baseline = _begin_memory() if with_memory else None
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def stop(self) -> dict[str, float]:
        figures: dict[str, float] = {
            "wall_seconds": time.perf_counter() - self._wall,
            "cpu_seconds": time.process_time() - self._cpu,
        }
        if self._baseline is not None:
            figures["peak_bytes"] = _status_bytes("VmHWM") - self._baseline
        return figures


def _begin_memory() -> int:
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return _status_bytes("VmRSS")


def _status_bytes(name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def serve(update: Callable[[], Any], save: Callable[[Any], dict[str, Any]]) -> None:
    """Answer commands with calls of `update`; `save` writes what `first` shows and returns what to say of it."""
    link, meter = Link(), Meter()
    link.say({"ready": True})
    while (command := link.wait()) != "exit":
        meter.start(with_memory=command == "memory")
        result = update()
        figures = meter.stop()
        link.say(figures | (save(result) if command == "first" else {}))


def one_thread() -> None:
    """One thread and the product's settings of malloc and of denormal numbers, the same for every contender."""
    import torch

    from tasks.engines.policy import configure_cpu

    configure_cpu(1, 0)
    torch.set_num_interop_threads(1)


def save_gradient(model: Any, path: Path) -> None:
    """The gradient as it stands, by parameter name."""
    from safetensors.torch import save_file

    save_file({name: p.grad.contiguous() for name, p in model.named_parameters() if p.grad is not None}, path)


@contextlib.contextmanager
def workers(commands: dict[str, list[str]], folder: Path) -> Iterator[dict[str, "Contender"]]:
    """Start every contender, wait until all are ready, end them in the end."""
    contenders = {name: Contender(name, command, folder) for name, command in commands.items()}
    try:
        for contender in contenders.values():
            contender.answer()
        yield contenders
    finally:
        for contender in contenders.values():
            contender.end()


class Contender:
    """A worker process, from the coordinator's side."""

    def __init__(self, name: str, command: list[str], folder: Path) -> None:
        self.name, self._log = name, folder / f"{name}.log"
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=_environment()
            )

    def ask(self, command: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        return self.answer()

    def answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"{self.name} ended:\n{self._log.read_text()[-3000:]}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def end(self) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _environment() -> dict[str, str]:
    """One thread in every library, and no connection."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return os.environ | threads | {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"}
