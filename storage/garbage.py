"""Garbage: artifacts that no kept run needs. Nothing else is ever removed.

A run keeps what its current attempt was made of: every artifact that a stage of it made or found, and what these took
as input. Earlier attempts, artifacts without an entry in the log, what was set aside, and what a
forgotten run alone used is garbage.
"""

import os
import shutil
import time
import uuid
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from storage.artifact import Store
from storage.commit_log import append_event, current_attempts, read_events
from storage.evidence import FOLDER as EVIDENCE
from storage.lock import held_runs, remove_abandoned, root_lock

ORPHAN_SECONDS = 3600
"""An artifact without an entry in the log is left alone for so long: its writer may be about to make the entry."""


@dataclass(frozen=True)
class Garbage:
    """One thing to remove, why, and how large it is."""

    path: Path
    why: str
    num_bytes: int


@dataclass(frozen=True)
class Report:
    """What was found, and whether it was removed."""

    garbage: tuple[Garbage, ...]
    num_kept: int
    forgotten: tuple[str, ...]
    is_deleted: bool

    @property
    def num_bytes(self) -> int:
        return sum(each.num_bytes for each in self.garbage)

    def summary(self) -> str:
        """Lines for people: by reason, then the sum."""
        by_reason: dict[str, list[Garbage]] = {}
        for each in self.garbage:
            by_reason.setdefault(each.why, []).append(each)
        lines = [
            f"{len(found):>6}  {sum(each.num_bytes for each in found) / 1e6:>10,.1f} MB  {why}"
            for why, found in sorted(by_reason.items())
        ]
        done = "removed" if self.is_deleted else "would be removed"
        lines.append(f"{len(self.garbage)} {done}, {self.num_bytes / 1e6:,.1f} MB; {self.num_kept} artifacts are kept")
        if self.forgotten and self.is_deleted:
            lines.append(f"forgotten: {', '.join(self.forgotten)}")
        return "\n".join(lines)


def collect(root: Path, *, delete: bool, forget: tuple[str, ...] = ()) -> Report:
    """Find what no kept run needs, and with `delete` remove it; the runs in `forget` are no longer kept.

    Raises ValueError for a run that is not stored, RootLocked (with `delete`) while somebody writes to the root.
    """
    if not delete:
        return _find(root, forget)
    with root_lock(root, exclusive=True):
        report = _find(root, forget)
        for run, attempt in current_attempts(root / "log.jsonl").items():
            if run in forget:
                _append(root, {"event": "run", "run": run, "attempt": attempt, "state": "forgotten"})
        _append(root, {"event": "gc", "removed": len(report.garbage), "bytes": report.num_bytes})
        store = Store(root)
        store.staging_root.mkdir(parents=True, exist_ok=True)
        for each in report.garbage:
            _remove(each.path, store.staging_root)
    return Report(report.garbage, report.num_kept, report.forgotten, is_deleted=True)


def _append(root: Path, event: dict[str, Any]) -> None:
    append_event(root / "log.jsonl", event | {"at": datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S.%f")})


def _find(root: Path, forget: tuple[str, ...]) -> Report:
    attempts = current_attempts(root / "log.jsonl")
    unknown = [run for run in forget if run not in attempts]
    if unknown:
        raise ValueError(f"--forget {unknown[0]}: no such run; expected one of {', '.join(sorted(attempts)) or 'none'}")
    busy = [run for run in forget if run in held_runs(root)]
    if busy:
        raise ValueError(f"--forget {busy[0]}: the run is being worked on; stop it first")
    kept, known = _needed({run: a for run, a in attempts.items() if run not in forget}, root / "log.jsonl")
    store, garbage, num_kept = Store(root), [], 0
    for path in sorted(store.artifacts.glob("*/*")):
        name = f"{path.parent.name}/{path.name}"
        if path.parent.name.startswith("."):
            continue
        if name in kept or (name not in known and time.time() - path.stat().st_mtime < ORPHAN_SECONDS):
            num_kept += 1
            continue
        why = (
            "only of earlier attempts or forgotten runs" if name in known else "in no log entry: the writer was killed"
        )
        garbage.append(Garbage(path, why, _size(path)))
    for path in sorted((root / "quarantine").glob("*")):
        garbage.append(Garbage(path, "set aside: damaged, or in breach of a contract", _size(path)))
    for path in sorted((root / EVIDENCE).glob("*")):
        garbage.append(Garbage(path, "evidence of updates that were refused", _size(path)))
    return Report(tuple(garbage), num_kept, forget, is_deleted=False)


def _needed(attempts: dict[str, str], log: Path) -> tuple[set[str], set[str]]:
    """Artifacts that these attempts need, as stage/key, and all that the log knows."""
    needed: set[str] = set()
    known: set[str] = set()
    for event in read_events(log, "stage"):
        name = f"{event['stage']}/{event['key']}"
        known.add(name)
        if event["outcome"] in ("ran", "cached", "rebuilt") and attempts.get(event["run"]) == event["attempt"]:
            needed |= {name, *event["inputs"].values()}
    return needed, known


def _size(path: Path) -> int:
    files: Iterable[Path] = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _remove(path: Path, staging_root: Path) -> None:
    """Out of sight in one rename, then deleted: a killed gc leaves whole artifacts and a folder to sweep."""
    away = staging_root / f"gc-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    try:
        os.rename(path, away)
    except OSError:  # quarantine may lie on another disk than artifacts
        shutil.rmtree(path, ignore_errors=True)
        return
    if away.is_dir():
        remove_abandoned(away)
    else:
        away.unlink()
    with suppress(OSError):
        path.parent.rmdir()  # a stage that has no artifact left
