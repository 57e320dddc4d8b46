"""Tables on disk: what is refused, how lists travel, how columns are encoded, and what a digest sees."""

import hashlib
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.digest import table_digest
from storage.parquet import flat_list, list_array, make_table, read_table, write_table
from storage.schema import FLAGS, FLOATS, TOKENS, Column, Table

Columns = dict[str, Any]


def demonstrations(*token_ids: list[int]) -> Columns:
    num = len(token_ids)
    return {"prompt_id": ["p"] * num, "index": list(range(num)), "text": ["t"] * num, "token_ids": list(token_ids)}


def verdicts(rewards: list[float | None], seconds: float = 0.1) -> Columns:
    num = len(rewards)
    return {
        "rollout_id": [f"r{i}" for i in range(num)],
        "group_id": ["g"] * num,
        "verifier": ["v"] * num,
        "verifier_version": [1] * num,
        "status": ["wrong"] * num,
        "reward": rewards,
        "extracted_answer": [None] * num,
        "failure": [None] * num,
        "num_attempts": [1] * num,
        "seconds": [seconds] * num,
    }


def digest(name: str, columns: Columns) -> str:
    return table_digest(name, make_table(name, columns))


# --- what is refused


def test_a_missing_and_an_undeclared_column_are_refused_by_name():
    with pytest.raises(ValueError, match=r"vocabulary: missing columns \['text'\], undeclared columns \['word'\]"):
        make_table("vocabulary", {"token_id": [1], "word": ["a"]})


def test_columns_of_two_lengths_are_refused():
    with pytest.raises(ValueError, match="expected length 2 but got length 1"):
        make_table("vocabulary", {"token_id": [1, 2], "text": ["a"]})


def test_null_in_a_column_that_does_not_allow_it_is_refused():
    with pytest.raises(ValueError, match="vocabulary: column text has NULLs"):
        make_table("vocabulary", {"token_id": [1], "text": [None]})


def test_null_inside_a_list_of_tokens_is_refused():
    with pytest.raises(ValueError, match="demonstrations: column token_ids has NULLs"):
        make_table("demonstrations", demonstrations([1, None]))  # type: ignore[list-item]


def test_null_is_kept_where_it_is_declared():
    assert make_table("verdicts", verdicts([1.0, None])).column("reward").to_pylist() == [1.0, None]


def test_two_rows_with_one_key_are_refused_and_counted():
    with pytest.raises(ValueError, match=r"vocabulary: 2 rows repeat a key \('token_id',\)"):
        make_table("vocabulary", {"token_id": [1, 1, 2, 1], "text": ["a", "b", "c", "d"]})


def test_a_key_of_two_columns_repeats_only_when_both_do():
    twice = {"prompt_id": ["p", "p", "q"], "index": [0, 1, 0], "text": ["t"] * 3, "token_ids": [[1]] * 3}
    assert make_table("demonstrations", twice).num_rows == 3
    with pytest.raises(ValueError, match="1 rows repeat a key"):
        make_table("demonstrations", twice | {"index": [0, 0, 0]})


def test_a_number_too_large_for_its_column_is_refused_and_not_wrapped():
    with pytest.raises(ValueError, match="not in range: -2147483648 to 2147483647"):
        make_table("vocabulary", {"token_id": np.array([2**31]), "text": ["a"]})


def test_rows_come_out_in_key_order():
    rows = make_table("vocabulary", {"token_id": [10, 9, 2], "text": ["ten", "nine", "two"]})
    assert rows.to_pydict() == {"token_id": [2, 9, 10], "text": ["two", "nine", "ten"]}  # numbers, not texts: 9 < 10


# --- flat buffers


def test_flat_values_and_offsets_make_lists_and_come_back():
    column = list_array(np.array([7, 8, 9], dtype=np.int32), np.array([0, 2, 2, 3]), TOKENS)
    assert column.to_pylist() == [[7, 8], [], [9]]
    values, offsets = flat_list(column)
    assert (values.tolist(), offsets.tolist()) == ([7, 8, 9], [0, 2, 2, 3])


def test_offsets_that_do_not_start_at_0_leave_out_what_lies_before_and_after():
    column = list_array(np.arange(6, dtype=np.int32), np.array([2, 4, 4, 5]), TOKENS)
    assert column.to_pylist() == [[2, 3], [], [4]]
    values, offsets = flat_list(column)
    assert (values.tolist(), offsets.tolist()) == ([2, 3, 4], [0, 2, 2, 3])


def test_a_slice_and_chunks_in_another_order_are_read_as_they_look():
    column = list_array(np.arange(6, dtype=np.int32), np.array([0, 2, 2, 6]), TOKENS)  # [0, 1], [], [2, 3, 4, 5]
    values, offsets = flat_list(column[1:])
    assert (values.tolist(), offsets.tolist()) == ([2, 3, 4, 5], [0, 0, 4])
    values, offsets = flat_list(pa.chunked_array([column[2:], column[:2]]))
    assert (values.tolist(), offsets.tolist()) == ([2, 3, 4, 5, 0, 1], [0, 4, 6, 6])


@pytest.mark.parametrize("column", [pa.chunked_array([], TOKENS), pa.array([], TOKENS), pa.array([[1]], TOKENS)[1:]])
def test_no_rows_are_no_values_and_the_single_offset_0(column: Any):
    values, offsets = flat_list(column)
    assert (values.tolist(), offsets.tolist(), offsets.dtype) == ([], [0], np.int64)


@given(st.lists(st.lists(st.floats(width=32, allow_nan=False), max_size=4), max_size=6), st.integers(0, 3))
@settings(max_examples=50, deadline=None)
def test_lists_survive_the_file_whatever_their_lengths(tmp_path_factory, lists: list[list[float]], before: int):
    flat = np.array([0.0] * before + [x for values in lists for x in values], dtype=np.float32)
    offsets = before + np.cumsum([0] + [len(values) for values in lists])
    rows = make_table("advantages", advantages(list_array(flat, offsets, FLOATS)))
    path = tmp_path_factory.getbasetemp() / "lists.parquet"
    write_table(path, "advantages", rows)
    values, starts = flat_list(read_table(path).column("td_values"))
    assert [values[a:b].tolist() for a, b in pairwise(starts)] == lists


def advantages(td_values: pa.Array) -> Columns:
    num = len(td_values)
    numbers = ("reward", "group_mean", "group_std", "base_advantage", "td_weight")
    return {
        "rollout_id": [f"r{i:04d}" for i in range(num)],
        "group_id": ["g"] * num,
        "estimator": ["tempo"] * num,
        "estimator_version": [1] * num,
        "td_positions": [[]] * num,
        "td_values": td_values,
        "leaf_node": [1] * num,
        "token_advantages": pa.nulls(num, FLOATS),
        "token_returns": pa.nulls(num, FLOATS),
        "num_trained_tokens": [None] * num,
        "num_branch_tokens": [None] * num,
        "divergence": [None] * num,
    } | {name: [0.5] * num for name in numbers}


# --- the file


@pytest.fixture(scope="module")
def rollouts_file(tmp_path_factory) -> pq.FileMetaData:
    num = 2500
    text = ("group_id", "prompt_id", "text", "finish_reason", "policy", "sampler", "decoding")
    columns: Columns = {name: ["same"] * num for name in text} | {
        "rollout_id": [f"{i:05d}" for i in range(num)],
        "token_ids": [[i % 7, 2] for i in range(num)],
        "sampler_logprobs": [[-0.5, -1.0]] * num,
        "loss_mask": pa.nulls(num, FLAGS),
        "seed": [1] * num,
        "epoch": [1] * num,
        "temperature": [1.0] * num,
        "top_p": [1.0] * num,
        "max_tokens": [2] * num,
    }
    path = tmp_path_factory.mktemp("rollouts") / "rollouts.parquet"
    write_table(path, "rollouts", make_table("rollouts", columns))
    return pq.read_metadata(path)


def chunks(file: pq.FileMetaData) -> dict[str, Any]:
    return {file.row_group(0).column(i).path_in_schema: file.row_group(0).column(i) for i in range(file.num_columns)}


def test_a_row_group_holds_at_most_1024_completions(rollouts_file: pq.FileMetaData):
    sizes = [rollouts_file.row_group(i).num_rows for i in range(rollouts_file.num_row_groups)]
    assert sizes == [1024, 1024, 452]  # 2500 rows


def test_every_column_is_compressed_with_zstd(rollouts_file: pq.FileMetaData):
    assert {chunk.compression for chunk in chunks(rollouts_file).values()} == {"ZSTD"}


def test_float_lists_are_split_by_byte_without_a_dictionary(rollouts_file: pq.FileMetaData):
    logprobs = chunks(rollouts_file)["sampler_logprobs.list.element"]
    assert "BYTE_STREAM_SPLIT" in logprobs.encodings
    assert not logprobs.has_dictionary_page


def test_token_ids_and_numbers_are_plain_and_text_has_a_dictionary(rollouts_file: pq.FileMetaData):
    found = chunks(rollouts_file)
    dictionaries = {name for name, chunk in found.items() if chunk.has_dictionary_page}
    text = {name for name, chunk in found.items() if chunk.physical_type == "BYTE_ARRAY"}
    assert dictionaries == text
    assert "PLAIN" in found["token_ids.list.element"].encodings


def test_the_lists_and_their_elements_are_declared_as_required_in_the_file(rollouts_file: pq.FileMetaData):
    # a list's own level counts one definition; an optional list or an optional element would add one each
    schema = rollouts_file.schema
    lists = {schema.column(i).path: schema.column(i).max_definition_level for i in range(len(schema.names))}
    assert lists["token_ids.list.element"] == 1
    assert lists["sampler_logprobs.list.element"] == 1


def test_a_file_below_folders_named_like_hive_keys_gets_no_columns_from_them(tmp_path: Path):
    path = tmp_path / "step=001" / "vocabulary.parquet"
    path.parent.mkdir()
    write_table(path, "vocabulary", make_table("vocabulary", {"token_id": [1], "text": ["a"]}))
    assert read_table(path).column_names == ["token_id", "text"]
    assert read_table(path, ["text"]).to_pydict() == {"text": ["a"]}


# --- the digest


def test_the_digest_of_two_words_is_this_one_for_good():
    # a change of it orphans every stored artifact: raise SCHEMA_VERSION and DIGEST_VERSION and say so in the changelog
    def streams(nulls: bytes, lengths: bytes, values: bytes) -> bytes:
        return b"".join(hashlib.sha256(stream).digest() for stream in (nulls, lengths, values))

    sha = hashlib.sha256(b"vocabulary:2|token_id:int32|")
    sha.update(streams(b"", b"", (0).to_bytes(4, "little") + (1).to_bytes(4, "little")))
    lengths = (1).to_bytes(4, "little") + (2).to_bytes(4, "little")
    sha.update(b"|text:string|" + streams(b"", lengths, b"a" + b"\xc3\xa9"))
    assert digest("vocabulary", {"token_id": [1, 0], "text": ["é", "a"]}) == sha.hexdigest()


Rows = list[tuple[list[int], str]]
ROWS = st.lists(st.tuples(st.lists(st.integers(-(2**31), 2**31 - 1), max_size=3), st.text(max_size=3)), max_size=8)


def columns_of(rows: Rows, order: list[int]) -> Columns:
    return {
        "prompt_id": ["p" for _ in order],
        "index": list(order),
        "text": [rows[i][1] for i in order],
        "token_ids": [rows[i][0] for i in order],
    }


@given(ROWS, st.data())
@settings(max_examples=40, deadline=None)
def test_the_digest_does_not_see_row_order_chunks_slices_or_the_way_a_file_was_written(
    tmp_path_factory, rows: Rows, data: st.DataObject
):
    name, order = "demonstrations", list(range(len(rows)))
    table = make_table(name, columns_of(rows, order))
    expected = table_digest(name, table)
    shuffled = data.draw(st.permutations(order))
    assert digest(name, columns_of(rows, shuffled)) == expected
    cut = data.draw(st.integers(0, len(rows)))
    assert table_digest(name, pa.concat_tables([table.slice(0, cut), table.slice(cut)])) == expected
    longer = make_table(name, columns_of([([9], "before"), *rows, ([9], "after")], list(range(len(rows) + 2))))
    index = longer.schema.get_field_index("index")
    inner = longer.slice(1, len(rows)).set_column(index, longer.schema.field(index), table.column("index"))
    assert table_digest(name, inner) == expected
    path = tmp_path_factory.getbasetemp() / "digest.parquet"
    for options in ({"compression": "none", "version": "1.0"}, {"compression": "snappy", "row_group_size": 2}):
        pq.write_table(table, path, **options)
        assert table_digest(name, read_table(path)) == expected
    write_table(path, name, table)
    assert table_digest(name, read_table(path)) == expected


def test_another_value_null_or_place_of_a_list_border_gives_another_digest():
    digests = [
        digest("demonstrations", demonstrations([1, 2], [3])),
        digest("demonstrations", demonstrations([1, 2], [4])),
        digest("demonstrations", demonstrations([1], [2, 3])),
        digest("demonstrations", demonstrations([1, 2, 3], [])),
        digest("demonstrations", demonstrations([1, 2, 3])),
        digest("verdicts", verdicts([0.0, 1.0])),
        digest("verdicts", verdicts([None, 1.0])),
        digest("verdicts", verdicts([0.0, None])),
        digest("verdicts", verdicts([0.0, 1.0000000000000002])),
        digest("vocabulary", {"token_id": [0, 1], "text": ["ab", "c"]}),
        digest("vocabulary", {"token_id": [0, 1], "text": ["a", "bc"]}),
    ]
    assert len(set(digests)) == len(digests)


def test_an_empty_text_is_not_null_and_an_empty_list_is_not_null():
    none = verdicts([1.0])
    assert digest("verdicts", none) != digest("verdicts", none | {"extracted_answer": [""]})
    dense = advantages(pa.array([[0.5]], FLOATS))
    assert digest("advantages", dense) != digest("advantages", dense | {"token_advantages": [[]]})


def test_the_same_values_in_another_declared_type_give_another_digest(monkeypatch):
    def declared(type: pa.DataType) -> str:
        table = Table(name="t", row="r", key=("x",), columns=(Column(name="x", type=type, doc="X."),))
        monkeypatch.setitem(make_table.__globals__["TABLES"], "t", table)
        return digest("t", {"x": [0]})

    assert len({declared(type) for type in (pa.int32(), pa.int64(), pa.float32(), pa.float64())}) == 4


def test_measured_columns_do_not_enter_the_digest():
    assert digest("verdicts", verdicts([1.0], seconds=0.1)) == digest("verdicts", verdicts([1.0], seconds=9.0))


def test_a_table_without_rows_has_one_digest_however_its_columns_were_given():
    chunked = demonstrations() | {"token_ids": pa.chunked_array([], TOKENS), "index": np.array([], dtype=np.int64)}
    assert digest("demonstrations", chunked) == digest("demonstrations", demonstrations())
    assert digest("demonstrations", demonstrations()) != digest("demonstrations", demonstrations([]))  # no row, one row
