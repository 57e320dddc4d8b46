"""The verifier of the built-in arithmetic task (tasks/core/arithmetic.py)."""

from collections.abc import Sequence

from tasks.core.verdict import Judgement, Status, unparseable

_DIGITS = frozenset("0123456789")


class ArithmeticVerifier:
    """Judges the last digit of a completion such as "3+5=8;8*2=6#6".

    Rule: the answer is everything after the last '#'; it must be exactly one ASCII digit and equal the gold digit.
    Only this answer is judged: wrong steps before a right answer are correct, right steps before a wrong answer are
    wrong.
    Source: our own task; its format is defined in tasks/core/arithmetic.py.
    Degenerate cases: a completion cut by the length limit is always truncated, even if it ends in "#6", for the next
    character is unknown; no '#' is unparseable without an answer; nothing, several digits, a space or a line break
    after the '#' is unparseable.

    >>> ArithmeticVerifier().judge("3+5=8;8*2=6#6", "6", is_truncated=False).status.value
    'correct'
    """

    name = "arithmetic"
    version = 1
    warning = ""

    def judge(self, completion: str, answer: str, *, is_truncated: bool, options: Sequence[str] = ()) -> Judgement:
        """Judge `completion` by the rule above. Errors: ValueError where check_answer would raise."""
        self.check_answer(answer)
        if is_truncated:
            return Judgement(status=Status.TRUNCATED, extracted_answer=None)
        _, mark, raw = completion.rpartition("#")
        if not mark:
            return unparseable(None)
        if raw not in _DIGITS:
            return unparseable(raw)
        return Judgement(status=Status.CORRECT if raw == answer else Status.WRONG, extracted_answer=raw)

    def check_answer(self, answer: str, options: Sequence[str] = ()) -> None:
        """Accept one ASCII digit. Errors: ValueError for anything else."""
        if answer not in _DIGITS:
            raise ValueError(
                f"gold answer {answer!r} cannot be compared: the arithmetic verifier expected one digit 0-9, "
                "for the task counts modulo 10; correct the answer or choose another verifier"
            )
