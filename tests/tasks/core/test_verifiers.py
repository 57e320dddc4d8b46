"""Verifiers: every stored case with its reason, hostile input, names and versions, rewards."""

import doctest
import importlib
import json
import time
from typing import Any

import pytest

from tasks.core.verdict import FAILURES, Status
from tasks.core.verifiers import VERIFIERS, get_verifier
from tests.tasks.core.verifier_cases import CASES, arguments_of, completion_of, expected_of, load_cases

MEGABYTE = 1_000_000
NAMES = ("arithmetic", "choice", "exact", "gsm8k", "math", "numeric", "paper_medqa")
GOLDS = {"choice": "C", "exact": "abc", "paper_medqa": "A"}
OPTIONS = ("Aspirin", "Heparin", "Warfarin")


def test_the_registry_holds_these_verifiers_and_each_has_its_cases() -> None:
    assert tuple(sorted(VERIFIERS)) == NAMES
    assert sorted(file.stem for file in CASES.glob("*.json")) == list(NAMES)
    assert {name: get_verifier(name).name for name in VERIFIERS} == {name: name for name in NAMES}


@pytest.mark.parametrize(
    ("name", "case"),
    [pytest.param(name, case, id=f"{name}: {case['reason']}") for name in NAMES for case in load_cases(name)],
)
def test_a_stored_case_is_judged_as_written(name: str, case: dict[str, Any]) -> None:
    judgement = get_verifier(name).judge(completion_of(case), case["answer"], **arguments_of(case))
    assert judgement == expected_of(case), f"{case['reason']} ({case['provenance']})"


@pytest.mark.parametrize("name", NAMES)
def test_every_stored_case_is_a_different_one_and_says_where_it_comes_from(name: str) -> None:
    cases = load_cases(name)
    judged = ("completion", "answer", "options", "is_truncated")
    assert len({json.dumps([case.get(key) for key in judged]) for case in cases}) == len(cases)
    assert all(case["provenance"] and case["reason"] for case in cases)


@pytest.mark.parametrize("name", NAMES)
def test_every_status_a_verifier_can_give_is_among_its_stored_cases(name: str) -> None:
    given = {str(status) for status in Status if status not in FAILURES}
    if name == "paper_medqa":
        given -= {"unparseable"}  # whatever a completion says, some option is the most similar one
    if name == "math":
        given |= {"comparison"}
    assert {case["status"] for case in load_cases(name)} == given


def test_there_are_hundreds_of_cases_and_a_third_of_them_are_adversarial() -> None:
    cases = [case for name in NAMES for case in load_cases(name)]
    assert len(cases) >= 600
    assert sum(case.get("adversarial", False) for case in cases) >= 200


HOSTILE = {
    "open braces": "{" * MEGABYTE,
    "a box of open braces": "\\boxed{" + "{" * MEGABYTE,
    "a box of empty braces": "\\boxed{" + "{}" * (MEGABYTE // 2),
    "open boxes": "\\boxed{" * (MEGABYTE // 7),
    "a box of backslashes": "\\boxed{" + "\\" * MEGABYTE,
    "a box of thin spaces": "\\boxed{" + "\\," * (MEGABYTE // 2) + "}",
    "boxes and spaces": "\\boxed" + " " * MEGABYTE,
    "comments and boxes": "%\\boxed{\n" * (MEGABYTE // 9),
    "digits before percent signs": "5 " * (MEGABYTE // 4) + "%" + "5 " * (MEGABYTE // 4),
    "marks": "####" * (MEGABYTE // 4),
    "a mark and digits": "#### " + "9" * MEGABYTE,
    "a mark and spaces": "#### " + " " * MEGABYTE + "x",
    "a mark and groups": "#### 1" + ",000" * (MEGABYTE // 4),
    "phrases": "answer is " * (MEGABYTE // 10),
    "phrases and stars": "answer" + "*" * (MEGABYTE // 2) + " " * (MEGABYTE // 2) + "is",
    "phrases taken back": "not answer is A " * (MEGABYTE // 16),
    "sentences": ". " * (MEGABYTE // 2),
    "ends of thought": "</think>" * (MEGABYTE // 8),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("hostile", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_megabyte_of_hostile_text_takes_seconds_and_is_not_stored(name: str, hostile: str) -> None:
    start = time.process_time()
    judgement = get_verifier(name).judge(hostile, GOLDS.get(name, "7"), is_truncated=False, options=OPTIONS)
    assert time.process_time() - start < 3.0  # measured 0.6 s at most; quadratic time would be hours
    # paper_medqa always chooses an option, and to exact all text is an answer.
    assert judgement.status is Status.UNPARSEABLE or name in ("exact", "paper_medqa")
    assert len(judgement.extracted_answer or "") <= 200


@pytest.mark.parametrize("answer", ["", "16", "-1", " 6", "6\n", "٦", "x"])
def test_arithmetic_refuses_a_gold_answer_that_is_no_digit(answer: str) -> None:
    with pytest.raises(ValueError, match=r"cannot be compared: .* expected one digit 0-9"):
        get_verifier("arithmetic").check_answer(answer)


@pytest.mark.parametrize("answer", ["", " abc", "abc\n"])
def test_exact_refuses_a_gold_answer_that_no_completion_could_equal(answer: str) -> None:
    with pytest.raises(ValueError, match=r"cannot be compared: .* expected a string that is not empty"):
        get_verifier("exact").check_answer(answer)


@pytest.mark.parametrize("name", NAMES)
def test_a_bad_gold_answer_is_an_error_and_never_a_wrong_completion(name: str) -> None:
    with pytest.raises(ValueError, match="cannot be compared"):
        get_verifier(name).judge("#### 1,200", "", is_truncated=False, options=OPTIONS)


@pytest.mark.parametrize(
    ("typed", "meant"), [("gsm8", "gsm8k"), ("GSM8K", "gsm8k"), ("arithmetics", "arithmetic"), ("maths@1", "math")]
)
def test_an_unknown_name_is_answered_with_the_nearest_one(typed: str, meant: str) -> None:
    with pytest.raises(ValueError, match=f"'{typed.partition('@')[0]}' does not exist: .* the nearest is '{meant}'"):
        get_verifier(typed)


def test_a_name_may_ask_for_the_version_there_is_and_for_no_other() -> None:
    assert get_verifier("math@2") is get_verifier("math")
    for typed in ("math@1", "math@", "math@02", "math@2@2"):
        with pytest.raises(ValueError, match=f"{typed!r} does not exist: this release has version 2 of 'math'"):
            get_verifier(typed)


def test_only_the_papers_rule_warns() -> None:
    assert [name for name in NAMES if get_verifier(name).warning] == ["paper_medqa"]
    assert "an empty answer is right as often as a guess" in get_verifier("paper_medqa").warning


MODULES = sorted(file.stem for file in (CASES.parents[3] / "tasks" / "core" / "verifiers").glob("*.py"))


@pytest.mark.parametrize(
    "module", ["verdict", "verifiers", *(f"verifiers.{name}" for name in MODULES if name != "__init__")]
)
def test_the_examples_in_the_docstrings_are_true(module: str) -> None:
    failed, attempted = doctest.testmod(importlib.import_module(f"tasks.core.{module}"))
    assert (failed, attempted > 0 or module.endswith("latex_commands")) == (0, True)
