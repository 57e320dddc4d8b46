"""Comparisons by algebra in worker processes that may hang, bloat or die: every pair still gets one outcome.

    pool = VerifierPool(workers=2, timeout_seconds=5, memory_mb=1024)
    outcomes = [future.result() for future in map(pool.submit, pairs)]

Callable from any thread. Each worker has a few pairs in flight and answers them in order, so the first of them is the
one that it works on. What breaks a worker is that pair's matter: it is tried again alone, and then keeps its status;
the others go back to the queue and never knew. Processes: tasks/engines/verifier_worker.py.
"""

import atexit
import os
import threading
import time
from collections import OrderedDict, deque
from concurrent.futures import Future
from dataclasses import dataclass, field

from tasks.core.verdict import Comparison, Status
from tasks.engines.verifier_process import VerifierProcess, WorkerFailed

WINDOW = 8
"""Pairs in flight per worker: hides the way to it and back."""
MAX_WORKERS = 8
REMEMBERED = 65_536
"""Outcomes kept for pairs that come again; failures are never kept."""
ATTEMPTS = 2
"""Attempts of a pair that runs out of time or memory, or that math-verify fails on."""
KILLED_ATTEMPTS = 4
"""Attempts of a pair whose worker was killed, not by us: that says less of the pair."""
MAX_STARTS, MAX_KILLED_STARTS = 2, 20
"""Times in a row that a worker's process may fail to start, and that it may be killed while it does."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one comparison."""

    is_equal: bool | None = None
    """Equal, different, or None: the answer cannot be read, or there is a failure."""
    failure: Status | None = None
    """timeout, out_of_memory or crashed."""
    message: str = ""
    """What happened then."""
    num_attempts: int = 1
    seconds: float = 0.0
    """Of the attempt that counts."""


@dataclass(eq=False)
class _Job:
    pair: Comparison
    future: "Future[Outcome]" = field(default_factory=Future)
    num_attempts: int = 0


class VerifierPool:
    """`workers` processes (0: one per CPU, at most 8), started when the first pair comes."""

    def __init__(self, *, workers: int = 0, timeout_seconds: float, memory_mb: int) -> None:
        self.timeout_seconds, self.memory_mb = timeout_seconds, memory_mb
        self.num_workers = workers or min(os.cpu_count() or 1, MAX_WORKERS)
        self._condition = threading.Condition()
        self._waiting: deque[_Job] = deque()
        self._alone: deque[_Job] = deque()
        self._known: OrderedDict[Comparison, Outcome] = OrderedDict()
        self._running: dict[Comparison, _Job] = {}
        self._drivers: list[_Driver] = []
        self._broken: Exception | None = None
        self._is_closed = False
        atexit.register(self.close)

    def submit(self, pair: Comparison) -> "Future[Outcome]":
        """A future of the pair's outcome; equal pairs are compared once.

        Its exception is WorkerFailed when no process could be started at all.
        """
        with self._condition:
            if self._is_closed:
                raise RuntimeError("the verifier pool is closed: make another")
            if pair in self._known:
                self._known.move_to_end(pair)
                return _done(self._known[pair])
            if pair in self._running:
                return self._running[pair].future
            if self._broken is not None:
                raise self._broken
            job = self._running[pair] = _Job(pair)
            self._waiting.append(job)
            self._condition.notify()
            self._start_driver()
            return job.future

    def compare(self, pairs: "list[Comparison]") -> list[Outcome]:
        """The outcomes of the pairs, in their order."""
        return [future.result() for future in [self.submit(pair) for pair in pairs]]

    def close(self) -> None:
        """End the processes; pairs that wait are cancelled."""
        with self._condition:
            self._is_closed = True
            left = [*self._waiting, *self._alone]
            self._waiting.clear()
            self._alone.clear()
            self._condition.notify_all()
        for job in left:
            job.future.cancel()
        for driver in self._drivers:
            driver.process.interrupt()
            driver.join(timeout=5)
            driver.process.close()
        atexit.unregister(self.close)

    @property
    def pids(self) -> list[int]:
        """The processes that are alive: of each worker its nurse."""
        return [pid for driver in self._drivers if (pid := driver.process.pid)]

    def _start_driver(self) -> None:
        """One more worker, while there is more to do than workers."""
        if len(self._drivers) < min(self.num_workers, len(self._running)):
            driver = _Driver(self)
            self._drivers.append(driver)
            driver.start()

    def take(self, num_in_flight: int, *, is_alone: bool) -> "tuple[list[_Job], bool]":
        """Jobs for a worker with so many in flight, and whether it is one to be done alone; waits if it has none.

        Nothing: the worker is busy enough, or (with none in flight) the pool is closed.
        """
        with self._condition:
            while not num_in_flight and not self._waiting and not self._alone and not self._is_closed:
                self._condition.wait()
            if is_alone or self._is_closed:
                return [], is_alone
            if self._alone:  # the window runs empty for it
                return ([], False) if num_in_flight else ([self._alone.popleft()], True)
            room = min(WINDOW - num_in_flight, -(-len(self._waiting) // len(self._drivers)))
            return [self._waiting.popleft() for _ in range(room)], False

    def put_back(self, jobs: list[_Job]) -> None:
        """Jobs whose worker died over another one: first in the queue."""
        with self._condition:
            self._waiting.extendleft(reversed(jobs))
            self._condition.notify_all()

    def retry(self, job: _Job) -> None:
        with self._condition:
            self._alone.append(job)
            self._condition.notify_all()

    def finish(self, job: _Job, outcome: Outcome) -> None:
        with self._condition:
            self._running.pop(job.pair, None)
            if outcome.failure is None:
                self._known[job.pair] = outcome
                if len(self._known) > REMEMBERED:
                    self._known.popitem(last=False)
        if not job.future.cancelled():
            job.future.set_result(outcome)

    def give_up(self, error: Exception) -> None:
        """No process can be started: every pair that waits gets the reason."""
        with self._condition:
            self._broken = error
            jobs = list(self._running.values())
            self._running.clear()
            self._waiting.clear()
            self._alone.clear()
        for job in jobs:
            if not job.future.done():
                job.future.set_exception(error)


def _done(outcome: Outcome) -> "Future[Outcome]":
    future: Future[Outcome] = Future()
    future.set_result(outcome)
    return future


class _Driver(threading.Thread):
    """Keeps one process busy, and knows which pair it works on and since when."""

    def __init__(self, pool: VerifierPool) -> None:
        super().__init__(name="verifier-pool", daemon=True)
        self.pool = pool
        self.process = VerifierProcess(pool.memory_mb)
        self.in_flight: OrderedDict[int, _Job] = OrderedDict()
        self.is_alone = False
        self.since = 0.0
        self.is_told = False
        """Whether the nurse was told to kill the child over the pair that is worked on."""
        self.num_failed_starts = 0

    def run(self) -> None:
        while True:
            jobs, self.is_alone = self.pool.take(len(self.in_flight), is_alone=self.is_alone and bool(self.in_flight))
            if not jobs and not self.in_flight:
                return  # closed
            try:
                self._send(jobs)
                self._listen()
                self.num_failed_starts = 0
            except WorkerFailed as error:
                self.num_failed_starts += 1
                self.pool.put_back(list(self.in_flight.values()))
                self.in_flight.clear()
                if self.num_failed_starts >= (MAX_KILLED_STARTS if error.was_killed else MAX_STARTS):
                    self.pool.give_up(error)
                    return
            except Exception as error:  # a bug of ours must not leave anybody waiting for ever
                self.pool.give_up(error)
                self.process.end()
                return

    def _send(self, jobs: list[_Job]) -> None:
        if not self.in_flight:
            self.since, self.is_told = time.monotonic(), False
        numbered = {self.process.next_id(): job for job in jobs}
        self.in_flight.update(numbered)
        self.process.send({number: (job.pair.answer, job.pair.gold) for number, job in numbered.items()})
        if jobs and len(self.in_flight) == len(jobs):
            self.since = time.monotonic()  # the start of a process is not the pair's time

    def _listen(self) -> None:
        """Wait for the next line of the worker, until the first pair's time is up."""
        left = self.since + self.pool.timeout_seconds - time.monotonic()
        if left <= 0 and not self.is_told:
            self.process.kill_child()
            self.is_told = True
        for fact in self.process.facts(max(left, 0) if not self.is_told else 1.0):
            if "id" in fact:
                self._answered(fact)
            else:
                self._died(fact)
        if self.is_told and time.monotonic() > self.since + self.pool.timeout_seconds + 2.0:
            self._died(self.process.end() | {"reason": "told"})  # the nurse does not answer either

    def _answered(self, fact: dict[str, object]) -> None:
        job = self.in_flight.pop(int(str(fact["id"])), None)
        self.since, self.is_told = time.monotonic(), False
        if job is None:
            return  # an attempt that was given up
        job.num_attempts += 1
        seconds = float(str(fact["seconds"]))
        if "failure" in fact:
            failed = {"failure": Status(str(fact["failure"])), "message": str(fact["message"]), "seconds": seconds}
            self._failed(job, Outcome(**failed, num_attempts=job.num_attempts), ATTEMPTS)  # type: ignore[arg-type]
            return
        is_equal = fact["is_equal"]
        assert is_equal is None or isinstance(is_equal, bool)
        self.pool.finish(job, Outcome(is_equal=is_equal, num_attempts=job.num_attempts, seconds=seconds))

    def _died(self, fact: dict[str, object]) -> None:
        """The child, or the whole process, has ended: over the first pair in flight, unless it ended by itself."""
        jobs, code, reason = list(self.in_flight.values()), fact.get("code"), fact.get("reason")
        seconds, self.is_told = time.monotonic() - self.since, False
        self.in_flight.clear()
        self.since = time.monotonic()
        if code == 0 and not reason:  # recycled
            self.pool.put_back(jobs)
            return
        self.pool.put_back(jobs[1:])
        if not jobs:
            return
        job = jobs[0]
        job.num_attempts += 1
        limits = {"told": Status.TIMEOUT, "out_of_memory": Status.OUT_OF_MEMORY}
        words = {
            "told": f"no answer within {self.pool.timeout_seconds:g} s",
            "out_of_memory": f"took more than {self.pool.memory_mb} MiB",
        }
        outcome = Outcome(
            failure=limits.get(str(reason), Status.CRASHED),
            message=words.get(str(reason), f"its process ended with code {code}"),
            num_attempts=job.num_attempts,
            seconds=seconds,
        )
        self._failed(job, outcome, ATTEMPTS if reason else KILLED_ATTEMPTS)

    def _failed(self, job: _Job, outcome: Outcome, attempts: int) -> None:
        if job.num_attempts < attempts:
            self.pool.retry(job)
        else:
            self.pool.finish(job, outcome)
