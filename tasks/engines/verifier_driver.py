"""A thread that has pairs compared by one process, and finds out which pair broke it."""

import sys
import threading
import time
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field
from signal import SIGHUP, SIGINT, SIGKILL, SIGQUIT, SIGTERM
from typing import TYPE_CHECKING, Any

from tasks.core.verdict import Comparison, Status
from tasks.engines.verifier_process import ProcessLost, VerifierProcess, WorkerFailed, ending

if TYPE_CHECKING:
    from tasks.engines.verifier_pool import VerifierPool

WINDOW = 8
"""Pairs that a process has before it: the next one never waits for this thread to be scheduled."""
WINDOW_CHARACTERS = 4000
"""Most characters in a window of two pairs or more: any pipe takes as many at once (JSON makes 12 bytes of one at
worst), so that sending never waits for a pair that hangs. A longer pair is sent when nothing else is on the way."""
OWN_ATTEMPTS = 2
"""Attempts at a pair that takes too long or too much memory, or on which the comparison fails."""
OUTSIDE_ATTEMPTS = 20
"""Attempts at a pair whose process is ended by somebody else, each time. It is likely not the pair's fault; but the
kernel that runs out of memory ends processes in the same way."""
OUTSIDE_SIGNALS = (SIGKILL, SIGTERM, SIGINT, SIGHUP, SIGQUIT)
START_ATTEMPTS, KILLED_STARTS = 2, 20
"""Attempts at starting a process that ends by itself, and how often it may be killed while it starts."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of one comparison."""

    is_equal: bool | None
    """None: the answer cannot be read, or there is a failure."""
    failure: Status | None = None
    """timeout, out_of_memory or crashed."""
    message: str = ""
    """How it failed."""
    num_attempts: int = 1
    seconds: float = 0.0
    """Time of all attempts; 0 where the pair was compared before."""


@dataclass(eq=False)
class Job:
    """One pair on its way to an outcome."""

    pair: Comparison
    future: "Future[Outcome]" = field(default_factory=Future)
    number: int = 0
    """Of the attempt: an answer to an earlier one is not taken for it."""
    num_own_failures: int = 0
    num_outside_failures: int = 0
    seconds: float = 0.0

    @property
    def num_characters(self) -> int:
        return len(self.pair.answer) + len(self.pair.gold)

    @property
    def num_failures(self) -> int:
        return self.num_own_failures + self.num_outside_failures


class Driver(threading.Thread):
    """Takes jobs from the pool until it is closed.

    Answers come in order: the first pair in the window is the one that is being compared, and its time began when the
    answer before it came. If the process breaks, only that pair has failed; the others go back to the pool, unharmed. A
    pair that has failed is tried again with nothing else in the window.
    """

    def __init__(self, pool: "VerifierPool") -> None:
        super().__init__(name="verifier", daemon=True)
        self.process: VerifierProcess | None = None
        self._pool = pool
        self._window: deque[Job] = deque()
        self._alone: deque[Job] = deque()
        self._is_alone = False
        self._head_started = 0.0
        self._number = 0

    def run(self) -> None:
        try:
            while self._fill():
                self._hear()
        except WorkerFailed as error:
            self._pool.fail(error)
        except BaseException as error:  # a bug of ours must not leave anybody waiting for ever
            self._pool.fail(RuntimeError(f"the pool of verifiers failed: {type(error).__name__}: {error}"))
            raise
        finally:
            if self.process is not None:
                self.process.end()

    def _fill(self) -> bool:
        """Send what may be sent; False when the pool is closed."""
        jobs: list[Job] = []
        if not self._window:
            self._is_alone = bool(self._alone)
            jobs = [self._alone.popleft()] if self._alone else self._pool.take(WINDOW, WINDOW_CHARACTERS, wait=True)
            self._head_started = time.monotonic()
        elif not self._is_alone and not self._alone:
            room = WINDOW_CHARACTERS - sum(job.num_characters for job in self._window)
            jobs = self._pool.take(WINDOW - len(self._window), room, wait=False)
        self._window.extend(jobs)
        try:
            for job in jobs:
                self._send(job)
        except ProcessLost as error:
            self._lose(str(error))
        return not self._pool.is_closed

    def _send(self, job: Job) -> None:
        if self.process is None:
            self.process = self._start_process()
        if not self.process.child:
            self.process.fork()
            self._head_started = time.monotonic()
        self._number += 1
        job.number = self._number
        # A question that is not taken before the head's time is up is the head's own: see WINDOW_CHARACTERS.
        self.process.send(job.number, job.pair.answer, job.pair.gold, self._deadline)

    @property
    def _deadline(self) -> float:
        return self._head_started + self._pool.timeout_seconds

    def _hear(self) -> None:
        """One message, or the head's time is up, or the process is gone."""
        if not self._window:
            return
        assert self.process is not None
        try:
            message = self.process.read(self._deadline)
            if message is None:
                self.process.kill_child()
                self._fail_head(Status.TIMEOUT, f"no result within {self._pool.timeout_seconds:g} s")
                self._give_back()
            elif message.get("event") == "ended":
                self._child_ended(message["code"])
            elif message.get("id") == self._window[0].number:
                self._head_answered(message)
        except ProcessLost as error:
            self._lose(str(error))

    def _head_answered(self, message: dict[str, Any]) -> None:
        failure = message.get("failure")
        if failure:
            self._fail_head(Status(failure), message["message"], seconds=message["seconds"])
        else:
            job = self._window.popleft()
            job.seconds += message["seconds"]
            outcome = Outcome(is_equal=message["is_equal"], num_attempts=job.num_failures + 1, seconds=job.seconds)
            self._pool.settle(job, outcome)
        self._head_started = time.monotonic()

    def _child_ended(self, code: int) -> None:
        """It was replaced as planned (0), ran out of memory (2), or died: then on account of the head, or of others."""
        if code == 2:
            self._fail_head(Status.OUT_OF_MEMORY, "the process ran out of memory")
        elif code:
            self._fail_head(
                Status.CRASHED, f"the process was ended by {ending(code)}", is_outside=-code in OUTSIDE_SIGNALS
            )
        self._give_back()

    def _lose(self, what: str) -> None:
        """The whole process is gone, or does not react."""
        if self.process is not None:
            self.process.end()
            self.process = None
        if self._window and not self._pool.is_closed:
            self._fail_head(Status.CRASHED, what, is_outside=True)
        self._give_back()

    def _give_back(self) -> None:
        self._pool.give_back(self._window)
        self._window.clear()

    def _fail_head(
        self, failure: Status, message: str, *, seconds: float | None = None, is_outside: bool = False
    ) -> None:
        job = self._window.popleft()
        job.seconds += time.monotonic() - self._head_started if seconds is None else seconds
        job.num_outside_failures += is_outside
        job.num_own_failures += not is_outside
        if job.num_own_failures < OWN_ATTEMPTS and job.num_outside_failures < OUTSIDE_ATTEMPTS:
            self._alone.append(job)
            return
        outcome = Outcome(
            is_equal=None, failure=failure, message=message, num_attempts=job.num_failures, seconds=job.seconds
        )
        self._pool.settle(job, outcome)

    def _start_process(self) -> VerifierProcess:
        """Raises WorkerFailed where none comes up."""
        num_killed = 0
        for attempt in range(START_ATTEMPTS + KILLED_STARTS):
            try:
                return VerifierProcess(self._pool.memory_mb)
            except ProcessLost as error:
                num_killed += error.was_killed
                if attempt - num_killed >= START_ATTEMPTS - 1 or num_killed > KILLED_STARTS or self._pool.is_closed:
                    raise WorkerFailed(
                        f"answers cannot be compared by algebra: the process that runs math-verify did not start. "
                        f"{error}\nExpected math-verify in {sys.executable}: install what pyproject.toml lists (make "
                        "setup), or choose a verifier that compares without algebra"
                    ) from None
        raise AssertionError("the last attempt returns or raises")
