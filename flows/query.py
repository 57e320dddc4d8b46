"""`tempo sql`: one reading statement over a data root, printed as a table, JSON, CSV or written as Parquet."""

import csv
import json
import math
import sys
import unicodedata
import warnings
from decimal import Decimal
from pathlib import Path
from typing import Any

from storage.catalog import damage_explained, named_queries, named_query, open_catalog, run_query

MAX_WIDTH = 60
"""Longest cell of a printed table; the other formats give every character."""


def print_named_query(data_root: Path, name: str, run: str | None, format: str, output: Path | None) -> None:
    """Answer a stored query (storage/queries/named) for one run."""
    from flows.stored_runs import stored_run

    if run is None:
        raise ValueError(f"--query {name}: expected --run RUN, the run that it is asked of (see tempo runs)")
    statement = named_query(name)
    found = stored_run(open_catalog(data_root), run)
    print_query(data_root, statement, format, output, {"run": found})


def print_query(
    data_root: Path, statement: str, format: str, output: Path | None, parameters: dict[str, Any] | None = None
) -> None:
    """Answer `statement`. Raises ValueError for SQL that does not read or does not parse."""
    import duckdb

    if format == "parquet" and output is None:
        raise ValueError("--format parquet: expected --output FILE, since Parquet is not for a terminal")
    connection = open_catalog(data_root)
    _tell_missing(connection)
    try:
        with damage_explained(connection):
            answer = run_query(connection, statement, parameters)
            if format == "parquet":
                _write_parquet(answer, output)
                return
            names = [column[0] for column in answer.description or []]
            rows = answer.fetchall()
    except duckdb.Error as error:
        raise ValueError(f"the SQL was not accepted: {error}") from None
    target = output.open("w", encoding="utf-8", newline="") if output else sys.stdout
    print_rows(names, rows, format, target)
    if output:
        target.close()


def print_rows(names: list[str], rows: list[tuple[Any, ...]], format: str, target: Any) -> None:
    """Rows as a table, one JSON object a line, or CSV."""
    {"table": _table, "json": _json, "csv": _csv}[format](names, rows, target)


def _tell_missing(connection: Any) -> None:
    (num_missing,) = connection.execute("SELECT count(DISTINCT file) FROM missing_files").fetchone()
    if num_missing:
        print(
            f"tempo: rows of {num_missing} committed but deleted files are left out (SELECT * FROM missing_files); "
            "run their experiment again to make them anew",
            file=sys.stderr,
        )


def _write_parquet(answer: Any, output: Path | None) -> None:
    import pyarrow.parquet as pq

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # duckdb warns of one more copy; the answer is read once
        pq.write_table(answer.to_arrow_table(), output)


def _json(names: list[str], rows: list[tuple[Any, ...]], target: Any) -> None:
    for row in rows:
        values = [_json_value(value) for value in row]
        target.write(json.dumps(dict(zip(names, values, strict=True)), default=str, ensure_ascii=False) + "\n")


def _json_value(value: Any) -> Any:
    """Decimals as numbers; NaN and infinities, which JSON does not have, as null."""
    if isinstance(value, Decimal):
        value = float(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _csv(names: list[str], rows: list[tuple[Any, ...]], target: Any) -> None:
    writer = csv.writer(target)
    writer.writerow(names)
    writer.writerows(rows)


def _table(names: list[str], rows: list[tuple[Any, ...]], target: Any) -> None:
    """Columns aligned with spaces; control characters of model output are shown, never sent to the terminal."""
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max([len(name), *(len(row[i]) for row in cells)]) for i, name in enumerate(names)]
    is_number = [all(isinstance(row[i], int | float) or row[i] is None for row in rows) for i in range(len(names))]

    def line(values: list[str]) -> str:
        padded = [v.rjust(w) if right else v.ljust(w) for v, w, right in zip(values, widths, is_number, strict=True)]
        return "  ".join(padded).rstrip() + "\n"

    target.write(line(names))
    target.write(line(["-" * width for width in widths]))
    for row in cells:
        target.write(line(row))
    target.write(f"({len(rows)} row{'' if len(rows) == 1 else 's'})\n")


def _cell(value: Any) -> str:
    text = "NULL" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
    text = "".join(c if unicodedata.category(c)[0] != "C" else c.encode("unicode_escape").decode() for c in text)
    return text if len(text) <= MAX_WIDTH else text[: MAX_WIDTH - 1] + "…"


def print_tables() -> None:
    """Every table with its columns, types and sentences, from the one declaration."""
    from storage.schema import LINK_COLUMNS, TABLES

    print("Every table also has:")
    for column in LINK_COLUMNS:
        print(f"    {column.name:<20} {column.type!s:<12} {column.doc}")
    for table in TABLES.values():
        print(f"\n{table.name}: one row is {table.row}")
        for column in table.columns:
            kind = str(column.type).replace("element: ", "").replace(" not null", "")
            print(f"    {column.name:<20} {kind:<12} {column.doc}")
    print("\nViews: runs, run_events, stage_runs, links, missing_files (from the commit log), token_credit (one row")
    print("per token), branch_statistics (one row per step, label and estimator), prompt_ledger (one row per epoch")
    print("and prompt).")
    print("DESCRIBE NAME shows their columns.")
    print("\nStored queries, answered by: tempo sql --query NAME --run RUN")
    for name, sentence in named_queries().items():
        print(f"    {name:<20} {sentence}")
