"""The artifact store: results addressed by what they were computed from, committed by one rename.

Layout below the data root:

    artifacts/<stage>/<key>/manifest.json, <table>.parquet, <folder>/...    committed, never changed afterwards
    artifacts/<stage>/<key>/dropped.json                                    names of folders dropped since (dropping.py)
    artifacts/.staging/<key>-<pid>-<random>/                                being written; swept when nobody holds it
    log.jsonl                                                               one line per event (commit_log.py)

A result is written to a staging folder, flushed to disk, and renamed: readers see all of it or nothing. A folder that
was renamed by a process killed before it logged the commit is complete, and is found by its key at the next run.
"""

import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from storage import dropping
from storage.dropping import flush
from storage.fingerprint import canonical
from storage.lock import folder_lock, hold_new_folder, remove_abandoned
from storage.parquet import read_table
from storage.schema import SCHEMA_VERSION, TABLES
from storage.staging import Staging as Staging

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Part:
    """One part of an artifact, a table or a folder: what another stage takes as input. Identity: `digest`."""

    artifact: "Artifact"
    name: str

    @property
    def digest(self) -> str:
        """Digest of the contents: rows in key order for a table, files by name for a folder."""
        return str(self.artifact.manifest["parts"][self.name]["digest"])

    @property
    def path(self) -> Path:
        """The Parquet file, or the folder."""
        return self.artifact.path / str(self.artifact.manifest["parts"][self.name]["path"])

    @property
    def is_dropped(self) -> bool:
        """The folder was dropped to save disk: its digest is known, its files are not to be used."""
        return self.name in self.artifact.dropped

    def read(self, columns: list[str] | None = None) -> pa.Table:
        """Rows of a table part; columns that its schema version did not have yet are NULL."""
        rows = read_table(self.path, columns)
        for name in columns or ():
            if name not in rows.column_names:
                rows = rows.append_column(name, pa.nulls(rows.num_rows, TABLES[self.name].column(name).type))
        return rows

    def open(self) -> pq.ParquetFile:
        """A table part, to be read row group by row group."""
        return pq.ParquetFile(self.path)


@dataclass(frozen=True)
class Artifact:
    """A committed result. `key` says what it was computed from, its parts' digests what it is."""

    stage: str
    key: str
    path: Path

    @cached_property
    def manifest(self) -> dict[str, Any]:
        with open(f"{self.path}/{MANIFEST}", "rb") as file:
            loaded: dict[str, Any] = json.load(file)
        return loaded

    def part(self, name: str) -> Part:
        parts = self.manifest["parts"]
        if name not in parts:
            raise KeyError(f"artifact {self.stage}/{self.key[:12]} has the parts {sorted(parts)}, not {name!r}")
        return Part(self, name)

    @property
    def summary(self) -> dict[str, Any]:
        """Figures the stage gave for people (accuracy, tokens): shown again when the artifact is found in the cache."""
        stored: dict[str, Any] = self.manifest["summary"]
        return stored

    @property
    def take(self) -> str | None:
        """Name of the rerun that computed the artifact again; None for the first time."""
        name: str | None = self.manifest["key_parts"].get("take")
        return name

    @property
    def tables(self) -> list[str]:
        return [name for name, part in self.manifest["parts"].items() if part["kind"] == "table"]

    @property
    def dropped(self) -> frozenset[str]:
        """Names of the parts whose files were dropped (dropping.py). Read anew each time: another process may drop."""
        return dropping.read_marker(self.path)

    @property
    def num_bytes(self) -> int:
        """Bytes of the files, those of dropped parts left out."""
        dropped = self.dropped
        kept = [part for name, part in self.manifest["parts"].items() if name not in dropped]
        return sum(file["bytes"] for part in kept for file in part["files"].values())

    def is_whole(self) -> bool:
        """Every file of every part that is not dropped is there, with its size. Raises ValueError, OSError, KeyError
        for an unreadable manifest."""
        cut = {
            name
            for name, part in self.manifest["parts"].items()
            if not all(_has_size(f"{self.path}/{file}", facts["bytes"]) for file, facts in part["files"].items())
        }
        return not cut or cut <= self.dropped  # the marker is asked for only when files are missing


class Store:
    """Artifacts below one data root on a local file system."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.artifacts = root / "artifacts"
        self.staging_root = self.artifacts / ".staging"

    def open_for_writing(self) -> None:
        """Create the folders and sweep what killed writers left. Raises OSError when the root is not writable."""
        self.staging_root.mkdir(parents=True, exist_ok=True)
        for folder in self.staging_root.iterdir():
            remove_abandoned(folder)

    def path_of(self, stage: str, key: str) -> Path:
        return self.artifacts / stage / key

    def find(self, stage: str, key: str, *, sets_aside: bool = True) -> Artifact | None:
        """The committed artifact of this key, or None. One whose files are missing or cut short is set aside."""
        path = self.path_of(stage, key)
        if not path.exists():
            return None
        artifact = Artifact(stage, key, path)
        if _looks_whole(artifact):
            return artifact
        if not sets_aside:
            return None
        with suppress(FileNotFoundError), folder_lock(path):  # another process may be dropping or restoring a part
            if _looks_whole(Artifact(stage, key, path)):
                return Artifact(stage, key, path)
            self.set_aside(path)
        return None

    def set_aside(self, path: Path, reason: str = "") -> Path | None:
        """Move a damaged artifact out of the way, as evidence; its stage will run again. None if it is gone already."""
        quarantine = self.root / "quarantine"
        quarantine.mkdir(exist_ok=True)
        evidence = quarantine / f"{path.parent.name}-{path.name[:16]}-{uuid.uuid4().hex[:8]}"
        try:
            os.rename(path, evidence)
        except FileNotFoundError:  # another process has set it aside
            return None
        if reason:
            (evidence / "reason.txt").write_text(f"{reason}\n", encoding="utf-8")
        return evidence

    def drop_parts(self, artifact: Artifact, names: Iterable[str]) -> None:
        """Remove folder parts of an artifact to save disk; whole or dropped at any instant. ValueError for a table."""
        with self.staging(artifact.key) as staging:
            dropping.drop_parts(artifact, names, staging.path)

    def restore_parts(self, artifact: Artifact, staging: Staging, names: Iterable[str]) -> None:
        """Put rebuilt folders of a staging back into an artifact. ValueError when their digests are not the dropped
        ones; nothing has changed then."""
        dropping.restore_parts(artifact, staging, names)

    @contextmanager
    def staging(self, key: str) -> Iterator[Staging]:
        """A new staging folder, held by this process; removed when the block ends without a commit."""
        while True:
            path = self.staging_root / f"{key[:16]}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
            try:
                held = hold_new_folder(path)
                break
            except FileNotFoundError:  # a sweep came between making and holding it: another name, another try
                continue
        try:
            yield Staging(path)
        finally:
            shutil.rmtree(path, ignore_errors=True)
            os.close(held)

    def commit(self, staging: Staging, stage: str, key: str, key_parts: object) -> Artifact:
        """Publish a staging folder under its key: manifest, flush to disk, one rename.

        When another process committed the same key first, its artifact is kept and ours dropped.
        """
        manifest = {
            "stage": stage,
            "key": key,
            "key_parts": canonical(key_parts),
            "schema_version": SCHEMA_VERSION,
            "parts": staging.parts,
            "summary": staging.summary,
        }
        text = json.dumps(manifest, indent=1, sort_keys=True, allow_nan=False)
        (staging.path / MANIFEST).write_text(text, encoding="utf-8")
        for entry in [staging.path, *staging.path.rglob("*")]:
            flush(entry)
        target = self.path_of(stage, key)
        is_first = not target.parent.exists()
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.rename(staging.path, target)
        except OSError:
            if not target.exists():
                raise
        flush(target.parent)
        if is_first:
            flush(self.artifacts)
        return Artifact(stage, key, target)


def _has_size(file: str, size: int) -> bool:
    try:
        return os.stat(file).st_size == size
    except FileNotFoundError:
        return False


def _looks_whole(artifact: Artifact) -> bool:
    """`is_whole`, where an unreadable manifest is damage like any other."""
    try:
        return artifact.is_whole()
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
