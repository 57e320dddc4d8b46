"""Our verdicts beside those of lm-eval, verl and math-verify, on recorded and on written completions.

completions.jsonl   what is judged (record.py says how it was made)
verdicts.json       what our verifiers say of each: status and answer
disagreements.json  where a peer says otherwise, every one with its reason, and the table of agreement
"""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tasks.core.verifiers import get_verifier
from tasks.judges import Judges, Row
from tasks.verification_config import VerificationConfig

HERE = Path(__file__).parent
PEERS = Path(os.environ.get("TEMPO_COMPARED_PEERS", HERE.parents[1] / ".venv-peers" / "verifiers"))
"""Where the slow test finds lm-eval and verl, or installs them."""


def stored(name: str) -> Any:
    return json.loads((HERE / name).read_text(encoding="utf-8"))


def completions() -> list[dict[str, Any]]:
    lines = (HERE / "completions.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def verdicts() -> dict[str, list[str | None]]:
    """Status and extracted answer of every completion, as a run has them."""
    judges, said = Judges(), {}
    config = VerificationConfig(workers=1, timeout_seconds=60)
    for row in completions():
        name = row["dataset"] if row["dataset"] in ("gsm8k", "math") else "choice"
        options = tuple(text or "" for text in row.get("options", ()))
        asked = {"completion": row["completion"], "answer": row["gold"], "is_truncated": row["is_truncated"]}
        (verdict,) = judges.judge(get_verifier(name), [Row(**asked, options=options)], config)
        said[row["id"]] = [verdict.judgement.status.value, verdict.judgement.extracted_answer]
    judges.close()
    return said


def test_our_verdicts_on_every_completion_are_the_stored_ones(verdicts: dict[str, list[str | None]]) -> None:
    assert verdicts == stored("verdicts.json")


def test_a_verdict_is_right_on_every_written_completion_but_those_listed() -> None:
    # `is_right` is what a mathematician would say; where a verifier says otherwise on purpose, the file says why.
    verdicts, misjudged = stored("verdicts.json"), stored("disagreements.json")["misjudged"]
    listed = sorted(id for entry in misjudged for id in entry["ids"])
    written = [row for row in completions() if "is_right" in row]
    assert [row["id"] for row in written if (verdicts[row["id"]][0] == "correct") != row["is_right"]] == listed


def test_every_disagreement_has_one_reason_that_is_explained() -> None:
    fixture, known = stored("disagreements.json"), {row["id"] for row in completions()}
    reasons, entries = fixture["reasons"], fixture["disagreements"]
    pairs = Counter((entry["peer"], id) for entry in entries for id in entry["ids"])
    assert {pair for pair, count in pairs.items() if count > 1 or pair[1] not in known} == set()
    used = {entry["reason"] for entry in [*entries, *fixture["misjudged"]]}
    assert used == set(reasons)
    assert all(reasons.values())


def peers_verdicts() -> dict[str, dict[str, bool]]:
    command = [sys.executable, str(HERE / "peers.py")]
    if not (PEERS / "lm_eval").is_dir():
        installed = subprocess.run([*command, "--setup", str(PEERS)], capture_output=True, text=True, check=False)
        if installed.returncode:
            pytest.skip(f"lm-eval and verl are not in {PEERS} and cannot be installed: {installed.stderr[-300:]}")
    with (HERE / "completions.jsonl").open() as rows:
        said = subprocess.run([*command, str(PEERS)], stdin=rows, capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr
    verdicts: dict[str, dict[str, bool]] = json.loads(said.stdout)
    return verdicts


@pytest.mark.slow
def test_we_disagree_with_lm_eval_verl_and_math_verify_where_the_fixture_says_and_nowhere_else(
    verdicts: dict[str, list[str | None]],
) -> None:
    fixture, ours = stored("disagreements.json"), {id: status == "correct" for id, (status, _) in verdicts.items()}
    listed = {(entry["peer"], id, entry["ours"]) for entry in fixture["disagreements"] for id in entry["ids"]}
    found, table = set(), []
    for peer, theirs in peers_verdicts().items():
        found |= {(peer, id, "lenient" if ours[id] else "strict") for id in theirs if ours[id] != theirs[id]}
        table.append(agreement(peer, theirs, ours))
    print("\n" + "\n".join(agreement_line(row) for row in table))
    assert found - listed == set(), "new: give each a reason in disagreements.json"
    assert listed - found == set(), "gone: take them out of disagreements.json"
    assert table == fixture["table"]


def agreement(peer: str, theirs: dict[str, bool], ours: dict[str, bool]) -> dict[str, Any]:
    """The peer's row of the table: how many verdicts agree, of how many, and who is stricter where they do not."""
    recorded = [ours[id] == said for id, said in theirs.items() if id.startswith("smollm2")]
    written = [ours[id] == said for id, said in theirs.items() if id.startswith("written")]
    return {
        "peer": peer,
        "recorded": [sum(recorded), len(recorded)],
        "written": [sum(written), len(written)],
        "stricter": sum(said and not ours[id] for id, said in theirs.items()),
        "more lenient": sum(ours[id] and not said for id, said in theirs.items()),
    }


def agreement_line(row: dict[str, Any]) -> str:
    (agreed, recorded), (agreed_written, written) = row["recorded"], row["written"]
    shares = f"{agreed:3} of {recorded} recorded ({agreed / recorded:5.1%}), {agreed_written:3} of {written} written"
    return (
        f"{row['peer']:51} agrees on {shares}; ours stricter {row['stricter']:2}, more lenient {row['more lenient']:3}"
    )
