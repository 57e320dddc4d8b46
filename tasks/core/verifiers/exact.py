r"""The verifier of tasks whose answer is a string, and is right only as it stands."""

from collections.abc import Sequence

from tasks.core.verdict import MAX_EXTRACTED_CHARACTERS, Judgement, Status, unparseable
from tasks.core.verifiers.boxes import after_thoughts, last_box

_SPACE = " \t\r\n"


class ExactVerifier:
    r"""Compares a completion, or its last box, with a gold string, character by character.

    Rule: everything up to the last </think> is dropped; the answer is the content of the last box (boxes.py), or all
    the text when it holds none; spaces, tabs and line breaks at its ends are removed. Nothing else is.
    Source: our own rule.
    Degenerate cases: an empty answer and an unclosed box are unparseable. A completion cut by the length limit is
    truncated, unless its last box is closed.

    >>> ExactVerifier().judge("<think>b?</think>\na c\n", "a c", is_truncated=False).status.value
    'correct'
    """

    name = "exact"
    version = 1
    warning = ""

    def judge(self, completion: str, answer: str, *, is_truncated: bool, options: Sequence[str] = ()) -> Judgement:
        """Judge `completion` by the rule above. Errors: ValueError where check_answer would raise."""
        self.check_answer(answer)
        text = after_thoughts(completion)
        box = last_box(text)
        if is_truncated and (box is None or not box[1].is_closed):
            return Judgement(status=Status.TRUNCATED, extracted_answer=None)
        if box is not None and not box[1].is_closed:
            return unparseable(box[1].raw)
        stated = (text if box is None else box[1].raw).strip(_SPACE)
        if not stated:
            return unparseable(None if box is None else "")
        status = Status.CORRECT if stated == answer else Status.WRONG
        return Judgement(status=status, extracted_answer=stated[:MAX_EXTRACTED_CHARACTERS])

    def check_answer(self, answer: str, options: Sequence[str] = ()) -> None:
        """Accept any string but an empty one or one with space at its ends. Errors: ValueError for those."""
        if not answer or answer != answer.strip(_SPACE):
            raise ValueError(
                f"gold answer {answer[:MAX_EXTRACTED_CHARACTERS]!r} cannot be compared: the exact verifier expected a "
                "string that is not empty and has no space at its ends, for it removes those of a completion; strip it"
            )
