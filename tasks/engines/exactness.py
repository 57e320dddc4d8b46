r"""Whether what an algebra system took for equal differs after all, by less than it looks at.

math-verify works out numbers to 15 digits: \sqrt{2}+e^{-50} is \sqrt{2} to it, and so is \sqrt{2}x+e^{-50} for
\sqrt{2}x. Here both sides are worked out to 900 digits, with a number for each variable.
"""

from collections.abc import Iterator, Mapping
from fractions import Fraction
from itertools import product
from typing import Any

DIGITS = 1000
"""Digits to which a difference is worked out."""
SMALLEST = Fraction(1, 10**900)
"""Smallest difference that is seen, more than is left of two equal numbers that are worked out to DIGITS."""
CLOSE = 1e-6
"""Values farther apart than this are equal by some rule, or for other numbers than those tried: x for |x|."""


def differ_slightly(one: Any, other: Any) -> bool:
    """Whether two sympy objects hold numbers that are close and not equal.

    A value of one side counts that is equal to none of the other's and close to one. Symbols stand for the same number
    on both sides; decimals are the fractions that they write.
    """
    point = _point(one, other)
    expected, found = (list(_values(side, point)) for side in (one, other))
    close = [pair for pair in product(found, expected) if _gap(pair, 15, otherwise=CLOSE) < CLOSE]
    equal = {value for value, wanted in close if _gap((value, wanted), DIGITS, otherwise=0.0) < SMALLEST}
    return any(value not in equal for value, _ in close)


def _point(one: Any, other: Any) -> dict[str, Any]:
    """A number for each variable: between 1 and 2 and more, or whole where factorials would cost seconds otherwise."""
    from sympy import Integer, Rational, binomial, factorial, gamma

    names = sorted({symbol.name for side in (one, other) for symbol in side.free_symbols})
    is_whole = any(side.has(factorial, binomial, gamma) for side in (one, other))
    return {name: Integer(11 + 3 * i) if is_whole else Rational(137 + 34 * i, 101) for i, name in enumerate(names)}


def _values(side: Any, point: Mapping[str, Any]) -> Iterator[Any]:
    """What a set, a tuple, an interval or a matrix holds, or the one expression that it is, as numbers.

    Of an equation or inequality only what a variable is compared with: the rest may be arranged in another way.
    """
    from sympy import Expr, Float, MatrixBase, MatrixExpr, Rational
    from sympy.core.relational import Relational

    side = side.doit() if isinstance(side, MatrixExpr) else side
    if isinstance(side, Relational):
        for name, value in ((side.lhs, side.rhs), (side.rhs, side.lhs)):
            if name.is_Symbol and name not in value.free_symbols:
                yield from _values(value, point)
    elif isinstance(side, Expr):
        exact = side.xreplace({value: Rational(str(value)) for value in side.atoms(Float)})
        yield exact.xreplace({symbol: point[symbol.name] for symbol in exact.free_symbols})
    else:
        for part in side.flat() if isinstance(side, MatrixBase) else side.args:
            yield from _values(part, point)


def _gap(pair: tuple[Any, Any], digits: int, *, otherwise: float) -> Any:
    """How far apart two numbers are; `otherwise` for infinite ones and where sympy has no value for them."""
    try:
        gap = abs((pair[0] - pair[1]).evalf(2, maxn=digits))
        return gap if gap.is_finite and gap.is_number else otherwise
    except (ArithmeticError, AttributeError, NotImplementedError, TypeError, ValueError):
        return otherwise
