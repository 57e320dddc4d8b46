"""Stage `evaluation`: one benchmark's verdicts under one decoding become a score, its parts, passes and statuses."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from storage.artifact import Part
from tasks.core.statistics import attempts_up_to, clustered_mean, majority_mean, pass_at
from tasks.core.verdict import FAILURES, Status
from tasks.stage import Context, Summary, stage

HOW = ("temperature", "top_p", "max_tokens", "sampler")
"""Columns of rollouts that say how a score was sampled."""
OTHERS = "(none)"
"""The part of prompts without a subject or level in a benchmark whose other prompts have one."""


@stage("evaluation", version=2)
def evaluation(context: Context, *, benchmark: str, prompts: Part, rollouts: Part, verdicts: Part) -> Summary:
    """Score what a completion is (correct or not), not its reward; what the verifier failed on is counted apart."""
    asked = prompts.read(["prompt_id", "revision", "subject", "level"])
    sampled = rollouts.read(["rollout_id", "prompt_id", "finish_reason", "policy", "decoding", *HOW])
    judged = verdicts.read(["rollout_id", "verifier", "verifier_version", "status", "extracted_answer"])
    samples = Samples.of(asked, sampled, judged)
    first = {name: sampled.column(name)[0].as_py() for name in sampled.column_names}
    whose = {"benchmark": benchmark, "policy": first["policy"], "decoding": first["decoding"]}
    num_prompts, num_samples = asked.num_rows, sampled.num_rows // asked.num_rows
    passes = _passes(samples, num_samples)
    parts = [part for kind in ("subject", "level") for part in _parts(samples, kind, asked.column(kind))]
    of_subjects = [part["mean"] for part in parts if part["kind"] == "subject" and part["mean"] is not None]
    score = (
        {"n": num_prompts, "k": num_samples}
        | samples.figures()
        | {
            "macro_mean": sum(of_subjects) / len(of_subjects) if of_subjects else None,
            "pass_at_k": passes[-1]["pass_at_k"],
            "maj_at_k": _number(majority_mean(samples.votes_R[samples.is_judged_R], samples.judged_prompts)),
            "num_unassigned": int((~samples.is_judged_R).sum()),
        }
    )
    provenance = {
        "scorer": f"{judged.column('verifier')[0]}@{judged.column('verifier_version')[0]}",
        "prompt_hash": prompts.digest,
        "dataset_revision": asked.column("revision")[0].as_py(),
    } | {name: first[name] for name in HOW}
    statuses = _statuses(judged.column("status"))
    for table, rows in {
        "scores": [score | provenance],
        "score_parts": parts,
        "score_passes": passes,
        "score_statuses": statuses,
    }.items():
        _add(context, table, whose, rows)
    rates = {row["status"]: row["rate"] for row in statuses}
    return (
        {"benchmark": benchmark, "decoding": first["decoding"]}
        | score
        | {"unparseable_rate": rates[Status.UNPARSEABLE], "num_parts": len(parts)}
    )


@dataclass(frozen=True, kw_only=True)
class Samples:
    """The completions of one score, R of them, with what was found of each."""

    prompt_index_R: NDArray[np.int64]
    """Row of its prompt in the prompts table."""
    is_judged_R: NDArray[np.bool_]
    """The verifier did not fail on it."""
    is_correct_R: NDArray[np.bool_]
    is_truncated_R: NDArray[np.bool_]
    """Ended by length."""
    votes_R: NDArray[np.int64]
    """Its vote, as tasks.core.statistics.majority_mean counts them."""

    @classmethod
    def of(cls, asked: pa.Table, sampled: pa.Table, judged: pa.Table) -> "Samples":
        assert sampled.column("rollout_id").equals(judged.column("rollout_id"))  # both are in key order
        status = judged.column("status")
        is_correct_R = pc.equal(status, Status.CORRECT).to_numpy()
        return cls(
            prompt_index_R=pc.index_in(sampled.column("prompt_id"), asked.column("prompt_id")).to_numpy(),
            is_judged_R=~pc.is_in(status, pa.array(list(FAILURES))).to_numpy(),
            is_correct_R=is_correct_R,
            is_truncated_R=pc.equal(sampled.column("finish_reason"), "length").to_numpy(),
            votes_R=_votes(status, judged.column("extracted_answer"), is_correct_R),
        )

    @property
    def judged_prompts(self) -> NDArray[np.int64]:
        """Prompt of each judged completion."""
        return self.prompt_index_R[self.is_judged_R]

    def figures(self, is_chosen_R: NDArray[np.bool_] | None = None) -> dict[str, float | None]:
        """Mean, standard error and truncation rate of all completions, or of the chosen ones."""
        chosen_R = np.ones_like(self.is_judged_R) if is_chosen_R is None else is_chosen_R
        scored_R = chosen_R & self.is_judged_R
        mean, stderr = None, None
        if scored_R.any():
            found = clustered_mean(self.is_correct_R[scored_R].astype(np.float64), self.prompt_index_R[scored_R])
            mean, stderr = found[0], _number(found[1])
        return {"mean": mean, "stderr": stderr, "truncation_rate": float(self.is_truncated_R[chosen_R].mean())}


def _votes(status: pa.ChunkedArray, answers: pa.ChunkedArray, is_correct_R: NDArray[np.bool_]) -> NDArray[np.int64]:
    """0 for correct; 1 and more for the wrong answers, equal texts alike; -1 for what is neither."""
    named = pc.if_else(pc.equal(status, Status.WRONG), answers, pa.scalar(None, pa.string()))
    distinct = pc.unique(pc.drop_null(named))
    index_R = pc.fill_null(pc.index_in(named, distinct, skip_nulls=True), -2).to_numpy().astype(np.int64)
    return np.where(is_correct_R, 0, index_R + 1)


def _passes(samples: Samples, num_samples: int) -> list[dict[str, Any]]:
    """Rows of score_passes: pass@1, 2, 4, ... and at the completions per prompt."""
    num_prompts = int(samples.prompt_index_R.max()) + 1
    num_samples_P = np.bincount(samples.judged_prompts, minlength=num_prompts)
    num_correct_P = np.bincount(samples.prompt_index_R[samples.is_correct_R], minlength=num_prompts)
    attempts = attempts_up_to(num_samples)
    chances = pass_at(attempts, num_correct_P, num_samples_P).tolist()
    return [{"attempts": k, "pass_at_k": _number(chance)} for k, chance in zip(attempts, chances, strict=True)]


def _parts(samples: Samples, kind: str, part_P: pa.ChunkedArray) -> list[dict[str, Any]]:
    """Rows of score_parts of one kind, in the parts' order; none where no prompt has one."""
    if part_P.null_count == len(part_P):
        return []
    names_P = np.asarray(pc.fill_null(part_P, OTHERS).to_pylist())
    return [
        {"kind": kind, "part": str(name), "n": int((names_P == name).sum())}
        | samples.figures((names_P == name)[samples.prompt_index_R])
        for name in np.unique(names_P)
    ]


def _statuses(status: pa.ChunkedArray) -> list[dict[str, Any]]:
    """Rows of score_statuses: every status, also one that no completion has."""
    counts = {row["values"]: row["counts"] for row in pc.value_counts(status).to_pylist()}
    return [
        {"status": str(name), "num_completions": counts.get(name, 0), "rate": counts.get(name, 0) / len(status)}
        for name in Status
    ]


def _add(context: Context, table: str, whose: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    from storage.schema import TABLES

    complete = [whose | row for row in rows]
    columns = {column.name: [row[column.name] for row in complete] for column in TABLES[table].columns}
    context.staging.add_table(table, columns)


def _number(value: float) -> float | None:
    """None for NaN: there is nothing to say."""
    return None if np.isnan(value) else float(value)
