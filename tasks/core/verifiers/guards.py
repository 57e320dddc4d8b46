r"""What may be handed to an algebra system, which is lenient in ways that would pay for wrong answers.

Measured with math-verify 0.9.0, each accepted by it as equal: 5 and 5c ("c" is taken for cents), f'(x) and f(x),
2516_8 and 2516, 3R^2 and 3r^2, 5 and 4=5, (1,2) and 1,2, 3:40 and 6:80, 1 and 1,\ldots, 2\pi and 6.283185, 10^{-8} and
0.0. Costly ones such as 9^{9^{9^9}} would only end at a time limit.
"""

import re
from collections import Counter
from typing import Literal

from tasks.core.verifiers.exact_numbers import exact_number
from tasks.core.verifiers.latex_commands import FUNCTIONS, commands
from tasks.core.verifiers.shapes import CLOSING, OPENING, TOKEN

Word = Literal["equal", "different", "unreadable", "undecided"]
"""What text alone can say of two answers; undecided: an algebra system has the word."""

_READABLE = re.compile(r"[a-zA-Z0-9+\-*/^_{}()\[\]|.,!<>=:'&\\ ]*")
_KNOWN = FUNCTIONS | commands(
    "frac sqrt binom cdot times div pm mp infty cup cap setminus in notin le ge ne equiv approx emptyset ldots langle "
    "rangle lfloor rfloor lceil rceil mathbb begin{pmatrix} end{pmatrix} { } \\ alpha beta gamma delta epsilon "
    "varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi pi rho sigma tau upsilon phi varphi chi psi omega "
    "Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega"
)
# Each must occur equally often on both sides. "=" stands here too: the name in "x=5" is gone by now.
_STRUCTURE = {"<": "strict", ">": "strict", "\\le": "weak", "\\ge": "weak", "[": "closed", "]": "closed"} | {
    token: token
    for token in [
        *("=", ":", ",", "&", "'"),
        *commands("ne in notin equiv approx pm mp cup cap setminus ldots emptyset mathbb begin{pmatrix} { \\"),
    ]
}
_DEGREE_OF_ROOT = re.compile(r"(?<=\\sqrt)\[[^\[\]]*\]")  # its brackets are no interval's: 2^{1/3} has none
_SUBSCRIPTED_NUMBER = re.compile(r"[0-9)}]_\{")
_CAPITALS = re.compile(r"[A-Z]{3,}")  # a ranking or a code word: CAB is no product, and not ABC
_ROMAN = re.compile(r"\(?v?i{2,3}\)?")  # (ii), which would be -1
_VALUE_AT = re.compile(r"[a-zA-Z]\(-?[0-9.]+\)=")  # f(1)=3, which it takes for f(0)=3
_LAST_LETTERS = re.compile(r"(?:(?<=[0-9})]) ?|(?<=[a-z]) )([a-zA-Z]+)$")
_DECIMAL = re.compile(r"(?<![0-9.])[0-9]+\.(?:[0-9]*\\overline\{[0-9]+\}|[0-9]+(?![0-9.]|\\overline))")
_LONG_DECIMAL = re.compile(r"\.[0-9]{9}")
_REFUSED = re.compile(
    r"\^\{[^{}]*[0-9]{5}"  # a giant exponent
    r"|\^\{[^a-zA-Z{}]*[\^!]"  # a tower of numbers
    r"|[)}]\^\{[0-9]{4}"  # a high power of what may be one itself
    r"|[0-9]{4}!|!!|[)}]!"  # factorials
    r"|\\binom\{[0-9]{5}"
    r"|\\cdot\\cdot"  # Python's power
    r"|\\(?:sin|cos|tan|cot|sec|csc|arcsin|arccos|arctan|sinh|cosh|tanh|ln|exp)_"  # an index that it drops
    r"|/0+(?![.0-9])|\}\{0+\}"  # a division by zero: 3/(t/0(3)) was accepted for 9/t
)
_GOLD_READABLE = re.compile(r"[a-zA-Z0-9+\-*/^_{}()\[\]|.,!<>=:'&\\%~\u00b0 ]*")
# Beyond the digits that a comparison looks at: \sqrt{2}+2^{-9999} would be \sqrt{2}.
_NEGLIGIBLE = re.compile(r"[0-9e]\^\{-?[0-9]{3}|[0-9]{3}!")
_WORDS = re.compile(r"\\text\{[^{}]*\}")
_UNFINISHED = re.compile(
    r"[*/^_,=:].*|.*(?:[+\-*/^_,=:<>&]|\\(?:cdot|times|div|pm|mp|cup|cap|setminus|in|notin|le|ge|ne|equiv|approx|frac|sqrt))",
    re.DOTALL,
)
_ZERO_DIVISION = re.compile(r"/0+(?![.0-9])|\\frac\{.*\}\{0+\}")
_SYMBOLIC_FACTORIAL = re.compile(r"\([^()!^\\]*[a-zA-Z][^()!^\\]*\)!")
_POWER_OF_POWER = re.compile(r"\}[)}]\^\{")
_EXPONENT_DIGITS = re.compile(r"\^\{[+-]?([0-9]+)")
_MAX_EXPONENT_DIGITS = 4


def guarded(answer: str, gold: str) -> Word:
    r"""What can be said of two answers that are of one shape, not equal as text and not both numbers.

    Unreadable: signs beyond ASCII or of no meaning in mathematics, two numbers beside each other, a command that
    neither the gold answer nor mathematics here knows, a number that would be costly to work out, or is very large or
    small where the gold answer has no such number, a division by zero, an index of a function that has none.
    Different: words, values of functions at numbers, \ne and a bar that is not closed, as in P(A|B), which are compared
    as text; other letters, case included (`e` and `i` may be constants); subscripts of numbers, which are bases; other
    relations, brackets, primes, dots or plus-minus signs; a decimal number where the gold answer is none, for it can
    only be an approximation.

    >>> [guarded(answer, "3r^{2}") for answer in ["3R^{2}", "3rr", "3r^{2}'", "3r^{99999}"]]
    ['different', 'undecided', 'different', 'unreadable']
    """
    if not _READABLE.fullmatch(answer) or _is_refused(answer):
        return "unreadable"
    if _NEGLIGIBLE.search(answer) and not _NEGLIGIBLE.search(gold):
        return "unreadable"
    tokens, gold_tokens = TOKEN.findall(answer), TOKEN.findall(gold)
    commands = {token for token in tokens if token[0] == "\\"} - {"\\text"}
    if not commands <= _KNOWN | set(gold_tokens):
        return "unreadable"
    if "\\text" in (*tokens, *gold_tokens) or not _READABLE.fullmatch(gold) or not commands <= _KNOWN:
        return "different"
    if (_CAPITALS.fullmatch(answer) and _CAPITALS.fullmatch(gold)) or _ROMAN.fullmatch(gold):
        return "different"
    if gold.count("|") % 2 or answer.count("|") % 2:
        return "different"
    if _VALUE_AT.search(answer) or _VALUE_AT.search(gold) or "\\ne" in (*tokens, *gold_tokens):
        return "different"
    if _SUBSCRIPTED_NUMBER.search(answer + " " + gold) or letters(tokens) != letters(gold_tokens):
        return "different"
    if _structure(answer) != _structure(gold) or _is_approximation(answer, gold):
        return "different"
    return "undecided"


def is_comparable(gold: str) -> bool:
    r"""Whether a gold answer in normal form can be compared with other ways of writing it.

    Beside words: no signs beyond ASCII (nothing but the very same signs would be equal), brackets that match, and no
    operator that waits for an operand, no division by zero.

    >>> [is_comparable(gold) for gold in ["x+1", "[0,1)", "x+", ")x(", r"\frac{1}{0}", "5\u20ac", r"\text{caf\u00e9}"]]
    [True, True, False, False, False, False, True]
    """
    bare = _WORDS.sub("w", gold)
    depth = 0
    for token in TOKEN.findall(bare):
        depth += (token in OPENING) - (token in CLOSING)
        if depth < 0:
            return False
    return depth == 0 and not (
        _UNFINISHED.fullmatch(bare) or _ZERO_DIVISION.search(bare) or not _GOLD_READABLE.fullmatch(bare)
    )


def letters(tokens: list[str]) -> set[str]:
    """The variables among the tokens."""
    return {token for token in tokens if len(token) == 1 and token.isalpha()} - {"e", "i"}


def algebra_form(form: str) -> str:
    r"""The form as math-verify must see it.

    Decimals are fractions, or it would work with floats, rounded to six places. Letters at the end are in braces, or
    it takes them for a unit.

    >>> [algebra_form(form) for form in ["5c", r"\pi r", "2i+x", r"0.\overline{3}x", "0.5^{x}"]]
    ['5{c}', '\\pi{r}', '2i+x', '\\frac{1}{3}{x}', '(\\frac{1}{2})^{x}']
    """
    return _LAST_LETTERS.sub(lambda match: f"{{{match[1]}}}", _DECIMAL.sub(_fraction, form))


def _fraction(match: re.Match[str]) -> str:
    number = exact_number(match[0])
    assert number is not None  # its digits are all that was matched
    if number.denominator == 1:
        return str(number)
    fraction = f"\\frac{{{number.numerator}}}{{{number.denominator}}}"
    return f"({fraction})" if match.string[match.end() : match.end() + 1] in ("^", "!") else fraction


def _is_refused(answer: str) -> bool:
    if _REFUSED.search(_SYMBOLIC_FACTORIAL.sub("x", answer)):
        return True
    digits = sum(len(exponent) for exponent in _EXPONENT_DIGITS.findall(answer))
    return digits > _MAX_EXPONENT_DIGITS and _POWER_OF_POWER.search(answer) is not None


def _structure(form: str) -> Counter[str]:
    tokens = TOKEN.findall(_DEGREE_OF_ROOT.sub("", form))
    return Counter(_STRUCTURE[token] for token in tokens if token in _STRUCTURE)


def _is_approximation(answer: str, gold: str) -> bool:
    """Whether the answer is a decimal number that stands for an exact one: math-verify rounds to six places."""
    if "." not in answer:
        return False
    return exact_number(answer) is not None or ("." not in gold and _LONG_DECIMAL.search(answer) is not None)
