"""What a data root holds, as the tests of commands ask it."""

from pathlib import Path
from typing import Any

from storage.catalog import open_catalog


def query(data: Path, statement: str) -> list[tuple[Any, ...]]:
    return open_catalog(data).execute(statement).fetchall()


def ran(data: Path, after: int) -> list[tuple[int, str, str]]:
    """(step, purpose, stage) of what was computed since the log had `after` lines."""
    statement = f"SELECT step, purpose, stage FROM stage_runs WHERE outcome = 'ran' AND line > {after} ORDER BY line"
    return query(data, statement)


def num_lines(data: Path) -> int:
    return len((data / "log.jsonl").read_text().splitlines())
