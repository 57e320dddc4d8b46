"""The stored cases of the verifiers: cases/*.json, one file a verifier.

A case's completion is a string, or a list of strings and {"repeat": [text, count]}, so that no megabyte is stored. Its
status is what the verifier says; "comparison" stands for a pair that needs algebra, with the status that the algebra
system must lead to under "algebra". "adversarial" marks the cases that would pay a policy for something else than the
right answer.
"""

import json
from pathlib import Path
from typing import Any

from tasks.core.verdict import Comparison, Judgement, Status

CASES = Path(__file__).parent / "cases"
HUB = Path(__file__).parents[3].parent / "shared" / "hub"


def load_cases(name: str) -> list[dict[str, Any]]:
    return json.loads((CASES / f"{name}.json").read_text(encoding="utf-8"))


def completion_of(case: dict[str, Any]) -> str:
    pieces = case["completion"]
    if isinstance(pieces, str):
        return pieces
    return "".join(piece if isinstance(piece, str) else piece["repeat"][0] * piece["repeat"][1] for piece in pieces)


def arguments_of(case: dict[str, Any]) -> dict[str, Any]:
    return {"is_truncated": case["is_truncated"], "options": case.get("options", ())}


def expected_of(case: dict[str, Any]) -> Judgement | Comparison:
    if case["status"] == "comparison":
        return Comparison(**case["pair"])
    return Judgement(status=Status(case["status"]), extracted_answer=case["extracted_answer"])
