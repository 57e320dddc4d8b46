"""What a verifier says of one completion.

A verifier returns only what it can see in the text: correct, wrong, unparseable or truncated. Whoever runs it records
timeout, out_of_memory and crashed. Those three say nothing about the completion: by default their reward is NULL in the
verdicts table (unassigned), and never a silent 0 (tasks/verification_config.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

MAX_EXTRACTED_CHARACTERS = 200
"""Length at which an unparseable answer is cut before it is stored: a megabyte of junk must not enter a table."""


class Status(StrEnum):
    """Outcome of judging one completion; the values are those of the `status` column of the verdicts table."""

    CORRECT = "correct"
    """The answer equals the gold answer."""
    WRONG = "wrong"
    """The answer can be compared and differs."""
    UNPARSEABLE = "unparseable"
    """The completion ended by itself and holds no answer, or one that cannot be compared."""
    TRUNCATED = "truncated"
    """The length limit cut the completion before its answer was complete."""
    TIMEOUT = "timeout"
    """The verifier passed its wall-clock limit."""
    OUT_OF_MEMORY = "out_of_memory"
    """The verifier passed its memory limit."""
    CRASHED = "crashed"
    """The verifier raised or its process died."""


FAILURES = (Status.TIMEOUT, Status.OUT_OF_MEMORY, Status.CRASHED)
"""Statuses that say something of the verifier, and nothing of the completion."""


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """One verifier's word on one completion."""

    status: Status
    """What was found."""
    extracted_answer: str | None
    """Correct or wrong: the answer in canonical form. Unparseable: its raw text, cut at MAX_EXTRACTED_CHARACTERS, or
    None when there is no answer. Otherwise None: an answer cut short is no answer."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two answers that text alone cannot tell apart or call equal: an algebra system has the word.

    It runs in a process of its own (tasks/engines/verifier_pool.py), and its word becomes a judgement by `judgement`.
    """

    answer: str
    """The completion's answer, normalized, bounded in length."""
    gold: str
    """The gold answer, normalized in the same way."""

    def judgement(self, is_equal: bool | None) -> Judgement:
        """The judgement: equal, different, or (None) an answer that the algebra system cannot read."""
        if is_equal is None:
            return unparseable(self.answer)
        status = Status.CORRECT if is_equal else Status.WRONG
        return Judgement(status=status, extracted_answer=self.answer[:MAX_EXTRACTED_CHARACTERS])


class Verifier(Protocol):
    """Compares completions with gold answers: deterministic, linear in the completion's length, evaluating nothing."""

    name: str
    """The key in the registry and in the `verifier` column."""
    version: int
    """Raised whenever any completion would be judged differently; verdicts of both versions then stand side by side."""
    warning: str
    """What somebody who chooses this verifier should know, in one sentence; "" when there is nothing to say."""

    def judge(
        self, completion: str, answer: str, *, is_truncated: bool, options: Sequence[str] = ()
    ) -> Judgement | Comparison:
        """Judge `completion` against the gold `answer`; `is_truncated` says that the length limit ended the completion.

        `options` are the texts of a multiple choice, A first; verifiers of other tasks ignore them.
        Errors: ValueError where check_answer would raise; never on account of the completion.
        """
        ...

    def check_answer(self, answer: str, options: Sequence[str] = ()) -> None:
        """Raise ValueError when the verifier cannot compare the gold `answer`, or it is none of `options`: bad keys are
        refused at load."""
        ...


def unparseable(raw: str | None) -> Judgement:
    """The judgement of an answer that cannot be compared: `raw`, cut short, or None when there is no answer.

    >>> unparseable("x" * 1000).extracted_answer == "x" * 200
    True
    """
    return Judgement(
        status=Status.UNPARSEABLE, extracted_answer=None if raw is None else raw[:MAX_EXTRACTED_CHARACTERS]
    )
