r"""Numbers written in full, as exact fractions: no float, no evaluation, no exponent that could grow."""

import re
from fractions import Fraction

MAX_EXPONENT = 400
"""Largest exponent of a power that is worked out."""
_MAX_POWER_DIGITS = 1000
"""Powers that would have more digits than this are left alone."""

_DECIMAL = r"[0-9]+(?:\.[0-9]*)?"
_NUMBER = re.compile(
    rf"(?P<integer>[0-9]+)~?\\frac\{{(?P<part>[0-9]+)\}}\{{(?P<whole>[0-9]+)\}}"
    r"|(?P<ones>[0-9]+)~(?P<over>[0-9]+)/(?P<under>[0-9]+)"
    rf"|\\frac\{{(?P<numerator>[+-]?{_DECIMAL})\}}\{{(?P<denominator>[+-]?{_DECIMAL})\}}"
    rf"|(?P<dividend>{_DECIMAL})/(?P<divisor>{_DECIMAL})"
    r"|(?P<lead>[0-9]+\.[0-9]*)\\overline\{(?P<cycle>[0-9]+)\}"
    rf"|(?:(?P<factor>{_DECIMAL})\\(?:times|cdot))?(?P<base>[0-9]+)\^\{{(?P<exponent>[+-]?[0-9]{{1,3}})\}}"
    rf"|(?P<decimal>{_DECIMAL})"
)
_SIGN = re.compile(r"[+-]?")


def exact_number(form: str) -> Fraction | None:
    r"""The number that the normal form `form` (latex.py) writes; None when it writes none, or divides by zero.

    An optional sign before: digits, a finite decimal, a/b or \frac{a}{b} (a and b may be decimals), a mixed number
    3\frac{1}{2} or "3 1/2" whose fraction is proper, a repeating decimal 0.\overline{3}, a power 2^{10} with an integer
    exponent, or a number times a power, 1.5\times10^{-3}. Exponents beyond MAX_EXPONENT are not worked out.

    >>> [str(exact_number(form)) for form in ["-0.50", r"3\frac{1}{2}", r"0.\overline{3}", "2^{-3}", "9^{999}", "1~2"]]
    ['-1/2', '7/2', '1/3', '1/8', 'None', 'None']
    """
    sign = _SIGN.match(form)
    assert sign is not None  # it matches the empty string
    match = _NUMBER.fullmatch(form, sign.end())
    if match is None:
        return None
    try:
        number = _value(match)
    except ZeroDivisionError:
        return None
    return None if number is None else -number if sign[0] == "-" else number


def _value(match: re.Match[str]) -> Fraction | None:
    if match["decimal"]:
        return _decimal(match["decimal"])
    if match["integer"] or match["ones"]:
        part = Fraction(int(match["part"] or match["over"]), int(match["whole"] or match["under"]))
        return int(match["integer"] or match["ones"]) + part if 0 < part < 1 else None
    if match["numerator"]:
        return _decimal(match["numerator"]) / _decimal(match["denominator"])
    if match["dividend"]:
        return _decimal(match["dividend"]) / _decimal(match["divisor"])
    if match["lead"]:
        decimals = len(match["lead"].partition(".")[2])
        cycle = Fraction(int(match["cycle"]), 10 ** len(match["cycle"]) - 1)
        return _decimal(match["lead"]) + cycle / int(10**decimals)
    exponent, base = int(match["exponent"]), int(match["base"])
    if abs(exponent) > MAX_EXPONENT or abs(exponent) * len(match["base"]) > _MAX_POWER_DIGITS:
        return None
    power = Fraction(int(base ** abs(exponent)))
    return _decimal(match["factor"] or "1") * (power if exponent >= 0 else 1 / power)


def _decimal(digits: str) -> Fraction:
    """A decimal, digit by digit: Fraction's own parser would take exponents and underscores."""
    integer, _, decimals = digits.partition(".")
    return Fraction(int(integer + decimals), 10 ** len(decimals))
