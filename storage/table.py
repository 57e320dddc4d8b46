"""What a table and a column are, as storage/schema.py declares them."""

import re
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

TEXT, FLAG = pa.string(), pa.bool_()
INT32, INT64, FLOAT32, FLOAT64 = pa.int32(), pa.int64(), pa.float32(), pa.float64()
TOKENS = pa.list_(pa.field("element", INT32, nullable=False))
FLOATS = pa.list_(pa.field("element", FLOAT32, nullable=False))
FLAGS = pa.list_(pa.field("element", FLAG, nullable=False))
TEXTS = pa.list_(pa.field("element", TEXT, nullable=False))


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column. `is_measurement` marks wall-clock figures and places: stored, but no part of the content digest."""

    name: str
    type: pa.DataType
    doc: str
    nullable: bool = False
    is_measurement: bool = False
    since: int = 1
    """Schema version that brought the column."""

    @property
    def null(self) -> str:
        """The column in SQL for rows of a version that did not have it yet: NULL, in DuckDB's name of its type."""
        scalar = {"string": "VARCHAR", "bool": "BOOLEAN", "int32": "INTEGER", "int64": "BIGINT", "float": "FLOAT"}
        scalar["double"] = "DOUBLE"
        listed = re.fullmatch(r"list<element: (\w+) not null>", str(self.type))
        return f"NULL::{f'{scalar[listed[1]]}[]' if listed else scalar[str(self.type)]} AS {self.name}"


@dataclass(frozen=True, kw_only=True)
class Table:
    """One table: what a row is, the columns that identify a row (also the order on disk), and all columns."""

    name: str
    row: str
    key: tuple[str, ...]
    columns: tuple[Column, ...]
    since: int = 1
    """Schema version that brought the table."""

    @property
    def arrow_schema(self) -> pa.Schema:
        return pa.schema([pa.field(c.name, c.type, nullable=c.nullable) for c in self.columns])

    def column(self, name: str) -> Column:
        return next(column for column in self.columns if column.name == name)


def column(name: str, type: pa.DataType, doc: str, **switches: Any) -> Column:
    return Column(name=name, type=type, doc=doc, **switches)
