"""Judging completions one after the other, in order: text is compared here, and what needs algebra in a kept pool."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any

from tasks.core.verdict import MAX_EXTRACTED_CHARACTERS, Comparison, Judgement, Status, Verifier
from tasks.verification_config import VerificationConfig

if TYPE_CHECKING:
    from tasks.engines.verifier_pool import Outcome, VerifierPool

AHEAD = 4096
"""Rows read ahead of the first one whose verdict is awaited: bounds memory, and keeps the workers busy."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One completion and what it is judged against."""

    completion: str
    answer: str
    is_truncated: bool = False
    options: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a verifier said of a row, or how it failed."""

    judgement: Judgement
    failure: str | None = None
    """Why there is no judgement: timeout, out_of_memory, crashed."""
    num_attempts: int = 1
    seconds: float


class Judges:
    """Keeps the pool of workers for as long as a run lasts; `close` ends it. Not to be called from two threads."""

    def __init__(self, *, note: Callable[[str], Any] = print) -> None:
        self.note = note
        self._pool: VerifierPool | None = None
        self._settings: tuple[object, ...] = ()
        self._warned: set[str] = set()

    def judge(self, verifier: Verifier, rows: Iterable[Row], config: VerificationConfig) -> Iterator[Verdict]:
        """Verdicts of the rows, in their order, as they come. Raises RuntimeError when no worker can be started."""
        if verifier.warning and verifier.name not in self._warned:
            self._warned.add(verifier.name)
            self.note(verifier.warning)
        pending: deque[Verdict | _Awaited] = deque()
        for row in rows:
            pending.append(self._begin(verifier, row, config))
            while pending and (len(pending) > AHEAD or _is_ready(pending[0])):
                yield _finished(pending.popleft())
        while pending:
            yield _finished(pending.popleft())

    def close(self) -> None:
        """End the workers that were started."""
        if self._pool is not None:
            self._pool.close()
        self._pool = None

    def _begin(self, verifier: Verifier, row: Row, config: VerificationConfig) -> "Verdict | _Awaited":
        """The verifier's own word; a bug of it is a status, and never a wrong answer."""
        started = perf_counter()
        try:
            said = verifier.judge(row.completion, row.answer, is_truncated=row.is_truncated, options=row.options)
        except MemoryError as error:
            return _failed(Status.OUT_OF_MEMORY, f"MemoryError: {error}", perf_counter() - started)
        except Exception as error:
            return _failed(Status.CRASHED, f"{type(error).__name__}: {error}", perf_counter() - started)
        seconds = perf_counter() - started
        if isinstance(said, Judgement):
            return Verdict(judgement=said, seconds=seconds)
        return _Awaited(said, self._workers(config).submit(said), seconds)

    def _workers(self, config: VerificationConfig) -> "VerifierPool":
        settings = (config.workers, config.timeout_seconds, config.memory_mb)
        if self._pool is None or self._settings != settings:
            from tasks.engines.verifier_pool import VerifierPool

            self.close()
            limits = {"timeout_seconds": config.timeout_seconds, "memory_mb": config.memory_mb}
            self._pool, self._settings = VerifierPool(workers=config.workers, **limits), settings
        return self._pool


@dataclass(frozen=True)
class _Awaited:
    comparison: Comparison
    outcome: "Future[Outcome]"
    seconds: float


def _is_ready(entry: "Verdict | _Awaited") -> bool:
    return isinstance(entry, Verdict) or entry.outcome.done()


def _finished(entry: "Verdict | _Awaited") -> Verdict:
    if isinstance(entry, Verdict):
        return entry
    outcome = entry.outcome.result()
    seconds = entry.seconds + outcome.seconds
    if outcome.failure is not None:
        return _failed(outcome.failure, outcome.message, seconds, outcome.num_attempts)
    judgement = entry.comparison.judgement(outcome.is_equal)
    return Verdict(judgement=judgement, num_attempts=outcome.num_attempts, seconds=seconds)


def _failed(status: Status, message: str, seconds: float, num_attempts: int = 1) -> Verdict:
    return Verdict(
        judgement=Judgement(status=status, extracted_answer=None),
        failure=message[:MAX_EXTRACTED_CHARACTERS],
        num_attempts=num_attempts,
        seconds=seconds,
    )
