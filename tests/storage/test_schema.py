"""The declaration of the tables, and that the views of the catalogue are what it declares."""

from typing import Any

import duckdb
import pyarrow as pa
import pytest

from storage.catalog import open_catalog
from storage.schema import LINK_COLUMNS, TABLES, Table

EVERY = pytest.mark.parametrize("table", TABLES.values(), ids=lambda table: table.name)


@EVERY
def test_every_column_has_a_sentence_of_its_own_that_ends_with_a_full_stop(table: Table):
    sentences = [column.doc for column in (*LINK_COLUMNS, *table.columns)]
    assert [s for s in sentences if not s.endswith(".") or s.endswith("..") or len(s) < len("Token.")] == []
    assert len(set(sentences)) == len(sentences)


@EVERY
def test_names_are_unique_and_none_is_one_that_the_catalogue_attaches(table: Table):
    names = [column.name for column in (*LINK_COLUMNS, *table.columns)]
    assert sorted(set(names)) == sorted(names)


@EVERY
def test_the_key_is_made_of_columns_that_are_never_null_nor_measured(table: Table):
    keys = [table.column(name) for name in table.key]
    assert [column.name for column in keys if column.nullable or column.is_measurement] == []
    assert table.key


@EVERY
def test_elements_of_lists_are_never_null(table: Table):
    lists = [column for column in table.columns if pa.types.is_list(column.type)]
    assert [column.name for column in lists if column.type.value_field.nullable] == []


def described(connection: duckdb.DuckDBPyConnection, relation: str) -> dict[str, str]:
    return {name: type for name, type, *_ in connection.execute(f"DESCRIBE {relation}").fetchall()}


def declared(table: Table) -> dict[str, str]:
    """Names and types as DuckDB itself reads the declared Arrow schema."""
    links = pa.schema([pa.field(column.name, column.type) for column in LINK_COLUMNS])
    rows = pa.schema([*links, *table.arrow_schema]).empty_table()
    connection = duckdb.connect()
    connection.register("declared_rows", rows)
    return described(connection, "declared_rows")


@EVERY
def test_in_a_root_that_has_only_a_log_line_the_view_is_empty_and_has_the_declared_columns(data_root, table: Table):
    data_root.log(None, event="run", state="started")
    catalog = open_catalog(data_root.path)
    assert described(catalog, table.name) == declared(table)
    assert catalog.execute(f"SELECT count(*) FROM {table.name}").fetchall() == [(0,)]


@EVERY
def test_over_a_committed_file_the_view_has_the_same_columns_and_types(data_root, table: Table):
    columns: dict[str, Any] = {column.name: [] for column in table.columns}
    data_root.log(data_root.commit("k1", **{table.name: columns}))
    assert described(open_catalog(data_root.path), table.name) == declared(table)
