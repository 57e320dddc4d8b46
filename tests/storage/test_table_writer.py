"""Tables written in chunks: the same rows are the same table, whatever their chunks."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.artifact import Store
from storage.digest import table_digest
from storage.parquet import ROW_GROUP_ROWS, TableWriter, make_table, read_table

Columns = dict[str, Any]


def nodes(rows: list[tuple[int | None, list[int]]], first: int = 0) -> Columns:
    """Rows of prefix_nodes, which has texts, lists, numbers, flags and a nullable column."""
    num = len(rows)
    return {
        "group_id": [f"g{(first + i) // 3:05d}" for i in range(num)],
        "node": [(first + i) % 3 for i in range(num)],
        "parent": [parent for parent, _ in rows],
        "depth": [len(tokens) for _, tokens in rows],
        "token_ids": [tokens for _, tokens in rows],
        "num_completions": [1] * num,
        "value": [float((first + i) % 7) for i in range(num)],
        "is_branch": [(first + i) % 2 == 0 for i in range(num)],
    }


ROWS = st.lists(st.tuples(st.none() | st.integers(0, 9), st.lists(st.integers(0, 2**31 - 1), max_size=3)), max_size=20)


@given(ROWS, st.lists(st.integers(0, 20), max_size=3))
@settings(max_examples=50, deadline=None)
def test_rows_in_chunks_have_the_digest_and_the_rows_of_all_at_once(tmp_path_factory, rows, cuts):
    whole = make_table("prefix_nodes", nodes(rows))
    path = tmp_path_factory.getbasetemp() / "chunks.parquet"
    writer = TableWriter(path, "prefix_nodes")
    bounds = [0, *sorted(min(cut, len(rows)) for cut in cuts), len(rows)]
    for low, high in pairwise(bounds):
        writer.add(nodes(rows[low:high], low))
    writer.close()
    assert (
        writer.digest.hexdigest()
        == table_digest("prefix_nodes", whole)
        == table_digest("prefix_nodes", read_table(path))
    )
    assert read_table(path).equals(whole)


def test_row_groups_are_full_however_small_or_large_the_chunks_are(tmp_path: Path):
    writer = TableWriter(tmp_path / "t.parquet", "prefix_nodes")
    first = 0
    for num in (1000, 30, 2000, 1):  # 3031 = 2 * 1024 + 983
        writer.add(nodes([(None, [1])] * num, first))
        first += num
    writer.close()
    file = pq.read_metadata(tmp_path / "t.parquet")
    assert [file.row_group(i).num_rows for i in range(file.num_row_groups)] == [ROW_GROUP_ROWS] * 2 + [983]


def test_a_chunk_that_does_not_come_after_the_last_one_is_refused(tmp_path: Path):
    writer = TableWriter(tmp_path / "t.parquet", "prefix_nodes")
    writer.add(nodes([(None, [1])] * 2, 3))  # g00001, nodes 0 and 1
    for first in (0, 4):  # before it; the last key again
        with pytest.raises(
            ValueError, match=r"prefix_nodes: expected chunks in the order of their keys .* got \('g0000"
        ):
            writer.add(nodes([(None, [1])], first))
    writer.add(nodes([(None, [1])], 5))
    writer.close()
    assert read_table(tmp_path / "t.parquet").num_rows == 3


def test_rows_inside_a_chunk_may_come_in_any_order_but_only_once(tmp_path: Path):
    writer = TableWriter(tmp_path / "t.parquet", "vocabulary")
    writer.add({"token_id": [2, 1], "text": ["b", "a"]})
    with pytest.raises(ValueError, match=r"vocabulary: 1 rows repeat a key"):
        writer.add({"token_id": [4, 3, 4], "text": ["d", "c", "d"]})
    writer.close()
    assert read_table(tmp_path / "t.parquet").column("text").to_pylist() == ["a", "b"]


def test_a_table_without_rows_is_a_file_with_its_columns(tmp_path: Path):
    TableWriter(tmp_path / "t.parquet", "vocabulary").close()
    assert read_table(tmp_path / "t.parquet").column_names == ["token_id", "text"]


def test_a_staged_table_in_chunks_is_the_one_that_was_added_at_once(tmp_path: Path):
    store = Store(tmp_path)
    store.open_for_writing()
    digests = []
    for chunks in ([["a", "b", "c"]], [["a"], ["b", "c"]]):
        with store.staging("k1") as staging:
            with staging.open_table("vocabulary") as writer:
                first = 0
                for words in chunks:
                    writer.add({"token_id": range(first, first + len(words)), "text": words})
                    first += len(words)
            assert staging.tables["vocabulary"] == staging.path / "vocabulary.parquet"
            digests.append(staging.parts["vocabulary"]["digest"])
            assert staging.parts["vocabulary"]["rows"] == 3
    with store.staging("k1") as staging:
        rows = staging.add_table("vocabulary", {"token_id": [0, 1, 2], "text": ["a", "b", "c"]})
        assert isinstance(rows, pa.Table)
        assert {staging.parts["vocabulary"]["digest"], *digests} == set(digests[:1])
