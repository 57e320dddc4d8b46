"""Stage `verification`: every completion gets a verdict; a verifier that fails is a status, never a wrong answer."""

import time

from storage.artifact import Part
from tasks.core.verdict import MAX_EXTRACTED_CHARACTERS, Judgement, Status, Verifier
from tasks.core.verifiers import get_verifier
from tasks.stage import Context, Summary, stage
from tasks.verification_config import VerificationConfig


@stage("verification", version=1)
def verification(
    context: Context,
    *,
    rollouts: Part,
    prompts: Part,
    verifier: str,
    verifier_version: int,
    config: VerificationConfig = VerificationConfig(),  # noqa: B008 (frozen)
) -> Summary:
    """Judge each completion's text against its prompt's answer."""
    judge = get_verifier(verifier)
    assert judge.version == verifier_version
    table = prompts.read(["prompt_id", "answer"])
    answers = dict(zip(table.column("prompt_id").to_pylist(), table.column("answer").to_pylist(), strict=True))
    rows = rollouts.read(["rollout_id", "group_id", "prompt_id", "text", "finish_reason"]).to_pylist()
    judgements, failures, seconds = [], [], []
    for row in rows:
        started = time.perf_counter()
        is_truncated = row["finish_reason"] == "length"
        judgement, failure = _judge(judge, row["text"], answers[row["prompt_id"]], is_truncated)
        judgements.append(judgement)
        failures += [f"{row['rollout_id']}: {failure}"] if failure else []
        seconds.append(time.perf_counter() - started)
    settings = config.rewards
    rewards = [None if j.status in settings.unassigned else getattr(settings, j.status) for j in judgements]
    context.staging.add_table(
        "verdicts",
        {
            "rollout_id": [row["rollout_id"] for row in rows],
            "group_id": [row["group_id"] for row in rows],
            "verifier": [verifier] * len(rows),
            "verifier_version": [verifier_version] * len(rows),
            "status": [str(judgement.status) for judgement in judgements],
            "reward": rewards,
            "extracted_answer": [judgement.extracted_answer for judgement in judgements],
            "failure": [None] * len(rows),
            "num_attempts": [1] * len(rows),
            "seconds": seconds,
        },
    )
    assigned = [reward for reward in rewards if reward is not None]
    accuracy = sum(assigned) / len(assigned) if assigned else None
    return {
        "accuracy": None if accuracy is None else round(accuracy, 4),
        "unassigned": len(rewards) - len(assigned),
        "first_failure": failures[0] if failures else None,
    }


def _judge(verifier: Verifier, completion: str, answer: str, is_truncated: bool) -> tuple[Judgement, str | None]:
    """The judgement and, when the verifier itself failed, why: its bug is a status and never a wrong answer."""
    try:
        return verifier.judge(completion, answer, is_truncated=is_truncated), None
    except MemoryError as error:
        status, failure = Status.OUT_OF_MEMORY, f"{type(error).__name__}: {error}"
    except Exception as error:
        status, failure = Status.CRASHED, f"{type(error).__name__}: {error}"
    return Judgement(status=status, extracted_answer=None), failure[:MAX_EXTRACTED_CHARACTERS]
