"""Equal to the last digit: a number is not that number plus the smallest one, however both are written."""

import pytest
import sympy as sp

from tasks.engines.exactness import differ_slightly

X, Y = sp.symbols("x y")
WRITTEN_TWICE = [
    (sp.sqrt(3 + 2 * sp.sqrt(2)), 1 + sp.sqrt(2)),
    (3 * sp.log(2), sp.log(8, evaluate=False)),
    (sp.cos(sp.pi / 7) - sp.cos(2 * sp.pi / 7) + sp.cos(3 * sp.pi / 7), sp.Rational(1, 2)),
    ((1 + sp.I) ** 10, 32 * sp.I),
    (sp.Float("0.1") * sp.pi, sp.pi / 10),
    (sp.cos(2 * X), sp.cos(X) ** 2 - sp.sin(X) ** 2),
    ((X**2 - Y**2) / (X - Y), X + Y),
]


@pytest.mark.parametrize(("one", "other"), WRITTEN_TWICE)
def test_one_number_written_twice_does_not_differ_and_with_a_small_one_more_it_does(one, other) -> None:
    holders = [
        lambda value: value,
        lambda value: sp.FiniteSet(5, value),
        lambda value: sp.Tuple(value, 5),
        lambda value: sp.Matrix([[1, value]]),
        lambda value: sp.Eq(sp.Symbol("z"), value),
    ]
    for held in holders:
        assert not differ_slightly(held(one), held(other))
        for small in (sp.Rational(1, 10**17), sp.exp(-50), 1 / sp.factorial(99)):
            assert differ_slightly(held(one), held(other + small))
            assert differ_slightly(held(other * (1 - small)), held(one))


def test_what_is_far_apart_or_has_no_value_is_left_to_the_rules_of_algebra() -> None:
    function = sp.Function("f")
    for one, other in [
        (X, sp.Abs(-X) + 1),
        (sp.oo, sp.oo),
        (sp.zoo, sp.nan),
        (function(X), function(X)),
        (X, sp.Integer(1)),
    ]:
        assert not differ_slightly(one, other)


def test_an_equation_may_be_arranged_in_another_way() -> None:
    small = sp.Rational(1, 2 * 10**7)
    assert not differ_slightly(sp.Eq(Y, small * X), sp.Eq(Y - small * X, 0))
    assert not differ_slightly(sp.Eq(Y, small * X), sp.Eq(Y / small - X, 0))
    assert differ_slightly(sp.Eq(Y, small * X), sp.Eq(Y, small * X + small**2))
    assert differ_slightly(sp.sqrt(2) < X, sp.sqrt(2) + small < X)


def test_factorials_of_variables_are_worked_out_for_whole_numbers() -> None:
    """1,000 digits of the gamma function cost seconds: a right answer would end at the time limit."""
    choices = sp.factorial(Y) / (sp.factorial(X) * sp.factorial(Y - X))
    assert not differ_slightly(sp.binomial(Y, X), choices)
    assert differ_slightly(sp.binomial(Y, X), choices + sp.exp(-50))
