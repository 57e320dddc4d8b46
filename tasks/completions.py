"""Rows of stored tables as the ragged arrays that machines take."""

import numpy as np
import pyarrow as pa

from storage.artifact import Part
from storage.parquet import flat_list


def ragged(table: pa.Table, column: str) -> list[np.ndarray]:
    """A list column, one array per row."""
    values, offsets = flat_list(table.column(column))
    return np.split(values, offsets[1:-1])


def prompt_tokens(prompts: Part, rollouts: pa.Table) -> list[np.ndarray]:
    """The prompt of each rollout."""
    asked = prompts.read(["prompt_id", "prompt_token_ids"])
    rows = dict(zip(asked.column("prompt_id").to_pylist(), ragged(asked, "prompt_token_ids"), strict=True))
    return [rows[prompt_id] for prompt_id in rollouts.column("prompt_id").to_pylist()]
