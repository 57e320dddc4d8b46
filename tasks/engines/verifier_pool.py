"""Comparisons by algebra in processes that may hang, run out of memory or be killed, at the cost of that pair alone."""

import os
import threading
from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from dataclasses import replace

from tasks.core.verdict import Comparison
from tasks.engines.verifier_driver import WINDOW, Driver, Job, Outcome

MAX_WORKERS = 8
REMEMBERED = 50_000
"""Pairs whose outcome is kept; failures never are."""
CLOSE_SECONDS = 5.0


class VerifierPool:
    """Processes that compare pairs with math-verify, for any number of threads at once.

    Up to `workers` processes (0: one per CPU, at most 8) start as pairs pile up, and stay. A comparison ends after
    `timeout_seconds` of wall-clock time, and may take `memory_mb` MiB beside what its process has loaded. What breaks
    its process is tried once more, alone; what fails then is an outcome with a failure, never a verdict. The order in
    which pairs are compared, and how often a process had to be replaced, do not show in the outcomes.
    """

    def __init__(self, *, workers: int = 0, timeout_seconds: float, memory_mb: int) -> None:
        self.timeout_seconds, self.memory_mb = timeout_seconds, memory_mb
        self.workers = workers or min(os.cpu_count() or 1, MAX_WORKERS)
        self._drivers: list[Driver] = []
        self._queue: deque[Job] = deque()
        self._open: dict[Comparison, Job] = {}
        self._known: OrderedDict[Comparison, Outcome] = OrderedDict()
        self._changed = threading.Condition()
        self._error: RuntimeError | None = None

    def compare(self, pairs: Iterable[Comparison]) -> list[Outcome]:
        """The outcomes, in order. Raises WorkerFailed where no process can be started, RuntimeError when closed."""
        return [future.result() for future in [self.submit(pair) for pair in pairs]]

    def submit(self, pair: Comparison) -> "Future[Outcome]":
        """The outcome to come; equal pairs are compared once."""
        with self._changed:
            if self._error is not None:
                raise type(self._error)(str(self._error))
            job = self._open.get(pair)
            if job is not None:
                return job.future
            if pair in self._known:
                self._known.move_to_end(pair)
                known: Future[Outcome] = Future()
                known.set_result(self._known[pair])
                return known
            job = self._open[pair] = Job(pair)
            job.future.set_running_or_notify_cancel()  # others may wait for it too: it cannot be cancelled
            self._queue.append(job)
            if len(self._drivers) < self.workers and len(self._queue) > WINDOW * len(self._drivers):
                self._drivers.append(Driver(self))
                self._drivers[-1].start()
            self._changed.notify()
            return job.future

    def close(self) -> None:
        """End the processes; comparisons that are waited for raise RuntimeError."""
        self.fail(RuntimeError("the pool of verifiers was closed"))
        for driver in self._drivers:
            driver.join(CLOSE_SECONDS)

    @property
    def is_closed(self) -> bool:
        return self._error is not None

    @property
    def pids(self) -> list[int]:
        """Of the processes that were started; a pair is compared by a child of one of them."""
        return [process.pid for driver in self._drivers if (process := driver.process)]

    def take(self, most: int, most_characters: int, *, wait: bool) -> list[Job]:
        """For drivers: jobs, a fair share of what waits; with `wait` one at least, unless the pool is closed."""
        with self._changed:
            while wait and not self._queue and not self.is_closed:
                self._changed.wait()
            taken: list[Job] = []
            share = -(-len(self._queue) // max(1, len(self._drivers)))
            for _ in range(min(most, share)):
                most_characters -= self._queue[0].num_characters
                if most_characters < 0 and not (wait and not taken):
                    break
                taken.append(self._queue.popleft())
            return taken

    def give_back(self, jobs: Sequence[Job]) -> None:
        """For drivers: jobs that nobody works on any more; they come first."""
        with self._changed:
            if not self.is_closed:
                self._queue.extendleft(reversed(jobs))
                self._changed.notify(len(jobs))

    def settle(self, job: Job, outcome: Outcome) -> None:
        """For drivers: the job is done."""
        with self._changed:
            if self._open.pop(job.pair, None) is None:
                return  # the pool was closed
            if outcome.failure is None:
                self._known[job.pair] = replace(outcome, num_attempts=1, seconds=0.0)
                if len(self._known) > REMEMBERED:
                    self._known.popitem(last=False)
        job.future.set_result(outcome)

    def fail(self, error: RuntimeError) -> None:
        """For drivers: nothing can be compared any more, and this is why."""
        with self._changed:
            error = self._error = self._error or error
            jobs = list(self._open.values())
            self._open.clear()
            self._queue.clear()
            self._changed.notify_all()
        for job in jobs:
            job.future.set_exception(type(error)(str(error)))
        for driver in self._drivers:
            if driver.process is not None:
                driver.process.hang_up()
