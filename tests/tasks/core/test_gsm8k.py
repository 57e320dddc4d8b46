"""The gsm8k verifier: real gold rows, spellings of integers, what is refused. Its cases: test_verifiers.py."""

import time

import pytest

from tasks.core.verdict import Judgement, Status
from tasks.core.verifiers import get_verifier
from tasks.core.verifiers.gsm8k import canonical_integer, gold_answer
from tests.tasks.core.verifier_cases import HUB

ROWS = HUB / "openai" / "gsm8k" / "main"


@pytest.mark.skipif(not ROWS.is_dir(), reason=f"the stored rows of openai/gsm8k are not at {ROWS}")
@pytest.mark.parametrize("split", ["train", "test"])
def test_every_stored_gsm8k_solution_judges_itself_correct(split: str) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    solutions = [
        solution
        for file in sorted(ROWS.glob(f"{split}-*.parquet"))
        for solution in parquet.read_table(file, columns=["answer"]).column("answer").to_pylist()
    ]
    verifier = get_verifier("gsm8k")
    golds = [gold_answer(solution) for solution in solutions]
    assert len(golds) >= 500  # the hub may hold a part of the rows, but not next to none
    for solution, gold in zip(solutions, golds, strict=True):
        verifier.check_answer(gold)
        judgement = verifier.judge(solution, gold, is_truncated=False)
        assert judgement == Judgement(status=Status.CORRECT, extracted_answer=gold), solution
        # One more than the gold answer is wrong, so "correct" above is no constant.
        assert verifier.judge(solution, str(int(gold) + 1), is_truncated=False).status is Status.WRONG


@pytest.mark.parametrize("length", [100, 199, 200])
@pytest.mark.parametrize("piece", [" ", "\\,", "$", "\\$", "\\text{", "1,", "1\\,000", ".", "+", "0"])
def test_the_longest_answers_that_are_looked_at_take_under_a_hundredth_of_a_second(piece: str, length: int) -> None:
    raw = (piece * length)[: length - 1] + "x"
    start = time.process_time()
    assert canonical_integer(raw) is None
    assert time.process_time() - start < 0.01


@pytest.mark.parametrize("integer", [0, 7, -7, 999, 1000, -1000, 109_200_000, 10**39, -(10**39)])
def test_every_accepted_spelling_of_an_integer_has_the_same_canonical_form(integer: int) -> None:
    for spelling in (
        f"{integer}",
        f"{integer:,}",
        f"{integer:,}".replace(",", "{,}"),
        f"{integer:,}".replace(",", "\\,"),
        f" {integer:+,}. ",
        f"${integer:,}.00$",
        f"\\${integer}.0",
        f"\\text{{{integer}.}}",
    ):
        assert canonical_integer(spelling) == str(integer), spelling


@pytest.mark.parametrize(
    "answer", ["", " 72", "72\n", "1,200", "072", "+72", "-0", "72.0", "٧٢", "seventy-two", "9" * 41]
)
def test_gsm8k_refuses_a_gold_answer_that_is_no_canonical_integer(answer: str) -> None:
    with pytest.raises(ValueError, match=r"cannot be compared: .* expected a canonical integer .* gold_answer\(\)"):
        get_verifier("gsm8k").check_answer(answer)


@pytest.mark.parametrize("column", ["", "72", "####72", "#### ", "#### 72 clips", "#### 72\n#### none"])
def test_an_answer_column_without_a_gold_integer_is_refused(column: str) -> None:
    with pytest.raises(ValueError, match="expected '#### ' and an integer"):
        gold_answer(column)
