"""The commit log: one JSON line per event, appended and flushed; readers take files from here, never from a glob.

A writer killed in the middle of a line leaves a torn last line. Readers skip it, and the next writer ends it first, so
that it never joins the line that follows.
"""

import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def append_event(log: Path, event: dict[str, Any]) -> None:
    """Append one event and flush it to disk. Several processes may append at once."""
    text = json.dumps(event, sort_keys=True, ensure_ascii=False, allow_nan=False)
    line = text.encode(errors="replace") + b"\n"  # a message can name a file whose name is not UTF-8
    descriptor = os.open(log, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        end = os.lseek(descriptor, 0, os.SEEK_END)
        if end and os.pread(descriptor, 1, end - 1) != b"\n":
            line = b"\n" + line
        if os.write(descriptor, line) != len(line):
            os.ftruncate(descriptor, end)
            raise OSError(28, "No space left on device", str(log))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_events(log: Path, kind: str | None = None) -> Iterator[dict[str, Any]]:
    """Every whole event, oldest first, or those of one kind ('run', 'stage'); lines torn by a kill are skipped."""
    if not log.exists():
        return
    with log.open("rb") as lines:
        marker = f'"event": "{kind}"'.encode() if kind else b""
        for line in lines:
            if marker not in line:  # a line is parsed in 40 us: a long log holds thousands
                continue
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if isinstance(event, dict) and kind in (None, event.get("event")):
                yield event


def current_attempts(log: Path) -> dict[str, str]:
    """The attempt that every run was last worked on with; without the runs that were forgotten."""
    attempts: dict[str, str] = {}
    for event in read_events(log):
        if "attempt" in event:
            attempts[event["run"]] = event["attempt"]
            if event.get("state") == "forgotten":
                del attempts[event["run"]]
    return attempts


def num_torn_lines(log: Path) -> int:
    """How many lines are no whole event."""
    if not log.exists():
        return 0
    num_lines = sum(1 for line in log.read_bytes().splitlines() if line.strip())
    return num_lines - sum(1 for _ in read_events(log))
