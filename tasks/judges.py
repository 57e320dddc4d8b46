"""Stand-in until the branch `pool` brings tasks/judges.py: judges in process."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tasks.core.verdict import Judgement, Status, Verifier
from tasks.verification_config import VerificationConfig


@dataclass(frozen=True)
class Row:
    completion: str
    answer: str
    is_truncated: bool
    options: Sequence[str] = ()


@dataclass(frozen=True)
class Verdict:
    judgement: Judgement
    failure: str | None
    num_attempts: int
    seconds: float


class Judges:
    def __init__(self, workers: int = 0, note: Callable[[str], Any] = print) -> None:
        pass

    def judge(
        self, verifier: Verifier, rows: Iterable[Row], config: VerificationConfig, progress: Any = None
    ) -> Iterator[Verdict]:
        for row in rows:
            started, failure = time.perf_counter(), None
            try:
                judged = verifier.judge(row.completion, row.answer, is_truncated=row.is_truncated, options=row.options)
            except Exception as error:
                judged, failure = Judgement(status=Status.CRASHED, extracted_answer=None), str(error)
            yield Verdict(judged, failure, 1, time.perf_counter() - started)

    def close(self) -> None:
        pass
