"""Rows of the Hub's datasets as examples; a row that cannot be one raises ValueError with the reason."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tasks.core.verifiers.gsm8k import canonical_integer
from tasks.core.verifiers.gsm8k import gold_answer as gsm8k_answer
from tasks.core.verifiers.math import gold_answer as math_answer
from tasks.core.verifiers.numeric import plain_decimal

LETTERS = "ABCD"
"""Names of a multiple choice's options, in order."""

COUNTING_ROWS = 20
"""Rows from which on a set without any answer A is taken for one that counts from 1: by chance once in 300 sets."""


@dataclass(frozen=True)
class Example:
    """One row of a dataset, before any template."""

    row_index: int
    question: str
    answer: str
    """Gold answer in the verifier's canonical form."""
    solutions: tuple[str, ...] = ()
    """Completions to imitate in the warm start; solved examples show the first."""
    options: tuple[str, ...] = ()
    """Texts of the options A, B, ... of a multiple choice."""
    subject: str | None = None
    level: str | None = None


def gsm8k(index: int, row: dict[str, Any]) -> Example:
    """GSM8K: the answer column is a solution that ends in `#### 72`."""
    answer = gsm8k_answer(_text(row, "answer"))
    return Example(index, _text(row, "question"), answer, (row["answer"],))


def math(index: int, row: dict[str, Any]) -> Example:
    r"""MATH: the answer is the last `\boxed{...}` of the solution."""
    solution = _text(row, "solution")
    return Example(
        index,
        _text(row, "problem"),
        math_answer(solution),
        (solution,),
        subject=_text(row, "type"),
        level=_text(row, "level"),
    )


def math500(index: int, row: dict[str, Any]) -> Example:
    """MATH-500: the answer has a column of its own; the level is a number, and is written as MATH writes it."""
    return Example(
        index,
        _text(row, "problem"),
        _text(row, "answer"),
        (_text(row, "solution"),),
        subject=_text(row, "subject"),
        level=f"Level {_integer(row, 'level')}",
    )


def amc23(index: int, row: dict[str, Any]) -> Example:
    """AMC23: answers are whole numbers, which some copies write as 27.0."""
    value = row["answer"]
    answer = str(value).strip() if value is not None else ""
    if not answer or isinstance(value, bool) or answer.lower().strip("+-") in ("nan", "inf", "infinity"):
        raise ValueError(f"the column answer is {value!r}: expected a number")
    return Example(index, _text(row, "question"), canonical_integer(answer.removesuffix(".0")) or answer)


def gsm_hard(index: int, row: dict[str, Any]) -> Example:
    """GSM-HARD: the target is a float, written as a plain decimal."""
    if row["target"] is None:
        raise ValueError("the column target is empty: expected a number")
    return Example(index, _text(row, "input"), plain_decimal(row["target"]))


def medqa(index: int, row: dict[str, Any]) -> Example:
    """MedQA: the letter of the option whose text is the answer column."""
    letter, answer = _text(row, "answer_idx"), _text(row, "answer")
    options = _options([(row["options"] or {}).get(name) for name in LETTERS])
    if letter not in LETTERS or len(letter) != 1:
        raise ValueError(f"answer_idx is {letter!r}: expected one of {', '.join(LETTERS)}")
    if options[LETTERS.index(letter)] != answer:
        raise ValueError(
            f"answer_idx is {letter}, which is {options[LETTERS.index(letter)][:60]!r}, and answer is {answer[:60]!r}: "
            "expected the same text"
        )
    return Example(index, _text(row, "question"), letter, options=options)


def medmcqa(index: int, row: dict[str, Any]) -> Example:
    """MedMCQA: cop counts from 0 on the Hub. A few rows repeat an option's text (21 of validation): they are kept, and
    only the letter of the key is right, as in every published score."""
    return Example(
        index,
        _text(row, "question"),
        _letter(row, "cop"),
        options=_options([row[name] for name in ("opa", "opb", "opc", "opd")]),
        subject=(row["subject_name"] or "").strip() or None,
    )


def counts_from_zero(examples: Sequence[Example]) -> None:
    """Raise ValueError for a set whose keys never are the first option."""
    if len(examples) >= COUNTING_ROWS and all(example.answer != LETTERS[0] for example in examples):
        raise ValueError(
            f"cop is never 0 in {len(examples)} rows: this copy counts from 1, as the original files do, and every key "
            "would be off by one; the Hub's copy counts from 0"
        )


def mmlu(index: int, row: dict[str, Any]) -> Example:
    """MMLU: four choices, the answer counts from 0."""
    options = _options(row["choices"] or [])
    return Example(
        index, _text(row, "question"), _letter(row, "answer"), options=options, subject=_text(row, "subject")
    )


def _text(row: dict[str, Any], column: str) -> str:
    """The column's text without space around it."""
    text = (row[column] or "").strip()
    if not text:
        raise ValueError(f"the column {column} is empty: expected text")
    return str(text)


def _integer(row: dict[str, Any], column: str) -> int:
    if row[column] is None:
        raise ValueError(f"the column {column} is empty: expected a whole number")
    return int(row[column])


def _letter(row: dict[str, Any], column: str) -> str:
    """The letter of an option's number, which counts from 0."""
    number = _integer(row, column)
    if not 0 <= number < len(LETTERS):
        counts = ": this copy counts from 1, as the original files do" if number == len(LETTERS) else ""
        raise ValueError(f"{column} is {number}: expected 0 to {len(LETTERS) - 1}{counts}")
    return LETTERS[number]


def _options(texts: Sequence[str | None]) -> tuple[str, ...]:
    """Four texts, none of them empty."""
    options = tuple((text or "").strip() for text in texts)
    if len(options) != len(LETTERS):
        raise ValueError(f"the row has {len(options)} options: expected {len(LETTERS)}")
    empty = [letter for letter, text in zip(LETTERS, options, strict=True) if not text]
    if empty:
        raise ValueError(f"the option {empty[0]} is empty: expected text")
    return options
