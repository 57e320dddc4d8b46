"""The catalogue: an in-memory DuckDB whose views read the committed Parquet files, while runs go on writing.

Files come from the commit log (queries/log.sql), so nothing that is half-written is ever seen; a file that has since
been deleted is listed in `missing_files`, and its rows are left out. Each view has `run`, `step` and `purpose` in
front: they belong to the place a file serves, not to the file, since runs share artifacts.
"""

import re
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb

from storage.dropping import MARKER

if TYPE_CHECKING:
    from storage.schema import Table

QUERIES = Path(__file__).parent / "queries"
VIEWS = ("token_credit", "branch_statistics", "prompt_ledger")
"""Views over the tables, one file each in queries/."""


class NotReading(ValueError):
    """The statement does something other than read."""


class NewerSchema(ValueError):
    """The data root was written by a later version."""


def open_catalog(root: Path) -> duckdb.DuckDBPyConnection:
    """Connect to the tables below a data root. Only files below it can be read, and nothing can be written.

    Raises FileNotFoundError when no run has ever written to the root.
    """
    log = root / "log.jsonl"
    if not log.exists():
        raise FileNotFoundError(
            f"no run has been stored under {root.resolve()} (expected its commit log {log.name}); "
            "start one with `tempo train quickstart`, or name another folder with --data-root"
        )
    connection = duckdb.connect(config={"autoinstall_known_extensions": "false", "autoload_known_extensions": "false"})
    connection.execute(_query("log").replace("$log", _literal(str(log))))
    _refuse_newer(connection, root)
    _locate_files(connection, root.resolve())
    _create_table_views(connection)
    for view in VIEWS:
        connection.execute(_query(view))
    folders = {str(root.resolve()), str((root / "artifacts").resolve())}  # artifacts may be a link to another disk
    connection.execute(f"SET allowed_directories = [{', '.join(_literal(folder) for folder in sorted(folders))}]")
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")
    return connection


def _query(name: str) -> str:
    return (QUERIES / f"{name}.sql").read_text(encoding="utf-8")


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _locate_files(connection: duckdb.DuckDBPyConnection, base: Path) -> None:
    """Make the files of `links` absolute, and move those that are gone to `missing_files`: one would fail a view."""
    connection.execute(f"UPDATE links SET file = {_literal(str(base) + '/')} || file")
    files = [file for (file,) in connection.execute("SELECT DISTINCT file FROM links").fetchall()]
    gone = ", ".join(_literal(file) for file in files if not _is_there(Path(file)))
    connection.execute(f"CREATE TABLE missing_files AS FROM links WHERE list_contains([{gone}]::VARCHAR[], file)")
    connection.execute("DELETE FROM links WHERE file IN (SELECT file FROM missing_files)")


def _is_there(file: Path) -> bool:
    """The file or folder exists, or its artifact says that it was dropped on purpose."""
    return file.exists() or (file.parent / MARKER).exists()


def _create_table_views(connection: duckdb.DuckDBPyConnection) -> None:
    """One view per declared table, over its committed files; an empty one with its columns if there are none."""
    from storage.schema import TABLES

    found: dict[str, dict[int, list[str]]] = {}
    rows = "SELECT DISTINCT part, schema_version, file FROM links WHERE ends_with(file, '.parquet') ORDER BY ALL"
    for part, version, file in connection.execute(rows).fetchall():
        found.setdefault(part, {}).setdefault(version, []).append(file)
    for table in TABLES.values():
        connection.execute(_view(table, found.get(table.name, {})))


def _refuse_newer(connection: duckdb.DuckDBPyConnection, root: Path) -> None:
    """Raise NewerSchema when a later version of this package has written to the root."""
    from storage.schema import SCHEMA_VERSION

    (newest,) = connection.execute("SELECT max(schema_version) FROM events").fetchone() or (None,)
    if newest is not None and newest > SCHEMA_VERSION:
        raise NewerSchema(
            f"{root.resolve()} holds tables of schema version {newest}; this version reads up to {SCHEMA_VERSION}: "
            "a newer version of tempo has written there. Update this one (git pull && make setup), or name another "
            "folder with --data-root"
        )


def _view(table: "Table", files: dict[int, list[str]]) -> str:
    """A view over the files of a table, by schema version: columns that a version did not have yet are NULL."""
    if not files:
        empty = ", ".join(f"NULL::{_sql_type(str(c.type))} AS {c.name}" for c in table.columns)
        return (
            f"CREATE VIEW {table.name} AS SELECT NULL::VARCHAR AS run, NULL::INTEGER AS step, "
            f"NULL::VARCHAR AS purpose, {empty} WHERE false"
        )
    selects = []
    for version, paths in sorted(files.items()):
        columns = ", ".join(
            f"t.{c.name}" if c.since <= version else f"NULL::{_sql_type(str(c.type))} AS {c.name}"
            for c in table.columns
        )
        selects.append(
            f"SELECT l.run, l.step, l.purpose, {columns} "
            f"FROM read_parquet([{', '.join(map(_literal, paths))}], filename = true) t "
            f"JOIN links l ON l.file = t.filename AND l.part = {_literal(table.name)}"
        )
    return f"CREATE VIEW {table.name} AS {' UNION ALL '.join(selects)}"


def _sql_type(arrow: str) -> str:
    """DuckDB's name of a declared Arrow type."""
    scalar = {"string": "VARCHAR", "bool": "BOOLEAN", "int32": "INTEGER", "int64": "BIGINT", "float": "FLOAT"}
    scalar["double"] = "DOUBLE"
    listed = re.fullmatch(r"list<element: (\w+) not null>", arrow)
    return f"{scalar[listed[1]]}[]" if listed else scalar[arrow]


def named_queries() -> dict[str, str]:
    """Sentence by name of the stored queries (queries/named): what `tempo sql --query NAME --run RUN` answers."""
    return {
        path.stem: " ".join(line[3:] for line in path.read_text(encoding="utf-8").split("\n") if line[:3] == "-- ")
        for path in sorted((QUERIES / "named").glob("*.sql"))
    }


def named_query(name: str) -> str:
    """The stored query `name`, with the parameter $run. Raises ValueError for another name."""
    if name not in named_queries():
        raise ValueError(f"--query: no query {name!r}; expected one of {', '.join(named_queries())}")
    return _query(f"named/{name}")


def run_query(
    connection: duckdb.DuckDBPyConnection, sql: str, parameters: dict[str, Any] | None = None
) -> duckdb.DuckDBPyConnection:
    """Execute one reading statement in a read-only transaction and return the connection, ready to fetch.

    Raises NotReading for anything but one SELECT (WITH, FROM, VALUES, DESCRIBE, SHOW, SUMMARIZE count as such) or
    EXPLAIN of one.
    """
    inner = re.sub(r"^\s*EXPLAIN\b(\s+ANALYZE\b|\s*\(\s*(ANALYZE|FORMAT)\b[^)]*\))?", "", sql, flags=re.IGNORECASE)
    statements = connection.extract_statements(inner)
    if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
        kinds = ", ".join(statement.type.name for statement in statements) or "nothing"
        raise NotReading(
            f"expected one reading statement (SELECT, WITH, DESCRIBE, SHOW, SUMMARIZE, EXPLAIN), got {kinds}; "
            "the tables are views over committed files and cannot be changed from SQL"
        )
    with suppress(duckdb.TransactionException):  # none is open at the first statement
        connection.execute("ROLLBACK")
    connection.execute("BEGIN TRANSACTION READ ONLY")
    return connection.execute(sql, parameters)
