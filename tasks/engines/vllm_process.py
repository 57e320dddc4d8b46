"""A vLLM in a process of its own, as the run sees it: started, called, found dead, ended."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

LOG_LINES = 30
"""Lines of an engine's log that an error shows."""
ROOT = Path(__file__).resolve().parents[2]
CLOSE_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """What one engine is started with."""

    folder: str
    """Checkpoint that it starts from: any of the policy's shape, since weights are loaded in place."""
    dtype: str
    max_model_len: int
    tensor_parallel_size: int
    gpu_memory_utilization: float
    kv_cache_gib: int
    max_num_seqs: int
    max_num_batched_tokens: int
    enforce_eager: bool
    sleep_level: int
    threads: int
    """CPU threads; 0: as vLLM chooses."""
    devices: tuple[str, ...] = ()
    """GPUs that the process sees; (): all that this one does."""
    start_timeout_seconds: float = 900.0


class EngineDied(RuntimeError):
    """The engine's process ended, or never came up; the message holds the end of its log, `what` does not."""

    def __init__(self, what: str, log: str = "") -> None:
        super().__init__(what + log)
        self.what = what


class EngineError(RuntimeError):
    """The engine lives, and could not do what it was asked."""


class EngineProcess:
    """One engine: `call(method, ...)` runs a method of tasks/engines/vllm_worker.Worker in it."""

    def __init__(self, settings: EngineSettings, log: Path) -> None:
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        ours, theirs = socket.socketpair()
        lifeline, self._lifeline = os.pipe()
        with log.open("ab") as out, theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tasks.engines.vllm_worker", str(theirs.fileno()), str(lifeline)],
                env=_environment(settings),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                pass_fds=(theirs.fileno(), lifeline),
                cwd=ROOT,
                start_new_session=True,  # Ctrl-C is for the run, which then ends its engines
            )
        os.close(lifeline)
        self._connection = Connection(ours.detach())
        try:
            self.facts: dict[str, Any] = self.call("start", settings, timeout=settings.start_timeout_seconds)
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def call(
        self,
        method: str,
        *arguments: Any,
        progress: Callable[[int], Any] = lambda done: None,
        timeout: float | None = None,
    ) -> Any:
        """The method's result. Raises EngineDied when the process has ended, EngineError when the method failed."""
        self._hear(method, lambda: self._connection.send((method, arguments)))
        while True:
            if timeout is not None and not wait([self._connection], timeout):
                raise EngineDied(f"vLLM did not answer {method!r} within {timeout:g} s", self._log_end())
            kind, value = self._hear(method, self._connection.recv)
            if kind == "result":
                return value
            if kind == "error":
                raise EngineError(f"vLLM failed in {method!r}: {value}{self._log_end()}")
            progress(value)

    def _hear(self, method: str, talk: Callable[[], T]) -> T:
        try:
            return talk()
        except (EOFError, OSError):
            what = f"vLLM's process {self.pid} {self._ending()} during {method!r}, log: {self.log}"
            raise EngineDied(what, self._log_end()) from None

    def close(self) -> None:
        """End the process and what it started; also when it is dead already."""
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1
        try:
            self._process.wait(CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(self.pid, signal.SIGKILL)
            self._process.wait()
        self._connection.close()  # a call that another thread waits in has met the end of the stream by now

    def _ending(self) -> str:
        try:
            code = self._process.wait(CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            return "hung up"
        return (
            f"was ended by signal {-code} ({signal.Signals(-code).name})"
            if code < 0
            else f"ended with exit code {code}"
        )

    def _log_end(self) -> str:
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        shown = "\n".join(f"    {line}" for line in lines[-LOG_LINES:])
        return f"; the end of its log {self.log}:\n{shown}"


def _environment(settings: EngineSettings) -> dict[str, str]:
    """The engine's environment: this process's, and what vLLM reads."""
    set_here = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # this process is the engine: one schedule, the same each time
        "VLLM_CPU_KVCACHE_SPACE": str(settings.kv_cache_gib),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # the cores are shared with the trainer
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_DO_NOT_TRACK": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "WARNING"),
        "PYTHONUNBUFFERED": "1",
    }
    if settings.threads:
        set_here["OMP_NUM_THREADS"] = str(settings.threads)
    if settings.devices:
        set_here["CUDA_VISIBLE_DEVICES"] = ",".join(settings.devices)
    return os.environ | set_here
