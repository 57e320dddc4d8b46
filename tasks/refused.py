"""A refused update: its mini-batch is kept as evidence, and the error says which query shows it."""

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from storage.evidence import keep_evidence, sql_command
from storage.parquet import list_array
from storage.schema import FLOATS
from tasks.place import Context

if TYPE_CHECKING:
    from tasks.engines.policy import Policy
    from tasks.engines.trainer import Batch, Objective

STATEMENT = (
    "SELECT rollout_id, loss, list_min(trainer_logprobs) AS trainer_logprob, list_min(sampler_logprobs) AS "
    "sampler_logprob, list_max(advantages) AS advantage FROM FILE ORDER BY isfinite(loss), abs(loss) DESC LIMIT 10"
)
"""The mini-batch's completions, those first whose loss is not finite, then by size; smallest logprob of each."""


def refused(
    context: Context,
    error: FloatingPointError,
    policy: "Policy",
    batch: "Batch",
    rollout_ids: list[str],
    objective: "Objective",
    update: int,
) -> FloatingPointError:
    """Keep the mini-batch of a refused update below evidence/; the same error, with where it is and how to see it."""
    root = context.staging.root
    policy.model.eval()
    rows = _rows(policy, batch, rollout_ids, objective)
    file = keep_evidence(root, f"{context.key[:16]}-update{update}", rows)
    return FloatingPointError(
        f"update {update} of the step was refused: {error}.\n  Its {len(rollout_ids)} completions are kept in {file}; "
        f"to see them:\n  {sql_command(root, STATEMENT, file)}"
    )


def _rows(policy: "Policy", batch: "Batch", rollout_ids: list[str], objective: "Objective") -> pa.Table:
    """One row per completion: its logprobs, advantages, and what it adds to the mini-batch's loss."""
    import torch

    from tasks.core.objective import policy_loss, token_weights
    from tasks.engines.trainer import completion_logprobs

    lengths_R = torch.tensor([len(completion) for completion in batch.completions])
    weights = token_weights(
        lengths_R, torch.from_numpy(batch.group_index_R), objective.normalization, max_tokens=objective.max_tokens
    ).split(lengths_R.tolist())
    clips = {name: getattr(objective, name) for name in ("clip_low", "clip_high", "dual_clip")}
    trainer_logprobs, losses = [], []
    for i, completion in enumerate(batch.completions):
        logprobs_T = torch.zeros(0)
        if len(completion):
            with torch.no_grad():
                logprobs, _ = completion_logprobs(policy, [batch.prompts[i]], [completion], objective.temperature)
            logprobs_T = logprobs.float().cpu()
        signals = [torch.tensor(signal[i]) for signal in (batch.sampler_logprobs, batch.advantages)]
        trainer_logprobs.append(logprobs_T.numpy())
        losses.append(policy_loss(logprobs_T, *signals, weights[i], **clips).loss.item())
    offsets = np.append(0, np.cumsum(lengths_R.numpy()))
    columns: dict[str, Any] = {
        "sampler_logprobs": batch.sampler_logprobs,
        "trainer_logprobs": trainer_logprobs,
        "advantages": batch.advantages,
        "values": batch.values,
        "token_returns": batch.returns,
    }
    lists = {
        name: list_array(np.concatenate(signal), offsets, FLOATS)
        for name, signal in columns.items()
        if signal is not None
    }
    return pa.table({"rollout_id": rollout_ids, "loss": losses} | lists)
