"""A refused update: its mini-batch is kept as evidence, and the error says which query shows it."""

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from storage.evidence import keep_evidence, sql_command
from storage.parquet import list_array
from storage.schema import FLOATS
from tasks.place import Context

if TYPE_CHECKING:
    from tasks.core.objective import Objective
    from tasks.engines.batch import Batch
    from tasks.engines.policy import Policy

MICRO_BATCH_TOKENS = 4096
STATEMENT = (
    "SELECT rollout_id, loss, list_min(trainer_logprobs) AS trainer_logprob, list_min(sampler_logprobs) AS "
    "sampler_logprob, list_max(advantages) AS advantage{critic} "
    "FROM FILE ORDER BY isfinite(loss), abs(loss) DESC LIMIT 10"
)
"""The mini-batch's completions, those first whose loss is not finite, then by size: smallest logprobs, largest rest."""
OF_CRITIC = ', list_max("values") AS "value", list_max(token_returns) AS token_return'


def refused(
    context: Context,
    error: FloatingPointError,
    policy: "Policy",
    batch: "Batch",
    rollout_ids: list[str],
    objective: "Objective",
    update: int,
) -> FloatingPointError:
    """Keep the mini-batch of a refused update below evidence/; the error, with where it is and how to see it."""
    root = context.staging.root
    file = keep_evidence(root, f"{context.key[:16]}-update{update}", _rows(policy, batch, rollout_ids, objective))
    statement = STATEMENT.format(critic=OF_CRITIC if batch.values is not None and batch.returns is not None else "")
    return FloatingPointError(
        f"update {update} of the step was refused: {error}.\n  Its {len(rollout_ids)} completions are kept in {file}; "
        f"to see them:\n  {sql_command(root, statement, file)}"
    )


def _rows(policy: "Policy", batch: "Batch", rollout_ids: list[str], objective: "Objective") -> pa.Table:
    """One row per completion: its logprobs, advantages, and what it adds to the mini-batch's loss."""
    import torch

    from tasks.core.objective import policy_loss
    from tasks.engines.batch import token_signals
    from tasks.engines.trainer import completion_logprobs

    prompts, completions = batch.prompts, batch.completions
    trainer_N, entropy_N = completion_logprobs(
        policy, prompts, completions, objective.temperature, micro_batch_tokens=MICRO_BATCH_TOKENS
    )
    signals, _ = token_signals(batch, objective, policy.device)
    offsets = np.append(0, np.cumsum(batch.lengths_R))
    losses = []
    for begin, end in pairwise(offsets.tolist()):
        index_T = torch.arange(begin, end, device=policy.device)
        result = policy_loss(trainer_N[index_T], entropy_N[index_T], signals.take(index_T), objective)
        losses.append(result.loss.item())
    columns: dict[str, Any] = {
        "sampler_logprobs": np.concatenate(batch.sampler_logprobs),
        "trainer_logprobs": trainer_N.float().cpu().numpy(),
        "advantages": np.concatenate(batch.advantages),
    }
    for name, signal in (("values", batch.values), ("token_returns", batch.returns)):
        if signal is not None:
            columns[name] = np.concatenate(signal)
    lists = {name: list_array(values_N, offsets, FLOATS) for name, values_N in columns.items()}
    return pa.table({"rollout_id": rollout_ids, "loss": losses} | lists)
