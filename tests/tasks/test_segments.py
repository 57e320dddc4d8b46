"""Completions of several segments, from the stored mask to the policy: a tool's tokens between two of the policy's."""

from typing import Any

import numpy as np

from storage.artifact import Part
from tasks.stage import Context, Summary, stage

Loop = Any  # the class of conftest.py, which a test module cannot import
FIRST, LAST = 1, 3


@stage("tools", version=1)
def tools(context: Context, *, rollouts: Part) -> Summary:
    """The rollouts again, with two different first tokens a group, and a tool's output of two tokens after them."""
    rows = rollouts.read()
    tokens = [
        [3 + i % 2, 5, 5, *sampled[LAST:]][: len(sampled)]
        for i, sampled in enumerate(rows.column("token_ids").to_pylist())
    ]
    masks = [[not FIRST <= t < LAST for t in range(len(completion))] for completion in tokens]
    columns = {name: rows.column(name) for name in rows.column_names}
    context.staging.add_table("rollouts", columns | {"token_ids": tokens, "loss_mask": masks})
    return {}


def prepared(loop: Loop) -> None:
    loop.sample("sampled", "policy", step=1)
    loop("rollouts", tools, rollouts=loop.part("sampled", "rollouts"))
    loop.judge("verdicts", "rollouts")


def test_td_counts_on_both_sides_of_a_tools_output_and_nothing_is_learned_from_it(fresh: Loop) -> None:
    prepared(fresh)
    fresh.credit("credit", "rollouts", "verdicts")
    before = after = 0
    for row in fresh.rows("credit", "advantages"):
        before += sum(t < FIRST for t in row["td_positions"])
        after += sum(t >= LAST for t in row["td_positions"])
    assert before > 0
    assert after > 0  # groups part again behind the tool's output, and have credit there
    fresh.train("training", "policy", "rollouts", "credit", updates=1)
    (update,) = fresh.rows("training", "updates")
    lengths = np.array([len(row["token_ids"]) for row in fresh.rows("rollouts", "rollouts")])
    assert update["num_tokens"] == (lengths - np.clip(lengths - FIRST, 0, LAST - FIRST)).sum()


def test_what_the_tool_said_is_context_and_no_target(fresh: Loop) -> None:
    """The sampler's numbers beside a tool's tokens change nothing of the update."""
    prepared(fresh)
    fresh.credit("credit", "rollouts", "verdicts", estimator="dr_grpo")

    @stage("numbers", version=1)
    def other_numbers(context: Context, *, rollouts: Part) -> Summary:
        rows = rollouts.read()
        columns: dict[str, Any] = {name: rows.column(name) for name in rows.column_names}
        columns["sampler_logprobs"] = [
            [-9.0 if FIRST <= t < LAST else logprob for t, logprob in enumerate(logprobs)]
            for logprobs in rows.column("sampler_logprobs").to_pylist()
        ]
        context.staging.add_table("rollouts", columns)
        return {}

    fresh("marked", other_numbers, rollouts=fresh.part("rollouts", "rollouts"))
    for name in ("rollouts", "marked"):
        fresh.train(f"trained on {name}", "policy", name, "credit", updates=1)
    digests = {fresh.part(f"trained on {name}", "checkpoint").digest for name in ("rollouts", "marked")}
    assert len(digests) == 1
    assert digests != {fresh.part("policy", "checkpoint").digest}
