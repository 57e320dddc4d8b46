"""Stage `verification`: every completion gets a verdict; a verifier that fails is a status, never a wrong answer."""

from collections import Counter
from collections.abc import Iterator

import pyarrow as pa

from storage.artifact import Part
from tasks.core.verdict import Status
from tasks.core.verifiers import get_verifier
from tasks.judges import Row, Verdict
from tasks.registry import DATASETS
from tasks.stage import Context, Summary, stage
from tasks.templates import own_answer
from tasks.verification_config import FAILURES, VerificationConfig, reward_of

COLUMNS = ["prompt_id", "dataset", "template", "prompt_text", "question", "answer", "options"]


@stage("verification", version=3)
def verification(
    context: Context,
    *,
    rollouts: Part,
    prompts: Part,
    verifier: str,
    verifier_version: int,
    config: VerificationConfig,
) -> Summary:
    """Judge each completion's text against its prompt's answer."""
    judge = get_verifier(verifier)
    assert judge.version == verifier_version
    rows = rollouts.read(["rollout_id", "group_id", "prompt_id", "text", "finish_reason"])
    verdicts: list[Verdict] = []
    for verdict in context.judges.judge(judge, _rows(rows, prompts), config):
        verdicts.append(verdict)
        context.progress(len(verdicts), rows.num_rows)
    statuses = [verdict.judgement.status for verdict in verdicts]
    rewards = [reward_of(status, config.rewards) for status in statuses]
    context.staging.add_table(
        "verdicts",
        {
            "rollout_id": rows.column("rollout_id"),
            "group_id": rows.column("group_id"),
            "verifier": [verifier] * rows.num_rows,
            "verifier_version": [verifier_version] * rows.num_rows,
            "status": [str(status) for status in statuses],
            "reward": rewards,
            "extracted_answer": [verdict.judgement.extracted_answer for verdict in verdicts],
            "failure": [verdict.failure for verdict in verdicts],
            "num_attempts": [verdict.num_attempts for verdict in verdicts],
            "seconds": [verdict.seconds for verdict in verdicts],
        },
    )
    counts = Counter(statuses)
    judged = sum(number for status, number in counts.items() if status not in FAILURES)
    return {
        "accuracy": round(counts[Status.CORRECT] / judged, 4) if judged else None,
        "unassigned": rewards.count(None),
    } | _failures(rows, verdicts, counts)


def _rows(rows: pa.Table, prompts: Part) -> Iterator[Row]:
    asked = {row["prompt_id"]: row for row in prompts.read(COLUMNS).to_pylist()}
    for row in rows.select(["prompt_id", "text", "finish_reason"]).to_pylist():
        prompt = asked[row["prompt_id"]]
        text = own_answer(row["text"], DATASETS[prompt["dataset"]], prompt)
        yield Row(
            completion=text,
            answer=prompt["answer"],
            is_truncated=row["finish_reason"] == "length" and text == row["text"],
            options=tuple(prompt["options"] or ()),
        )


def _failures(rows: pa.Table, verdicts: list[Verdict], counts: Counter[Status]) -> Summary:
    """How many verdicts failed in which way, and the first of them."""
    failed = [i for i, verdict in enumerate(verdicts) if verdict.failure is not None]
    first = f"{rows.column('rollout_id')[failed[0]]}: {verdicts[failed[0]].failure}" if failed else None
    return {status: counts[Status(status)] for status in FAILURES if counts[Status(status)]} | {"first_failure": first}
