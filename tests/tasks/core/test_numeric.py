"""The numeric verifier: its bounds, gold answers, real targets of GSM-HARD. Its cases: test_verifiers.py."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.core.verdict import Status
from tasks.core.verifiers import get_verifier
from tasks.core.verifiers.numeric import is_close, number_text, plain_decimal, read_number
from tests.tasks.core.verifier_cases import HUB

NUMERIC = get_verifier("numeric")
ROWS = HUB / "reasoning-machines" / "gsm-hard" / "data"


def test_the_bounds_themselves_are_within_the_tolerance() -> None:
    beyond = Fraction(1, 10**12)
    for gold, bound in ((1, "0.001"), (5, "0.001"), (10, "0.001"), (20, "0.002"), ("0.5", "0.00005"), (-1, "0.001")):
        for sign in (1, -1):
            assert is_close(Fraction(gold) + sign * Fraction(bound), Fraction(gold)), (gold, bound)
            assert not is_close(Fraction(gold) + sign * (Fraction(bound) + beyond), Fraction(gold)), (gold, bound)


def test_no_float_is_involved() -> None:
    # 1.001 - 1 is 0.0009999999999998899 in floats, and 0.1 + 0.2 is not 0.3: exact fractions know no such bound.
    assert is_close(Fraction("1.001"), Fraction(1))
    assert not is_close(Fraction("1.00100000000000001"), Fraction(1))
    assert str(read_number("9" * 60)) == "9" * 60
    assert read_number("9" * 61) is None


@pytest.mark.parametrize(
    "answer", ["", "1e5", "1,200", "+1", "01", "-0", "-0.0", ".5", "1.", "1/2", "inf", "\u0661", "9" * 200]
)
def test_a_gold_answer_that_is_no_plain_decimal_is_refused(answer: str) -> None:
    with pytest.raises(ValueError, match=r"cannot be compared: .* expected a plain decimal .* plain_decimal\(\)"):
        NUMERIC.check_answer(answer)


@pytest.mark.parametrize(
    ("target", "text"),
    [
        (3.509e-07, "0.0000003509"),
        (9284017268534.4, "9284017268534.4"),
        (5.0, "5"),
        (-0.0, "0"),
        (1e22, "1" + "0" * 22),
    ],
)
def test_a_float_is_printed_as_a_plain_decimal(target: float, text: str) -> None:
    assert plain_decimal(target) == text


@given(
    st.floats(allow_nan=False, allow_infinity=False, min_value=-1e30, max_value=1e30).filter(
        lambda x: not 0 < abs(x) < 1e-30
    )
)
def test_a_printed_float_is_that_float_and_a_gold_answer(target: float) -> None:
    text = plain_decimal(target)
    assert float(text) == target
    NUMERIC.check_answer(text)
    assert number_text(Fraction(text)) == text


@pytest.mark.parametrize("target", [float("inf"), float("-inf"), float("nan")])
def test_a_target_that_is_no_number_is_refused(target: float) -> None:
    with pytest.raises(ValueError, match="expected a finite number"):
        plain_decimal(target)


@pytest.mark.skipif(not ROWS.is_dir(), reason=f"the stored rows of reasoning-machines/gsm-hard are not at {ROWS}")
def test_every_stored_gsm_hard_target_judges_itself_correct() -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    targets = [
        target
        for file in sorted(ROWS.glob("*.parquet"))
        for target in parquet.read_table(file, columns=["target"]).column("target").to_pylist()
    ]
    assert len(targets) >= 500
    assert sum("e" in repr(target) for target in targets) >= 10  # repr() alone would print exponents
    for target in targets:
        gold = plain_decimal(target)
        NUMERIC.check_answer(gold)
        judgement = NUMERIC.judge(f"So \\boxed{{{gold}}}.", gold, is_truncated=False)
        assert (judgement.status, judgement.extracted_answer) == (Status.CORRECT, gold)
        # Off by a thousandth of itself and a hundredth: beyond both bounds.
        away = Fraction(1, 100) if target >= 0 else Fraction(-1, 100)
        off = number_text(Fraction(gold) * Fraction(1001, 1000) + away)
        assert NUMERIC.judge(f"So \\boxed{{{off}}}.", gold, is_truncated=False).status is Status.WRONG
