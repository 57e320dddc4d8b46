"""Multiple choice: what `choice` and the paper's rule refuse, and what they make of MedQA. Cases: test_verifiers.py."""

import json
from typing import Any

import pytest

from tasks.core.verdict import Status
from tasks.core.verifiers import get_verifier
from tests.tasks.core.verifier_cases import HUB

CHOICE, PAPER = get_verifier("choice"), get_verifier("paper_medqa")
MEDQA = HUB / "GBaker" / "MedQA-USMLE-4-options" / "phrases_no_exclude_test.jsonl"
needs_medqa = pytest.mark.skipif(not MEDQA.is_file(), reason=f"the stored rows of MedQA are not at {MEDQA}")


@pytest.mark.parametrize("verifier", [CHOICE, PAPER])
@pytest.mark.parametrize("answer", ["", "c", "C.", "AB", "\u0421", "1", " C"])
def test_a_gold_answer_that_is_no_letter_is_refused(verifier: Any, answer: str) -> None:
    with pytest.raises(ValueError, match=r"cannot be compared: .* expected the letter of an option"):
        verifier.check_answer(answer)


@pytest.mark.parametrize("verifier", [CHOICE, PAPER])
def test_a_gold_letter_beyond_the_options_is_refused(verifier: Any) -> None:
    with pytest.raises(
        ValueError, match=r"expected one of the question's 3 options, A to C; .* its index may start at 1"
    ):
        verifier.judge("D", "D", is_truncated=False, options=["Aspirin", "Heparin", "Warfarin"])


def test_the_papers_rule_needs_options() -> None:
    with pytest.raises(ValueError, match=r"options: expected the texts .* got none; .* choose the verifier `choice`"):
        PAPER.judge("Aspirin", "A", is_truncated=False)


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    stored = [json.loads(line) for line in MEDQA.read_text(encoding="utf-8").splitlines()]
    assert len(stored) >= 500
    return stored


def share_correct(verifier: Any, completion: str, rows: list[dict[str, Any]]) -> float:
    judgements = [
        verifier.judge(completion, row["answer_idx"], is_truncated=False, options=list(row["options"].values()))
        for row in rows
    ]
    return sum(judgement.status is Status.CORRECT for judgement in judgements) / len(rows)


@needs_medqa
def test_the_papers_rule_pays_for_nothing_and_for_guesses_and_choice_does_not(rows: list[dict[str, Any]]) -> None:
    share = {letter: sum(row["answer_idx"] == letter for row in rows) / len(rows) for letter in "AC"}
    # Measured on the 637 rows: 173 have the answer A, 172 the answer C; 158 are paid for "The answer is C.".
    assert share_correct(PAPER, "", rows) == share["A"]
    assert share_correct(CHOICE, "", rows) == 0
    assert share_correct(CHOICE, "The answer is C.", rows) == share["C"]
    guessed = share_correct(PAPER, "The answer is C.", rows)
    assert 0.2 < guessed < 0.3
    assert guessed != share["C"]  # the letter itself has no say


@needs_medqa
def test_every_stored_medqa_answer_is_right_in_every_honest_form_and_no_other_letter_is(
    rows: list[dict[str, Any]],
) -> None:
    forms = (
        "\\boxed{{{0}}}",
        "\\boxed{{{0}. {1}}}",
        "The answer is {0}.",
        "Answer: ({0}) {1}",
        "So:\n\n**{0}**",
        "({0}) {1}",
    )
    for row in rows:
        options = list(row["options"].values())
        for letter, text in row["options"].items():
            expected = Status.CORRECT if letter == row["answer_idx"] else Status.WRONG
            for form in forms:
                completion = form.format(letter, " ".join(text.split()))
                judgement = CHOICE.judge(completion, row["answer_idx"], is_truncated=False, options=options)
                assert (judgement.status, judgement.extracted_answer) == (expected, letter), completion
        listed = "\n".join(f"{letter}. {text}" for letter, text in row["options"].items())
        judgement = CHOICE.judge(listed, row["answer_idx"], is_truncated=False, options=options)
        assert judgement.status is Status.UNPARSEABLE
