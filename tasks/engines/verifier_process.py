"""The parent's side of a verifier worker: start it, send pairs, read what it says, end it."""

import contextlib
import itertools
import json
import os
import select
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

START_SECONDS = 120
"""A cold import on a busy machine takes some; a process that says nothing for so long is ended."""
PROJECT = Path(__file__).resolve().parents[2]


class WorkerFailed(RuntimeError):
    """A worker's process could not be started."""

    was_killed = False
    """Whether a signal ended it: it may start when it is tried again."""


class VerifierProcess:
    """One nurse with its child, started when something is sent and started again after it has ended."""

    def __init__(self, memory_mb: int) -> None:
        self.memory_mb = memory_mb
        self._ids = itertools.count()
        self._process: subprocess.Popen[bytes] | None = None
        self._requests = self._answers = -1
        self._unread, self._generation = b"", 0
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as this)

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def next_id(self) -> int:
        return next(self._ids)

    def send(self, pairs: Mapping[int, tuple[str, str]]) -> None:
        """Hand over pairs (answer, gold) by id. Raises WorkerFailed when no process can be started."""
        if not pairs:
            return
        if self._process is None:
            self._start()
        lines = [json.dumps({"id": i, "answer": answer, "gold": gold}) for i, (answer, gold) in pairs.items()]
        with contextlib.suppress(BrokenPipeError):  # it has died: `facts` says so
            os.write(self._requests, "".join(f"{line}\n" for line in lines).encode())

    def facts(self, timeout: float) -> Iterator[dict[str, Any]]:
        """What the worker has said, once it says something or `timeout` seconds have passed.

        {"id", ...} answers a pair; {"code", "reason"} is the end of the child, or of the process ("code" only).
        """
        if self._process is None or not select.select([self._answers], [], [], timeout)[0]:
            return
        read = os.read(self._answers, 2**16)
        if not read:
            yield self.end()
            return
        *lines, self._unread = (self._unread + read).split(b"\n")
        for line in lines:
            fact = json.loads(line)
            if "started" in fact:
                self._generation = fact["started"]
            else:
                yield fact

    def kill_child(self) -> None:
        """Ask the nurse to kill the child that works now; a newer one is left alone."""
        assert self._process is not None
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError, ValueError):
            self._process.stdin.write(f"kill {self._generation}\n".encode())
            self._process.stdin.flush()

    def end(self) -> dict[str, Any]:
        """End the process and its child; says with which code."""
        process, self._process = self._process, None
        if process is None:
            return {"code": None}
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()  # the nurse kills its child and leaves
        try:
            code = process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        os.close(self._requests)
        os.close(self._answers)
        self._unread = b""
        return {"code": code or -1}  # a nurse never ends by itself

    def interrupt(self) -> None:
        """Make nurse and child end, from any thread: whoever waits for `facts` is told."""
        process = self._process
        if process is not None and process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()

    def close(self) -> None:
        """End the process for good."""
        self.end()
        self._log.close()

    def _start(self) -> None:
        """Start a nurse and wait for its first child. Raises WorkerFailed with the end of its log."""
        theirs, self._requests = os.pipe()
        self._answers, answers = os.pipe()
        single = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        path = os.pathsep.join(filter(None, [str(PROJECT), os.environ.get("PYTHONPATH")]))
        command = ["-m", "tasks.engines.verifier_worker", str(theirs), str(answers), str(self.memory_mb)]
        self._process = subprocess.Popen(
            [sys.executable, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=self._log,
            pass_fds=(theirs, answers),
            env=os.environ | single | {"PYTHONPATH": path},
            start_new_session=True,  # a Ctrl-C is the run's, which then closes the pool
        )
        os.close(theirs)
        os.close(answers)
        ready = select.select([self._answers], [], [], START_SECONDS)[0]
        read = os.read(self._answers, 2**16) if ready else b""
        if not read:
            ended = self.end()
            error = WorkerFailed(
                f"the process that compares answers with math-verify did not start (code {ended['code']}): expected "
                f"math-verify in {sys.executable}; its last words: {self._last_words()}. Install what pyproject.toml "
                "lists (make setup), or choose a verifier that needs no algebra"
            )
            error.was_killed = ended["code"] < 0
            raise error
        self._generation = json.loads(read.split(b"\n")[0])["started"]

    def _last_words(self) -> str:
        """The end of what it wrote to standard error; of a traceback the last line."""
        self._log.seek(max(self._log.seek(0, os.SEEK_END) - 2000, 0))
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "none"
