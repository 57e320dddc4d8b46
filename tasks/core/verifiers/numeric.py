r"""The verifier of GSM-HARD and of every other task whose answer is a decimal number, right within a tolerance."""

import re
from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction
from math import isfinite

from tasks.core.verdict import Judgement, Status, unparseable
from tasks.core.verifiers.boxes import after_thoughts, last_answer
from tasks.core.verifiers.exact_numbers import exact_number
from tasks.core.verifiers.latex import normal_form
from tasks.core.verifiers.shapes import without_unit

RELATIVE_TOLERANCE = Fraction(1, 10_000)
"""Largest difference, as a part of the gold answer."""
ABSOLUTE_TOLERANCE = Fraction(1, 1_000)
"""Largest difference where the gold answer is at least 1 in size."""
MAX_EXPONENT = 15
"""Largest exponent of the scientific notation: GSM-HARD's answers end at 9.3e12."""
MAX_DIGITS = 60
"""Most digits that an answer may have."""

_DECIMAL = r"[+-]?[0-9]+(?:\.[0-9]*)?"
_SCIENTIFIC = re.compile(
    rf"(?P<factor>{_DECIMAL})(?:\\(?:times|cdot)10\^\{{(?P<power>[+-]?[0-9]{{1,2}})\}}|[eE](?P<e>[+-]?[0-9]{{1,2}}))"
)
_PLAIN = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?")
_DIGIT = re.compile(r"[0-9]")


class NumericVerifier:
    r"""Compares the last `#### X` or box of a completion with a gold decimal number.

    Rule: the answer is found as by the gsm8k verifier (the last mark counts, `\fbox` too, a box in a LaTeX comment does
    not) and read by `read_number`. It is correct when |answer - gold| <= RELATIVE_TOLERANCE |gold|, or, where |gold|
    >= 1, <= ABSOLUTE_TOLERANCE; both bounds included, in exact fractions: 1.001 is within 1, 1.0010001 is not.
    Source: GSM-HARD (PAL, arXiv 2211.10435) has float targets, made by running programs; the tolerances are a
    convention of its evaluations.
    Degenerate cases: those of the gsm8k verifier. A gold 0 takes 0 alone. A known unit or a percent sign at
    the end is dropped (units.py): 50% is 50 and never 0.5. Other words, "x=", a list, an expression are unparseable.
    "-0" is 0.

    >>> NumericVerifier().judge(r"So \boxed{14{,}053{,}029.67}.", "14053029.666666666", is_truncated=False)
    Judgement(status=<Status.CORRECT: 'correct'>, extracted_answer='14053029.67')
    """

    name = "numeric"
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
        number = read_number(found.raw)
        if number is None:
            return unparseable(found.raw)
        status = Status.CORRECT if is_close(number, Fraction(answer)) else Status.WRONG
        return Judgement(status=status, extracted_answer=number_text(number))

    def check_answer(self, answer: str, options: Sequence[str] = ()) -> None:
        """Accept a plain decimal: no exponent, no leading zero, no "-0". Errors: ValueError for anything else."""
        if not _PLAIN.fullmatch(answer) or len(answer) > 2 * MAX_DIGITS or (answer[0] == "-" and not Fraction(answer)):
            raise ValueError(
                f"gold answer {answer[:MAX_DIGITS]!r} cannot be compared: the numeric verifier expected a plain "
                "decimal such as '-1234.5' (no exponent, no separators, no leading zero), for it compares exact "
                "numbers; print a float through plain_decimal(), or choose another verifier"
            )


def is_close(number: Fraction, gold: Fraction) -> bool:
    """Whether `number` is within the tolerance of `gold`; on the bound it is.

    >>> [is_close(Fraction(number), Fraction(1)) for number in ("1.001", "0.999", "1.0010001")]
    [True, True, False]
    """
    difference = abs(number - gold)
    return difference <= RELATIVE_TOLERANCE * abs(gold) or (abs(gold) >= 1 and difference <= ABSOLUTE_TOLERANCE)


def read_number(raw: str) -> Fraction | None:
    r"""The number that `raw` writes; None when it writes none.

    Read: decimals with thousands separators (',', `{,}`, `\,`, all groups full), a currency sign, a full stop; a/b,
    \frac{a}{b}, mixed numbers, repeating decimals; a\times10^{n} and 1.5e3 with |n| <= MAX_EXPONENT; a known unit or a
    percent sign after them. Not read: other powers and words, more than MAX_DIGITS digits, more than one number.

    >>> [str(read_number(raw)) for raw in ["$1,200.50", r"\frac{7}{2}", "1.5e3", r"2\times10^{16}", "50\\%", "2^{10}"]]
    ['2401/2', '7/2', '1500', 'None', '50', 'None']
    """
    form = normal_form(raw)
    if form is None or len(_DIGIT.findall(form)) > MAX_DIGITS:
        return None
    form, _ = without_unit(form)
    match = _SCIENTIFIC.fullmatch(form)
    if match is None:
        return None if "^" in form else exact_number(form)
    exponent = int(match["power"] or match["e"])
    factor = exact_number(match["factor"])
    return None if factor is None or abs(exponent) > MAX_EXPONENT else factor * Fraction(10) ** exponent


def number_text(number: Fraction) -> str:
    """The number as a plain decimal, or as a/b where that would not end.

    >>> [number_text(Fraction(number)) for number in ("-12.50", "1/3", "3")]
    ['-12.5', '1/3', '3']
    """
    remainder, places = number.denominator, 0
    for prime in (2, 5):
        count = 0
        while remainder % prime == 0:
            remainder //= prime
            count += 1
        places = max(places, count)
    if remainder != 1:
        return str(number)
    scaled = abs(number.numerator) * 10**places // number.denominator
    digits = str(scaled).rjust(places + 1, "0")
    sign = "-" if number < 0 else ""
    return sign + (f"{digits[:-places]}.{digits[-places:]}" if places else digits)


def plain_decimal(target: float) -> str:
    """A float as the shortest plain decimal that is this float, without exponent. Errors: ValueError for inf and nan.

    >>> plain_decimal(3.509e-07), plain_decimal(9284017268534.4), plain_decimal(-5.0), plain_decimal(-0.0)
    ('0.0000003509', '9284017268534.4', '-5', '0')
    """
    if not isfinite(target):
        raise ValueError(
            f"target {target!r}: expected a finite number, for nothing is close to this one; leave the row out"
        )
    text = format(Decimal(repr(target)), "f").removesuffix(".0")
    return "0" if target == 0 else text
