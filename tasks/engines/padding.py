"""Padded rows: prompt + completion, one below the other, and the hidden states that predict completion tokens."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def padded_hidden(
    backbone: Any, prompts: Sequence[NDArray[np.int32]], completions: Sequence[NDArray[np.int32]]
) -> tuple[Tensor, Tensor]:
    """Hidden state [N, H] that predicts each completion token, and these tokens [N]; completion after completion.

    Rows are padded on the right: causal attention never looks there, so no mask is needed.
    """
    rows = [np.concatenate([prompt, completion]) for prompt, completion in zip(prompts, completions, strict=True)]
    ids_BL = np.zeros((len(rows), max(len(row) for row in rows)), dtype=np.int64)
    for b, row in enumerate(rows):
        ids_BL[b, : len(row)] = row
    lengths_B = np.array([len(completion) for completion in completions])
    begin_B = np.array([len(prompt) for prompt in prompts])
    row_N = np.repeat(np.arange(len(rows)), lengths_B)
    within_N = np.arange(lengths_B.sum()) - np.repeat(np.cumsum(lengths_B) - lengths_B, lengths_B)
    column_N = np.repeat(begin_B, lengths_B) + within_N
    device = next(backbone.parameters()).device
    ids = torch.from_numpy(ids_BL).to(device)
    row, column = torch.from_numpy(row_N).to(device), torch.from_numpy(column_N).to(device)
    hidden_BLH = backbone(input_ids=ids, use_cache=False).last_hidden_state
    return hidden_BLH[row, column - 1], ids[row, column]
