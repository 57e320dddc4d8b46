"""The verifier of GSM8K and of every other task whose answer is an integer."""

import re
from collections.abc import Sequence

from tasks.core.verdict import Judgement, Status, unparseable
from tasks.core.verifiers.boxes import MARK, after_thoughts, last_answer
from tasks.core.verifiers.latex import normal_form
from tasks.core.verifiers.shapes import without_unit

MAX_DIGITS = 40
"""Longest integer that is compared: far above any gold answer (GSM8K: 9 digits), far below where int() gets slow."""

_MAX_RAW_CHARACTERS = 200
"""Longer raw answers are not looked at: MAX_DIGITS digits with separators and every decoration are shorter."""

_SPACE = re.compile(r"(?:[ \t\r\n]|\\,)*+")
_TRAILING_SPACE = re.compile(r"(?:[ \t\r\n]|\\,)++\Z")
# [0-9], for \d takes every script's digits. Grouped numbers start with 1-9 ("0,072" is a decimal fraction in half the
# world) and keep to one separator.
_INTEGER = re.compile(
    r"(?P<sign>[+-]?)(?:\\?\$)?"
    r"(?P<digits>[1-9][0-9]{0,2}(?P<separator>,|\\,|\{,\})[0-9]{3}(?:(?P=separator)[0-9]{3})*|[0-9]+)"
    r"(?:\.00?)?"
)
_TYPEFACE = re.compile(r"\\(?:text|textbf|mathbf|mathrm|boldsymbol)\{(?P<content>[^{}]*(?:\{,\}[^{}]*)*)\}")
_NOT_DIGITS = re.compile(r"[^0-9]")
_CANONICAL = re.compile(rf"0|-?[1-9][0-9]{{0,{MAX_DIGITS - 1}}}")


class Gsm8kVerifier:
    r"""Compares the last `#### X` or `\boxed{X}` of a completion with a gold integer.

    Rule: everything up to the last </think> is dropped. The answer is the last `####`, up to the end of its line, or
    the last `\boxed{` or `\fbox{` that is not in a LaTeX comment, up to its matching brace, whichever starts last. The
    last one, because it is what the completion finally commits to: reading any other, or trying several, would pay for
    listing guesses, and a rank between the two marks would let an early answer overrule its own correction. X is
    brought to canonical form by `canonical_integer` and compared as an integer, exactly.

    Source: the GSM8K paper (arXiv 2110.14168) ends every solution in `#### X`; `\boxed{X}` is what instruct models
    are asked for.

    Degenerate cases:
    * No answer: truncated if the length limit ended the completion, else unparseable.
    * A completion cut by the length limit after its answer was complete is judged as any other. The completion is
      truncated when its box is unclosed or its `####` line has no line break yet: `#### 7` may have become `#### 72`.
    * An unclosed box in a completion that ended by itself is unparseable.
    * A `####` heading after the answer is the last mark, hence unparseable; there is no fallback to an earlier
      answer.
    * Of nested boxes the inner one starts last and counts. `\{` and `\}` are text and match nothing. `\boxed 7` is no
      mark.
    * A <think> that is never closed drops nothing: chat templates may open it in the prompt, where the verifier
      cannot see it.
    * A known unit or a percent sign after the number is dropped ("72 dollars", "72%"; units.py). A number with other
      words ("72 clips"), a formula ("8*9") or a fraction is unparseable; nothing is evaluated.

    >>> Gsm8kVerifier().judge("48+24=72, so \\boxed{72}.", "72", is_truncated=False).status.value
    'correct'
    """

    name = "gsm8k"
    version = 2
    warning = ""

    def judge(self, completion: str, answer: str, *, is_truncated: bool, options: Sequence[str] = ()) -> Judgement:
        """Judge `completion` by the rule above. Errors: ValueError where check_answer would raise."""
        self.check_answer(answer)
        found = last_answer(after_thoughts(completion))
        if is_truncated and (found is None or not found.is_closed):
            return Judgement(status=Status.TRUNCATED, extracted_answer=None)
        if found is None:
            return unparseable(None)
        integer = canonical_integer(found.raw) or _measured_integer(found.raw)
        if integer is None:
            return unparseable(found.raw)
        # Canonical forms are equal exactly when the integers are.
        return Judgement(status=Status.CORRECT if integer == answer else Status.WRONG, extracted_answer=integer)

    def check_answer(self, answer: str, options: Sequence[str] = ()) -> None:
        """Accept an integer in canonical form: no leading zero, no "-0". Errors: ValueError for anything else."""
        if _CANONICAL.fullmatch(answer) is None:
            raise ValueError(
                f"gold answer {answer[:_MAX_RAW_CHARACTERS]!r} cannot be compared: the gsm8k verifier expected a "
                f"canonical integer such as '-1234' (at most {MAX_DIGITS} digits, no separators, no leading zero), for "
                "it compares integers exactly; take GSM8K's `answer` column through gold_answer(), or choose another "
                "verifier"
            )


def gold_answer(answer_column: str) -> str:
    """The canonical integer after the last "#### " of a row's `answer` column. Errors: ValueError when there is none.

    >>> gold_answer("6 boxes hold 6*375=<<6*375=2250>>2250.\\n#### 2,250")
    '2250'
    """
    _, mark, raw = answer_column.rpartition(MARK + " ")
    integer = canonical_integer(raw) if mark else None
    if integer is None:
        raise ValueError(
            f"answer column ends in {answer_column[-60:]!r}: expected '#### ' and an integer, as in every row of "
            "openai/gsm8k; check that the dataset is GSM8K (configuration main) and its column `answer`"
        )
    return integer


def canonical_integer(raw: str) -> str | None:
    r"""The integer that `raw` writes, as ASCII digits after an optional '-'; None when it writes no integer.

    Removed: space and thin spaces (`\,`) at the ends; one full stop at the end; one `$` or `\$` at each end (also
    `$\$72$`); `\text{...}`, `\mathbf{...}` and their like around all of it, as they change the typeface and nothing
    else; the sign '+'; the thousands separators ',', `{,}` and `\,` when all are alike and every group is full; ".0" or
    ".00"; leading zeros of an ungrouped number.
    Not accepted: anything beyond ASCII (other digits, the minus sign U+2212); "72.000", which means 72000 to many;
    "1 000", which may be two numbers; "1,00"; "- 5"; "1e3"; "1_000"; more than MAX_DIGITS digits.
    Degenerate cases: "" is None; "-0" is "0".

    >>> [canonical_integer(raw) for raw in ["$1,200.00", r"\text{-7}.", "+007", "1,20", "9*8"]]
    ['1200', '-7', '7', None, None]
    """
    if len(raw) > _MAX_RAW_CHARACTERS:
        return None
    match = _INTEGER.fullmatch(_undecorated(raw))
    if match is None:
        return None
    digits = _NOT_DIGITS.sub("", match["digits"])
    if len(digits) > MAX_DIGITS:
        return None
    return str(int(match["sign"] + digits))


def _measured_integer(raw: str) -> str | None:
    r"""The integer before a known unit or a percent sign; None when there is none.

    >>> [_measured_integer(raw) for raw in ["1,200 dollars", r"72\text{ miles per hour}", r"5\%", "5 or 6 feet", "5"]]
    ['1200', '72', '5', None, None]
    """
    form = normal_form(raw) if raw.isascii() else None
    if form is None:
        return None
    number, _ = without_unit(form)
    return None if number == form or "," in number else canonical_integer(number)


def _undecorated(raw: str) -> str:
    text = _strip(raw)
    has_full_stop = text.endswith(".")
    text = _strip(text.removesuffix("."))
    text = _strip(text.removeprefix("$"))
    text = _strip(text.removeprefix("\\$"))
    text = _strip(text.removesuffix("\\$" if text.endswith("\\$") else "$"))
    typeface = _TYPEFACE.fullmatch(text)
    if typeface:
        text = _strip(typeface["content"])
    return text if has_full_stop else _strip(text.removesuffix("."))


def _strip(text: str) -> str:
    start = _SPACE.match(text)
    assert start is not None  # it matches the empty string
    return _TRAILING_SPACE.sub("", text[start.end() :])
