"""One of our layouts as a worker of training.py: python training_ours.py LAYOUT FOLDER MICRO_BATCH_TOKENS."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from training_cells import load_inputs
from training_worker import one_thread, save_gradient, serve

from tasks.core.objective import Objective
from tasks.engines.batch import Batch
from tasks.engines.micro_batches import Arrangement
from tasks.engines.optimizer import make_optimizer
from tasks.engines.policy import load_policy
from tasks.engines.trainer import policy_update

OBJECTIVE = Objective(clip_low=0.2, clip_high=0.28, dual_clip=3.0, normalization="token_mean")
LEARNING_RATE = 1e-6
"""So small that the policy stays on policy over the timed updates: no token is clipped anywhere."""
MAX_GRAD_NORM = 1e9
"""The norm is computed, as in training; the gradient stays as it is, to be compared."""


def main() -> None:
    layout, folder, micro_batch_tokens = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    one_thread()
    inputs, policy = load_inputs(folder / "batch.npz"), load_policy(folder / "policy", "", torch.device("cpu"))
    optimizer, _ = make_optimizer(policy.model, learning_rate=LEARNING_RATE, weight_decay=0.0, betas=(0.9, 0.999))
    cuts = inputs.ends[:-1]
    batch = Batch(
        inputs.row_prompts,
        inputs.completions,
        inputs.group_index_R,
        np.split(inputs.sampler_logprobs_N, cuts),
        np.split(inputs.advantages_N, cuts),
    )

    def update() -> dict[str, Any]:
        return policy_update(
            policy,
            optimizer,
            batch,
            OBJECTIVE,
            layout=layout,
            micro_batch_tokens=micro_batch_tokens,
            max_grad_norm=MAX_GRAD_NORM,
        )

    def save(row: dict[str, Any]) -> dict[str, Any]:
        save_gradient(policy.model, folder / f"{layout}.safetensors")
        chosen = Arrangement(layout, policy.model, batch.prompts, batch.completions, batch.group_index_R).kind
        return {"loss": row["loss"], "layout": chosen}

    serve(update, save)


if __name__ == "__main__":
    main()
