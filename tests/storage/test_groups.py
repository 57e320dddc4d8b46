"""Whole groups out of row groups: what straddles is carried, what does not belong together is refused by name."""

import io
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage import groups
from storage.groups import GroupReader
from storage.schema import FLAGS, TOKENS

TYPES = pa.schema(
    [("rollout_id", pa.string()), ("group_id", pa.string()), ("token_ids", TOKENS), ("reward", pa.float64())]
)


def parquet(columns: dict[str, Any], rows_per_group: int = 2) -> pq.ParquetFile:
    table = pa.table(columns, schema=pa.schema([TYPES.field(name) for name in columns]))
    buffer = io.BytesIO()
    pq.write_table(table, buffer, row_group_size=rows_per_group)
    return pq.ParquetFile(buffer)


def reader(names: list[str], rewards: list[float | None] | None = None, ids: list[str] | None = None) -> GroupReader:
    """Rollouts of the named groups, and verdicts beside them in other row groups."""
    rollout_ids = [f"{name}-{i:03d}" for i, name in enumerate(names)]
    ids = rollout_ids if ids is None else ids
    rewards = [1.0] * len(ids) if rewards is None else rewards
    tokens = [[i, i] for i in range(len(names))]
    rollouts = {"rollout_id": rollout_ids, "group_id": names, "token_ids": tokens}
    return GroupReader(
        {"rollouts": parquet(rollouts), "verdicts": parquet({"rollout_id": ids, "reward": rewards}, rows_per_group=3)}
    )


COLUMNS = {"rollouts": ["rollout_id", "token_ids"], "verdicts": ["reward"]}


@given(st.lists(st.integers(1, 7), max_size=8), st.integers(1, 6), st.integers(1, 20))
@settings(max_examples=60, deadline=None)
def test_every_chunk_holds_whole_groups_and_all_rows_come_once_in_order(sizes: list[int], rows: int, tokens: int):
    names = [f"g{i}" for i, size in enumerate(sizes) for _ in range(size)]
    made = reader(names, [float(i) for i in range(len(names))])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(groups, "ROWS_PER_CHUNK", rows)
        patch.setattr(groups, "TOKENS_PER_CHUNK", tokens)
        made.check(finite={"verdicts": "reward"})
        chunks = list(made.chunks(COLUMNS))
    found = pa.concat_tables(chunks) if chunks else None
    assert (found.column("group_id").to_pylist() if found else []) == names
    assert (found.column("reward").to_pylist() if found else []) == list(range(len(names)))
    assert (found.column("token_ids").to_pylist() if found else []) == [[i, i] for i in range(len(names))]
    whole = [set(chunk.column("group_id").to_pylist()) for chunk in chunks]
    assert sum(len(names) for names in whole) == len(sizes)  # no group is in two chunks


def test_memory_is_that_of_some_row_groups(monkeypatch):
    # 40 groups of 5 in row groups of 2: chunks of about 10 rows, never all 200
    monkeypatch.setattr(groups, "ROWS_PER_CHUNK", 10)
    sizes = [chunk.num_rows for chunk in reader([f"g{i:02d}" for i in range(40) for _ in range(5)]).chunks(COLUMNS)]
    assert sum(sizes) == 200
    assert max(sizes) <= 10 + 5 - 1  # the rows left over of one group come on top


def test_a_column_that_the_file_does_not_have_yet_is_null():
    (chunk,) = reader(["g", "g"]).chunks(COLUMNS | {"rollouts": ["token_ids", "loss_mask"]})
    assert chunk.column("loss_mask").to_pylist() == [None, None]
    assert chunk.schema.field("loss_mask").type == FLAGS


def test_rows_of_one_group_apart_are_refused_with_both_places():
    with pytest.raises(ValueError, match=r"adjacent rows, got group 'a' at row 0 and again at row 3; .* Sort the rows"):
        reader(["a", "a", "b", "a"]).check(finite={})


def test_rows_of_one_group_in_two_chunks_are_refused_with_both_places(monkeypatch):
    monkeypatch.setattr(groups, "ROWS_PER_CHUNK", 2)
    with pytest.raises(ValueError, match="group 'a' at row 0 and again at row 6"):
        reader(["a"] * 3 + ["b"] * 3 + ["a"] + ["c"] * 2).check(finite={})


def test_groups_out_of_order_are_refused():
    with pytest.raises(ValueError, match="groups in the order of group_id, got 'a' after 'b'"):
        reader(["b", "b", "a"]).check(finite={})


def test_a_group_that_is_split_over_two_files_is_refused_by_name():
    # the verdicts file holds two of group b's three completions
    with pytest.raises(
        ValueError, match=r"verdicts: .* got none where the rollouts have 'b-004' of group 'b'; .* split"
    ):
        reader(list("aabbb"), ids=["a-000", "a-001", "b-002", "b-003"]).check(finite={})
    with pytest.raises(ValueError, match=r"verdicts: .* got 'b-003' where the rollouts have 'b-002' of group 'b'"):
        reader(list("aabb"), ids=["a-000", "a-001", "b-003", "b-004"]).check(finite={})
    with pytest.raises(ValueError, match=r"verdicts: .* got 'a-002' where the rollouts have none"):
        reader(list("aa"), ids=["a-000", "a-001", "a-002"]).check(finite={})


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_reward_that_is_not_finite_is_refused_by_name_and_a_missing_one_is_not(bad: float):
    reader(list("aab"), [1.0, None, 0.0]).check(finite={"verdicts": "reward"})
    with pytest.raises(ValueError, match=r"verdicts: expected finite numbers in .* reward, got .* rollout 'b-003'"):
        reader(list("aabb"), [1.0, None, 0.0, bad]).check(finite={"verdicts": "reward"})
