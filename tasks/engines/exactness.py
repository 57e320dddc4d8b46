r"""Whether what an algebra system took for equal differs after all, by less than it looks at.

math-verify works out numbers to 15 digits: \sqrt{2}+e^{-50} is \sqrt{2} to it, and so is \sqrt{2}x+e^{-50} for
\sqrt{2}x. Here both sides are worked out, to as many digits as it takes, with a number for each variable.
"""

from collections.abc import Iterator
from itertools import product
from typing import Any

DIGITS = 1000
"""Digits to which a difference is looked for. guards.py lets no number of more through but products and powers."""
CLOSE = 1e-6
"""Values farther apart than this are equal by some rule, or for other numbers than those tried: x for |x|."""


def differ_slightly(one: Any, other: Any) -> bool:
    """Whether two sympy objects hold numbers that are close and not equal.

    A value of one side counts that is equal to none of the other's and close to one. Symbols stand for the same number
    on both sides; decimals are the fractions that they write.
    """
    names = sorted({symbol.name for side in (one, other) for symbol in side.free_symbols})
    expected, found = (list(_values(side, names)) for side in (one, other))
    close = [pair for pair in product(found, expected) if _is_below(pair, 15, CLOSE)]
    equal = {value for value, wanted in close if value == wanted or _is_below((value, wanted), DIGITS, "1e-900")}
    return any(value not in equal for value, _ in close)


def _values(side: Any, names: list[str]) -> Iterator[Any]:
    """The expressions in a set, a tuple, an interval, an equation or a matrix, or the one that it is, as numbers."""
    from sympy import Expr, Float, MatrixBase, MatrixExpr, Rational

    side = side.doit() if isinstance(side, MatrixExpr) else side
    if not isinstance(side, Expr):
        for part in side.flat() if isinstance(side, MatrixBase) else side.args:
            yield from _values(part, names)
        return
    exact = side.xreplace({value: Rational(str(value)) for value in side.atoms(Float)})
    yield exact.xreplace({symbol: Rational(137 + 34 * names.index(symbol.name), 101) for symbol in exact.free_symbols})


def _is_below(pair: tuple[Any, Any], digits: int, limit: float | str) -> bool:
    """Whether two numbers are closer than `limit`; not so for infinite ones and what sympy has no value for."""
    from sympy import Float

    try:
        gap = abs((pair[0] - pair[1]).evalf(2, maxn=digits))
        return bool(gap.is_finite and gap < Float(limit))
    except (ArithmeticError, AttributeError, NotImplementedError, TypeError, ValueError):
        return False
