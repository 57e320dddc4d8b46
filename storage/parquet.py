"""Parquet files of the declared tables: how their rows are made, written and read."""

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from storage.digest import TableDigest
from storage.schema import TABLES, Table

ROW_GROUP_ROWS = 1024
"""Completions a row group; a reader's memory is bounded by it."""

HASHED_INLINE_BYTES = 2**20
"""Chunks smaller than this are hashed at once: a thread costs more."""


def make_table(name: str, columns: Mapping[str, Any]) -> pa.Table:
    """Rows of the declared table `name` in key order, from columns given as Arrow arrays, numpy arrays or lists.

    Raises ValueError when a column is missing, undeclared, of another length, or NULL where that is not allowed, and
    when two rows have the same key.
    """
    table = TABLES[name]
    expected = [column.name for column in table.columns]
    if set(expected) != set(columns):
        missing, extra = sorted(set(expected) - set(columns)), sorted(set(columns) - set(expected))
        raise ValueError(f"table {name}: missing columns {missing}, undeclared columns {extra}; see storage/schema.py")
    arrays = [_as_array(columns[c.name], c.type) for c in table.columns]
    rows = pa.Table.from_arrays(arrays, schema=table.arrow_schema)
    for column in table.columns:
        values = rows.column(column.name)
        is_list = pa.types.is_list(column.type)
        if (values.null_count and not column.nullable) or (is_list and _has_null_elements(values)):
            raise ValueError(f"table {name}: column {column.name} has NULLs, which its declaration does not allow")
    if not _is_in_key_order(table, rows):
        rows = rows.sort_by([(key, "ascending") for key in table.key])
        _refuse_duplicate_keys(table, rows)
    return rows


def _has_null_elements(lists: pa.ChunkedArray) -> bool:
    """Whether a list holds NULL. Flattening copies: it is done only where the buffer below has NULLs at all."""
    return any(chunk.values.null_count and chunk.flatten().null_count for chunk in lists.chunks)


def _as_array(values: Any, type: pa.DataType) -> pa.Array:
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    if isinstance(values, pa.Array):
        return values if values.type == type else values.cast(type)
    return pa.array(values, type=type)


def _is_in_key_order(table: Table, rows: pa.Table) -> bool:
    """Whether each row's key is greater than the one before: sorted, and no key twice."""
    is_less, is_equal = pa.scalar(False), pa.scalar(True)
    for key in table.key:
        column = rows.column(key).combine_chunks()
        before, after = column[:-1], column[1:]
        is_less = pc.or_(is_less, pc.and_(is_equal, pc.less(before, after)))
        is_equal = pc.and_(is_equal, pc.equal(before, after))
    return bool(pc.all(is_less, min_count=0).as_py())


def _refuse_duplicate_keys(table: Table, rows: pa.Table) -> None:
    keys = rows.select(list(table.key))
    distinct = keys.group_by(list(table.key)).aggregate([]).num_rows
    if distinct != rows.num_rows:
        raise ValueError(
            f"table {table.name}: {rows.num_rows - distinct} rows repeat a key {table.key}; keys are unique"
        )


def list_array(values: np.ndarray[Any, Any], offsets: np.ndarray[Any, Any], type: pa.ListType) -> pa.ListArray:
    """Flat values and offsets [R+1] as an Arrow list array, without copying the values."""
    flat = pa.array(values, type=type.value_type)
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), flat).cast(type)


def ranges_array(
    values: np.ndarray[Any, Any], begin: np.ndarray[Any, Any], length: np.ndarray[Any, Any], type: pa.ListType
) -> pa.ListArray:
    """Lists of values[begin : begin + length], copied range by range: 1.6 ns per element, an index of each costs 4."""
    ranges = [pa.array(bounds.astype(np.int32)) for bounds in (begin, length)]
    view = pa.ListViewArray.from_arrays(*ranges, pa.array(values, type=type.value_type))
    offsets = pa.array(np.append(0, np.cumsum(length)).astype(np.int32))
    return pa.ListArray.from_arrays(offsets, view.flatten()).cast(type)  # casting the view itself loses an offset


def flat_list(column: pa.ChunkedArray) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """(values [N], offsets int64 [R+1]) of a list column; offsets start at 0."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    offsets = array.offsets.to_numpy().astype(np.int64)
    values = array.values.to_numpy(zero_copy_only=False)
    return values[offsets[0] : offsets[-1]], offsets - offsets[0]


class TableWriter:
    """Writes one declared table chunk by chunk, in key order: at most a row group of rows is held.

    zstd level 1; float lists split by byte; a dictionary for text columns only. A dictionary makes logprobs 27 %
    larger, and costs 28 ns per token to write for token ids.
    """

    def __init__(self, path: Path, name: str) -> None:
        table = self.table = TABLES[name]
        self.digest = TableDigest(name)
        self._held: list[pa.Table] = []
        self._num_held = 0
        self._last_key: tuple[Any, ...] | None = None
        self._hasher: ThreadPoolExecutor | None = None
        self._hashed: Future[None] = Future()
        self._hashed.set_result(None)
        text = [c.name for c in table.columns if pa.types.is_string(c.type)]
        lists = [c for c in table.columns if pa.types.is_list(c.type)]
        split = [f"{c.name}.list.element" for c in lists if pa.types.is_floating(c.type.value_type)]
        self._file = pq.ParquetWriter(
            path,
            table.arrow_schema,
            compression="zstd",
            compression_level=1,
            use_dictionary=text,
            column_encoding=dict.fromkeys(split, "BYTE_STREAM_SPLIT"),
        )

    def add(self, columns: Mapping[str, Any]) -> pa.Table:
        """Add rows, as for `make_table`, whose keys come after those added so far; returns them in key order."""
        rows = make_table(self.table.name, columns)
        self.add_rows(rows)
        return rows

    def add_rows(self, rows: pa.Table) -> None:
        """Add rows made by `make_table`. ValueError when a key does not come after those added so far."""
        if not rows.num_rows:
            return
        first, last = (tuple(rows.column(key)[i].as_py() for key in self.table.key) for i in (0, rows.num_rows - 1))
        if self._last_key is not None and not self._last_key < first:
            raise ValueError(
                f"table {self.table.name}: expected chunks in the order of their keys {self.table.key}, got {first} "
                f"after {self._last_key}; keys are unique and ascending: sort the chunks, or add the rows at once"
            )
        self._last_key = last
        self._hash(rows)
        self._held.append(rows)
        self._num_held += rows.num_rows
        if self._num_held >= ROW_GROUP_ROWS:
            self._write(self._num_held - self._num_held % ROW_GROUP_ROWS)

    def _hash(self, rows: pa.Table) -> None:
        """Large chunks are hashed while they are compressed: both leave Python's lock, and take 3 and 18 ns a token."""
        self._hashed.result()
        if rows.nbytes < HASHED_INLINE_BYTES:
            self.digest.add(rows)
            return
        self._hasher = self._hasher or ThreadPoolExecutor(1)
        self._hashed = self._hasher.submit(self.digest.add, rows)

    def _write(self, num_rows: int) -> None:
        """Write the first rows held, in row groups."""
        held = pa.concat_tables(self._held)
        self._file.write_table(held.slice(0, num_rows), row_group_size=ROW_GROUP_ROWS)
        self._held, self._num_held = [held.slice(num_rows)], held.num_rows - num_rows

    def close(self) -> None:
        """Write what is held, and the footer; the digest is then that of all rows."""
        self._hashed.result()
        if self._hasher is not None:
            self._hasher.shutdown()
        if self._num_held or not self.digest.num_rows:
            self._write(self._num_held) if self._held else self._file.write_table(self.table.arrow_schema.empty_table())
        self._file.close()


def write_table(path: Path, name: str, rows: pa.Table) -> str:
    """Write rows made by `make_table`; returns their digest."""
    writer = TableWriter(path, name)
    try:
        writer.add_rows(rows)
    finally:
        writer.close()
    return writer.digest.hexdigest()


def read_table(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read one committed Parquet file, or some of its columns."""
    with pq.ParquetFile(path) as file:
        return file.read(columns=list(columns) if columns is not None else None)
