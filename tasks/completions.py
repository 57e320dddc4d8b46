"""Rows of stored tables as the ragged arrays that machines take."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from storage.artifact import Part
from storage.parquet import flat_list, list_array


def ragged(table: pa.Table, column: str) -> list[np.ndarray]:
    """A list column, one array per row."""
    values, offsets = flat_list(table.column(column))
    return np.split(values, offsets[1:-1])


def prompt_tokens(prompts: Part, rollouts: pa.Table) -> list[np.ndarray]:
    """The prompt of each rollout."""
    asked = prompts.read(["prompt_id", "prompt_token_ids"])
    rows = dict(zip(asked.column("prompt_id").to_pylist(), ragged(asked, "prompt_token_ids"), strict=True))
    return [rows[prompt_id] for prompt_id in rollouts.column("prompt_id").to_pylist()]


def loss_mask(rows: pa.Table, offsets: np.ndarray) -> np.ndarray | None:
    """Which tokens are trained on, bool [N]; None: all. A completion without a mask (NULL) is trained on as a whole."""
    column = rows.column("loss_mask")
    if column.null_count == len(column):
        return None
    if column.null_count:
        full = list_array(np.ones(offsets[-1], np.bool_), offsets, column.type)
        column = pa.chunked_array([pc.coalesce(column.combine_chunks(), full)])
        rows = rows.set_column(rows.schema.get_field_index("loss_mask"), "loss_mask", column)
    return per_token(rows, "rollouts.loss_mask", "loss_mask", offsets)


def per_token(rows: pa.Table, full_name: str, name: str, offsets: np.ndarray) -> np.ndarray:
    """Flat values of a list column that must have one element for every token."""
    column = rows.column(name)
    lengths = pc.fill_null(pc.list_value_length(column), -1).to_numpy()
    wrong = np.flatnonzero(lengths != np.diff(offsets))
    if wrong.size:
        got = "none" if lengths[wrong[0]] < 0 else str(lengths[wrong[0]])
        raise ValueError(
            f"{full_name}: expected {np.diff(offsets)[wrong[0]]} values, one per token, got {got} for the rollout "
            f"{rows.column('rollout_id')[int(wrong[0])].as_py()!r}; they would stand beside the wrong tokens: compute "
            "them from these very rollouts"
        )
    return flat_list(column)[0]
