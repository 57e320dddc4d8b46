"""`tempo runs`, `tempo fsck` and `tempo gc`: what is stored, whether it is whole, and what nobody needs."""

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from storage.catalog import open_catalog
from storage.lock import held_runs

RUNS = """
    WITH sizes AS (
        SELECT run, sum(bytes)::BIGINT AS bytes
        FROM (SELECT DISTINCT s.run, s.key, s.bytes FROM stage_runs s JOIN runs USING (run, attempt))
        GROUP BY run
    )
    SELECT run, state, attempt, last_stage, num_ran, num_cached, started_at, last_event_at, bytes
    FROM runs JOIN sizes USING (run) ORDER BY last_event_at DESC"""


def run_rows(data_root: Path) -> list[dict[str, Any]]:
    """One row per run: how it stands, where, since when, how large its current attempt is.

    state: running (somebody holds it), killed (it was started, and nobody does), completed, failed or interrupted.
    """
    answer = open_catalog(data_root).execute(RUNS)
    names = [column[0] for column in answer.description or []]
    held, now = held_runs(data_root), datetime.now(UTC).replace(tzinfo=None)
    rows = []
    for row in (dict(zip(names, values, strict=True)) for values in answer.fetchall()):
        state = "running" if row["run"] in held else "killed" if row["state"] == "started" else row["state"]
        size = None if row["bytes"] is None else f"{row['bytes'] / 1e6:,.1f} MB"
        rows.append(
            {
                "run": row["run"],
                "state": state,
                "last_stage": row["last_stage"],
                "attempt": row["attempt"],
                "ran": row["num_ran"],
                "cached": row["num_cached"],
                "age": age(now - row["started_at"]),
                "last_event": f"{age(now - row['last_event_at'])} ago",
                "size": size,
                "holder": held.get(row["run"]),
            }
        )
    return rows


def age(passed: Any) -> str:
    """A time span in its largest two units.

    >>> from datetime import timedelta
    >>> age(timedelta(hours=25, minutes=3)), age(timedelta(seconds=61)), age(timedelta(seconds=9))
    ('1 d 1 h', '1 min 1 s', '9 s')
    """
    left, parts = max(int(passed.total_seconds()), 0), []
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        count, left = divmod(left, size)
        parts.append((count, unit))
    shown = [f"{count} {unit}" for count, unit in parts if count][:2]
    return " ".join(shown) or "0 s"


def print_runs(data_root: Path, format: str) -> None:
    from flows.query import print_rows

    rows = run_rows(data_root)
    names = list(rows[0]) if rows else ["run", "state"]
    print_rows(names, [tuple(row.values()) for row in rows], format, sys.stdout)


def fsck(data_root: Path, repairs: bool, format: str) -> int:
    """Print every finding; exit code 0 when none matters, 1 otherwise (also after a repair: something was lost)."""
    from rich.console import Console
    from rich.progress import Progress

    from storage.integrity import check, findings_as_json, repair

    if not (data_root / "log.jsonl").exists():
        raise FileNotFoundError(f"no run has been stored under {data_root.resolve()}: there is nothing to check")
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        bar = progress.add_task("checking artifacts", total=None)
        findings = check(data_root, lambda done, total: progress.update(bar, completed=done, total=total))
    damage = [finding for finding in findings if not finding.is_note]
    if format == "json":
        print(findings_as_json(findings))
    else:
        for finding in findings:
            print(finding)
        print(f"{len(damage)} damaged or missing, {len(findings) - len(damage)} notes")
    if repairs:
        for line in repair(data_root, findings):
            print(line)
    elif damage and format != "json":
        print("Nothing was changed; to set damaged artifacts aside: tempo fsck --repair")
    return 1 if damage else 0


def gc(data_root: Path, delete: bool, forget: list[str]) -> int:
    """Print what no kept run needs; remove it only when asked to."""
    from storage.garbage import collect

    if not (data_root / "log.jsonl").exists():
        raise FileNotFoundError(f"no run has been stored under {data_root.resolve()}: there is nothing to collect")
    report = collect(data_root, delete=delete, forget=tuple(forget))
    print(report.summary())
    if report.garbage and not delete:
        print("Nothing was removed; to remove it, call this again with --delete")
    return 0
