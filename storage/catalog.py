"""The catalogue: an in-memory DuckDB whose views read the committed Parquet files, while runs go on writing.

Files come from the commit log (queries/log.sql), so nothing that is half-written is ever seen; a file that has since
been deleted is listed in `missing_files`, and its rows are left out. Each view has `run`, `step`, `purpose` and `label`
in front: they belong to the place a file serves, not to the file, since runs share artifacts.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb

if TYPE_CHECKING:
    from storage.schema import Table

QUERIES = Path(__file__).parent / "queries"
VIEWS = ("token_credit", "branch_statistics", "prompt_ledger")
"""Views over the tables, one file each in queries/."""

STORED = "stored_file"
"""Name of a view's files in its statement: a column that DuckDB does not find there is damage, no error in the SQL."""


class NotReading(ValueError):
    """The statement does something other than read."""


class DamagedTable(ValueError):
    """A committed file is torn, missing or no Parquet."""


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
    with damage_explained(connection):
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
    """Make the files of `links` absolute, and move those of artifacts that are gone to `missing_files`.

    Folders are listed, files are not asked for one by one: 10,000 artifacts take 30 ms, their files would take 400.
    """
    stored = _stored_artifacts(base)
    connection.execute("CREATE TEMP TABLE stored AS SELECT unnest($1::VARCHAR[]) AS artifact", [stored])
    is_gone = "array_to_string(string_split(file, '/')[2:3], '/') NOT IN (SELECT artifact FROM stored)"
    connection.execute(f"CREATE TABLE missing_files AS FROM links WHERE {is_gone}")
    connection.execute(f"DELETE FROM links WHERE {is_gone}")
    for table in ("links", "missing_files"):
        connection.execute(f"UPDATE {table} SET file = $1 || file", [f"{base}/"])


def _stored_artifacts(root: Path) -> list[str]:
    """stage/key of every artifact."""
    artifacts = root / "artifacts"
    stages = [entry.name for entry in os.scandir(artifacts) if entry.is_dir()] if artifacts.exists() else []
    return [f"{stage}/{entry.name}" for stage in stages for entry in os.scandir(artifacts / stage)]


def _create_table_views(connection: duckdb.DuckDBPyConnection) -> None:
    """One view per declared table, over its committed files; an empty one with its columns if there are none."""
    from storage.schema import TABLES

    found: dict[str, dict[int, list[str]]] = {}
    rows = "SELECT DISTINCT part, schema_version, file FROM links WHERE ends_with(file, '.parquet') ORDER BY ALL"
    for part, version, file in connection.execute(rows).fetchall():
        found.setdefault(part, {}).setdefault(version, []).append(file)
    for table in TABLES.values():
        files = found.get(table.name, {})
        for version, paths in files.items():
            connection.execute(f"SET VARIABLE {_variable(table, version)} = $1", [paths])
        connection.execute(_view(table, sorted(files)))


def _variable(table: "Table", version: int) -> str:
    """Name of the variable with the files of a table: DuckDB looks at them when the view is asked, not when it is made
    (with the files written into each view, opening 10,000 artifacts took a third of a second more)."""
    return f"files_{table.name}_{version}"


def _refuse_newer(connection: duckdb.DuckDBPyConnection, root: Path) -> None:
    """Raise NewerSchema when a later version of this package has written to the root."""
    from storage.schema import SCHEMA_VERSION

    (newest,) = connection.execute("SELECT max(schema_version) FROM links").fetchone() or (None,)
    if newest is not None and newest > SCHEMA_VERSION:
        raise NewerSchema(
            f"{root.resolve()} holds tables of schema version {newest}; this version reads up to {SCHEMA_VERSION}: "
            "a newer version of tempo has written there. Update this one (git pull && make setup), or name another "
            "folder with --data-root"
        )


def _view(table: "Table", versions: list[int]) -> str:
    """A view over the files of a table, by schema version: columns that a version did not have yet are NULL."""
    if not versions:
        empty = ", ".join(c.null for c in table.columns)
        return (
            f"CREATE VIEW {table.name} AS SELECT NULL::VARCHAR AS run, NULL::INTEGER AS step, "
            f"NULL::VARCHAR AS purpose, NULL::VARCHAR AS label, {empty} WHERE false"
        )
    selects = []
    for version in versions:
        columns = ", ".join(f"{STORED}.{c.name}" if c.since <= version else c.null for c in table.columns)
        selects.append(
            f"SELECT l.run, l.step, l.purpose, l.label, {columns} "
            f"FROM read_parquet(getvariable('{_variable(table, version)}'), filename = true) {STORED} "
            f"JOIN links l ON l.file = {STORED}.filename AND l.part = {_literal(table.name)}"
        )
    return f"CREATE VIEW {table.name} AS {' UNION ALL '.join(selects)}"


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
    with damage_explained(connection):
        return connection.execute(sql, parameters)


@contextmanager
def damage_explained(connection: duckdb.DuckDBPyConnection) -> Iterator[None]:
    """Turn what DuckDB says of a file that it cannot read into a sentence with the file's name and the remedy.

    Fetching can meet damage too: DuckDB reads pages when their rows are asked for. Errors in the SQL pass through.
    """
    try:
        yield
    except duckdb.Error as error:
        message = str(error).splitlines()[0]
        if not (STORED in message or _is_of_a_reader(error)):
            raise
        file = "" if ".parquet" in message else _with_torn_footer(connection)
        raise DamagedTable(
            f"a stored table cannot be read: {file}{message}. `tempo fsck` names what is damaged, and `tempo fsck "
            "--repair` sets it aside; its experiment, run again, makes it anew"
        ) from None


def _is_of_a_reader(error: duckdb.Error) -> bool:
    """Reading Parquet fails with the word in the message, with no class of its own, or by ending the database."""
    if isinstance(error, duckdb.IOException | duckdb.InvalidInputException):
        return "parquet" in str(error).lower()
    return type(error) is duckdb.Error or isinstance(error, duckdb.FatalException | duckdb.InternalException)


def _with_torn_footer(connection: duckdb.DuckDBPyConnection) -> str:
    """The first file whose footer is no Parquet, followed by a colon; nothing when none is found."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    files: list[tuple[str]] = []
    with suppress(duckdb.Error):  # a fatal error has ended the database
        with suppress(duckdb.TransactionException):  # none is open while the catalogue is made
            connection.execute("ROLLBACK")
        files = connection.execute("SELECT DISTINCT file FROM links WHERE ends_with(file, '.parquet')").fetchall()
    for (file,) in sorted(files):
        try:
            pq.read_metadata(file)
        except (pa.ArrowException, OSError):
            return f"{file}: "
    return ""
