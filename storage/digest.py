"""Content digests of tables: what the rows are, never how they were cut, compressed or laid out in memory."""

import hashlib
from typing import Any

import numpy as np
import pyarrow as pa

from storage.schema import TABLES, Column

DIGEST_VERSION = 3
"""Schema version whose digests are computed as here; those of earlier ones went through one hash, column by column, so
that a table had to lie in memory as a whole. They are still names of what they were made of, but not recomputed."""


class TableDigest:
    """sha256 over the contents in key order: types, NULLs and values, never file bytes or measured seconds.

    Each column has hashes of its own for NULLs, lengths and values, which are joined at the end: rows can come in
    chunks, and the same rows give the same digest whatever their chunks, offsets, compression or Parquet version.
    """

    def __init__(self, name: str) -> None:
        self.name, self.num_rows = name, 0
        self.columns = [_ColumnDigest(column) for column in TABLES[name].columns if not column.is_measurement]

    def add(self, rows: pa.Table) -> None:
        """Rows that follow those added so far."""
        self.num_rows += rows.num_rows
        for column in self.columns:
            for chunk in rows.column(column.column.name).chunks:
                column.add(chunk)

    def hexdigest(self) -> str:
        sha = hashlib.sha256(f"{self.name}:{self.num_rows}".encode())
        for column in self.columns:
            sha.update(f"|{column.column.name}:{column.column.type}|".encode())
            for stream in (column.nulls, column.lengths, column.values):
                sha.update(stream.digest())
        return sha.hexdigest()


class _ColumnDigest:
    """NULLs as a byte a row (of a nullable column), lengths of lists and texts as int32, values as their bytes."""

    def __init__(self, column: Column) -> None:
        self.column = column
        self.nulls, self.lengths, self.values = hashlib.sha256(), hashlib.sha256(), hashlib.sha256()

    def add(self, array: pa.Array) -> None:
        if self.column.nullable:
            self.nulls.update(array.is_null().to_numpy(zero_copy_only=False).data)
        self._feed(array)

    def _feed(self, array: pa.Array) -> None:
        """A NULL counts as an empty list or text, as 0 or false."""
        if pa.types.is_list(array.type):
            self.lengths.update(_lengths(array))
            self._feed(array.flatten())
        elif pa.types.is_string(array.type):
            self.lengths.update(_lengths(array))
            self.values.update(_text(_filled(array, "")))
        elif pa.types.is_boolean(array.type):
            self.values.update(_filled(array, False).to_numpy(zero_copy_only=False).data)
        else:
            self.values.update(_filled(array, 0).to_numpy(zero_copy_only=False).data)


def _filled(array: pa.Array, value: Any) -> pa.Array:
    """NULLs replaced by a value; the array itself where there are none (fill_null copies it)."""
    return array.fill_null(value) if array.null_count else array


def _offsets(array: pa.Array) -> np.ndarray[Any, Any]:
    """The offsets [R+1] of a string array."""
    if not len(array):
        return np.zeros(1, np.int32)
    return np.frombuffer(array.buffers()[1], np.int32, len(array) + 1, array.offset * 4)


def _lengths(array: pa.Array) -> memoryview:
    """Bytes of each text, elements of each list; 0 for NULL."""
    offsets = array.offsets.to_numpy() if pa.types.is_list(array.type) else _offsets(array)
    lengths = np.diff(offsets)
    if array.null_count:
        lengths[array.is_null().to_numpy(zero_copy_only=False)] = 0
    return lengths.data


def _text(array: pa.Array) -> memoryview:
    """The texts' UTF-8 bytes, one after the other."""
    offsets, data = _offsets(array), array.buffers()[2]
    return memoryview(data)[int(offsets[0]) : int(offsets[-1])] if data is not None else memoryview(b"")


def table_digest(name: str, rows: pa.Table) -> str:
    """Digest of all rows of a table, in key order."""
    digest = TableDigest(name)
    digest.add(rows)
    return digest.hexdigest()
