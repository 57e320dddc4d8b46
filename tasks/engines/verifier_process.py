"""A process that compares answers by algebra, as the pool sees it: started, asked, its child replaced, ended."""

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import deque
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
LOG_LINES = 15
"""Lines of a process's log that an error shows."""
START_SECONDS = 120.0
"""Limit for importing math-verify: under a second on an idle machine."""
REACT_SECONDS = 5.0
"""Limit for ending a child and for forking another: milliseconds, unless the process is stopped."""


class ProcessLost(RuntimeError):
    """The process ended, or does not react: start another one."""

    def __init__(self, what: str, *, was_killed: bool) -> None:
        super().__init__(what)
        self.was_killed = was_killed
        """By a signal."""


class WorkerFailed(RuntimeError):
    """No process that compares can be started."""


class VerifierProcess:
    """One process of tasks/engines/verifier_worker.py, used by one thread; `hang_up` may be called by any."""

    def __init__(self, memory_mb: int) -> None:
        """Errors: ProcessLost where it does not come up; the message holds the end of its log."""
        self.child = 0
        """Number of the child that runs; 0: none does."""
        self.child_pid = 0
        self._num_children, self._unread = 0, b""
        self._messages: deque[dict[str, Any]] = deque()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the streams)
        control, theirs = socket.socketpair()
        pairs, self._pairs = os.pipe()
        self._answers, answers = os.pipe()
        os.set_blocking(self._pairs, False)
        self._control = control
        passed = (theirs.fileno(), pairs, answers)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "tasks.engines.verifier_worker", *map(str, passed), str(memory_mb)],
                env=_environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._log,
                pass_fds=passed,
                start_new_session=True,  # Ctrl-C is for the run, which then ends its processes
            )
        except BaseException:
            self._close_streams()
            raise
        finally:
            theirs.close()
            os.close(pairs)
            os.close(answers)
        try:
            self._expect("ready", START_SECONDS)
        except BaseException:
            self.end()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    def fork(self) -> None:
        """Start a child that compares."""
        self._num_children += 1
        self._order(f"fork {self._num_children}")
        started = self._expect("started", REACT_SECONDS)
        self.child, self.child_pid = started["child"], started["pid"]

    def kill_child(self) -> None:
        """End the child; what it has said and was not read is dropped."""
        self._order("kill")
        self._expect("ended", REACT_SECONDS)
        self.child = 0

    def send(self, number: int, answer: str, gold: str, deadline: float) -> None:
        """Ask the child to compare; what it does not take before the deadline is not sent."""
        pair = {"child": self.child, "id": number, "answer": answer, "gold": gold}
        rest = memoryview(b"\n" + json.dumps(pair).encode() + b"\n")  # what an earlier child left may be half a line
        while rest:
            try:
                rest = rest[os.write(self._pairs, rest) :]
            except BlockingIOError:
                if not _ready(self._pairs, select.POLLOUT, deadline):
                    return
            except OSError:
                raise self._lost("hung up") from None

    def read(self, deadline: float) -> dict[str, Any] | None:
        """The next message of the running child or about it; None where none came before the deadline.

        `ended` with an exit code, or less than 0 a signal, is the last one of a child.
        """
        while True:
            while self._messages:
                message = self._messages.popleft()
                if message.get("event") == "ended":
                    self.child = 0
                return message
            if not _ready(self._answers, select.POLLIN, deadline):
                return None
            received = os.read(self._answers, 65536)
            if not received:
                raise self._lost("hung up")
            *lines, self._unread = (self._unread + received).split(b"\n")
            for line in filter(None, lines):
                try:
                    self._messages.append(json.loads(line))
                except ValueError:
                    continue  # a child was killed while it wrote

    def hang_up(self) -> None:
        """Tell the process to end, which wakes whoever reads from it."""
        with contextlib.suppress(OSError):  # it has ended, or was ended
            self._control.shutdown(socket.SHUT_RDWR)

    def end(self) -> None:
        """End the process and its child; also when they are dead already."""
        self.hang_up()
        try:
            self._process.wait(1.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._close_streams()
        self.child = 0

    def _order(self, command: str) -> None:
        try:
            self._control.sendall(command.encode() + b"\n")
        except OSError:
            raise self._lost("hung up") from None

    def _expect(self, event: str, seconds: float) -> dict[str, Any]:
        """Read up to this event; everything before it is dropped."""
        deadline = time.monotonic() + seconds
        while message := self.read(deadline):
            if message.get("event") == event:
                return message
        raise self._lost(f"did not react within {seconds:g} s ({event!r} did not come)")

    def _lost(self, what: str) -> ProcessLost:
        code = 0
        try:
            code = self._process.wait(0.5)
            what = f"was ended by signal {ending(code)}" if code < 0 else f"ended with exit code {code}"
        except subprocess.TimeoutExpired:
            pass
        self._log.seek(0)
        lines = self._log.read()[-20_000:].decode(errors="replace").splitlines()[-LOG_LINES:]
        shown = "; the end of its log:\n" + "\n".join(f"    {line}" for line in lines) if lines else ""
        return ProcessLost(f"the process {self.pid} that compares answers {what}{shown}", was_killed=code < 0)

    def _close_streams(self) -> None:
        self._control.close()
        os.close(self._pairs)
        os.close(self._answers)
        self._log.close()


def ending(code: int) -> str:
    """What ended a process, by its exit code or (less than 0) signal."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def _ready(fd: int, event: int, deadline: float) -> bool:
    """Wait until something can be read or written (or the other side is gone); False at the deadline."""
    poll = select.poll()
    poll.register(fd, event)
    return bool(poll.poll(max(0.0, deadline - time.monotonic()) * 1000))


def _environment() -> dict[str, str]:
    """This process's environment; the hash seed is fixed, since sympy's results may hang on the order of a set."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    set_here = {"PYTHONPATH": os.pathsep.join(paths), "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"}
    return os.environ | set_here
