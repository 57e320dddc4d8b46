"""Verifiers: every stored case with its reason, real GSM8K gold rows, hostile input, and rewards."""

import doctest
import importlib
import json
import time
from pathlib import Path
from typing import Any

import pytest

from tasks.core.verdict import Judgement, Status
from tasks.core.verifiers import VERIFIERS, get_verifier
from tasks.core.verifiers.gsm8k import canonical_integer, gold_answer

CASES = Path(__file__).parent / "cases"
HUB = Path(__file__).parents[3].parent / "shared" / "hub" / "openai" / "gsm8k" / "main"
MEGABYTE = 1_000_000


def stored_cases() -> list[Any]:
    return [
        pytest.param(name, case, id=f"{name}: {case['reason']}")
        for name in sorted(VERIFIERS)
        for case in json.loads((CASES / f"{name}.json").read_text(encoding="utf-8"))
    ]


@pytest.mark.parametrize(("name", "case"), stored_cases())
def test_a_stored_case_is_judged_as_written(name: str, case: dict[str, Any]) -> None:
    judgement = get_verifier(name).judge(case["completion"], case["answer"], is_truncated=case["is_truncated"])
    expected = Judgement(status=Status(case["status"]), extracted_answer=case["extracted_answer"])
    assert judgement == expected, f"{case['reason']} ({case['provenance']})"


@pytest.mark.parametrize("name", sorted(VERIFIERS))
def test_every_stored_case_is_a_different_one_and_says_where_it_comes_from(name: str) -> None:
    cases = json.loads((CASES / f"{name}.json").read_text(encoding="utf-8"))
    assert len({(case["completion"], case["answer"], case["is_truncated"]) for case in cases}) == len(cases)
    assert all(case["provenance"] and case["reason"] for case in cases)


@pytest.mark.parametrize("name", sorted(VERIFIERS))
@pytest.mark.parametrize("status", [Status.CORRECT, Status.WRONG, Status.UNPARSEABLE, Status.TRUNCATED])
def test_every_status_a_verifier_can_give_is_among_its_stored_cases(name: str, status: Status) -> None:
    cases = json.loads((CASES / f"{name}.json").read_text(encoding="utf-8"))
    assert status in {case["status"] for case in cases}


@pytest.mark.skipif(not HUB.is_dir(), reason=f"the stored rows of openai/gsm8k are not at {HUB}")
@pytest.mark.parametrize("split", ["train", "test"])
def test_every_stored_gsm8k_solution_judges_itself_correct(split: str) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    solutions = [
        solution
        for file in sorted(HUB.glob(f"{split}-*.parquet"))
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


HOSTILE = {
    "open braces": "{" * MEGABYTE,
    "a box of open braces": "\\boxed{" + "{" * MEGABYTE,
    "a box of empty braces": "\\boxed{" + "{}" * (MEGABYTE // 2),
    "open boxes": "\\boxed{" * (MEGABYTE // 7),
    "a box of backslashes": "\\boxed{" + "\\" * MEGABYTE,
    "a box of thin spaces": "\\boxed{" + "\\," * (MEGABYTE // 2) + "}",
    "marks": "####" * (MEGABYTE // 4),
    "a mark and digits": "#### " + "9" * MEGABYTE,
    "a mark and spaces": "#### " + " " * MEGABYTE + "x",
    "a mark and groups": "#### 1" + ",000" * (MEGABYTE // 4),
    "ends of thought": "</think>" * (MEGABYTE // 8),
}


@pytest.mark.parametrize("name", sorted(VERIFIERS))
@pytest.mark.parametrize("hostile", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_megabyte_of_hostile_text_takes_under_a_second_and_is_not_stored(name: str, hostile: str) -> None:
    start = time.process_time()
    judgement = get_verifier(name).judge(hostile, "7", is_truncated=False)
    assert time.process_time() - start < 1.0  # measured 0.16 s at most; quadratic time would be hours
    assert judgement.status is Status.UNPARSEABLE
    assert len(judgement.extracted_answer or "") <= 200


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


@pytest.mark.parametrize("answer", ["", "16", "-1", " 6", "6\n", "٦", "x"])
def test_arithmetic_refuses_a_gold_answer_that_is_no_digit(answer: str) -> None:
    with pytest.raises(ValueError, match=r"cannot be compared: .* expected one digit 0-9"):
        get_verifier("arithmetic").check_answer(answer)


@pytest.mark.parametrize("name", sorted(VERIFIERS))
def test_a_bad_gold_answer_is_an_error_and_never_a_wrong_completion(name: str) -> None:
    with pytest.raises(ValueError, match="cannot be compared"):
        get_verifier(name).judge("#### 1,200", "1,200", is_truncated=False)


@pytest.mark.parametrize("column", ["", "72", "####72", "#### ", "#### 72 clips", "#### 72\n#### none"])
def test_an_answer_column_without_a_gold_integer_is_refused(column: str) -> None:
    with pytest.raises(ValueError, match="expected '#### ' and an integer"):
        gold_answer(column)


def test_verifiers_are_found_by_their_own_names() -> None:
    assert {name: get_verifier(name).name for name in VERIFIERS} == {name: name for name in VERIFIERS}


@pytest.mark.parametrize(("typed", "meant"), [("gsm8", "gsm8k"), ("GSM8K", "gsm8k"), ("arithmetics", "arithmetic")])
def test_an_unknown_name_is_answered_with_the_nearest_one(typed: str, meant: str) -> None:
    with pytest.raises(ValueError, match=f"'{typed}' does not exist: .* the nearest is '{meant}'"):
        get_verifier(typed)


@pytest.mark.parametrize("module", ["verdict", "verifiers", "verifiers.arithmetic", "verifiers.gsm8k"])
def test_the_examples_in_the_docstrings_are_true(module: str) -> None:
    failed, attempted = doctest.testmod(importlib.import_module(f"tasks.core.{module}"))
    assert (failed, attempted > 0) == (0, True)
