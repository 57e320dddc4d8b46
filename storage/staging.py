"""A result while it is being laid out: tables and folders with their digests, before the commit."""

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from storage.fingerprint import fingerprint
from storage.parquet import TableWriter, make_table


class Staging:
    """A folder in which a stage lays out its result before the commit."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.parts: dict[str, dict[str, Any]] = {}
        self.tables: dict[str, pa.Table | Path] = {}
        """The tables added so far, for the contracts: their rows, or the file of one that was written in chunks."""
        self.summary: dict[str, Any] = {}

    def add_table(self, name: str, columns: Mapping[str, Any]) -> pa.Table:
        """Write one declared table; returns its rows in key order."""
        rows = make_table(name, columns)
        with self.open_table(name) as writer:
            writer.add_rows(rows)
        self.tables[name] = rows
        return rows

    @contextmanager
    def open_table(self, name: str) -> Iterator[TableWriter]:
        """Write one declared table in chunks, in key order, without ever holding it: `writer.add(columns)`."""
        file = f"{name}.parquet"
        writer = TableWriter(self.path / file, name)
        try:
            yield writer
        finally:
            writer.close()
        self.tables[name] = self.path / file
        self.parts[name] = {
            "kind": "table",
            "path": file,
            "rows": writer.digest.num_rows,
            "digest": writer.digest.hexdigest(),
            "files": {file: _file_facts(self.path / file)},
        }

    @property
    def root(self) -> Path:
        """The data root."""
        return self.path.parent.parent.parent

    def evidence(self, stage: str) -> Path:
        """Where the folder goes when its contents break a contract: quarantine/<stage>-<key>-<random>."""
        key, _, random = self.path.name.split("-")
        return self.root / "quarantine" / f"{stage}-{key}-{random}"

    def set_aside(self, evidence: Path, facts: Mapping[str, Any]) -> None:
        """Move the folder to `evidence`, with the facts in breach.json: it can no longer be committed."""
        text = json.dumps(facts, indent=1, ensure_ascii=False)
        (self.path / "breach.json").write_text(text, encoding="utf-8")
        evidence.parent.mkdir(exist_ok=True)
        shutil.move(self.path, evidence)  # artifacts may be a link to another disk

    def add_folder(self, name: str, folder: Path) -> None:
        """Register a folder already written below `path`; its digest covers every file's name and bytes."""
        files = {
            str(file.relative_to(self.path)): _file_facts(file) for file in sorted(folder.rglob("*")) if file.is_file()
        }
        inside = {str(Path(file).relative_to(folder.relative_to(self.path))): f["sha256"] for file, f in files.items()}
        self.parts[name] = {
            "kind": "folder",
            "path": str(folder.relative_to(self.path)),
            "digest": fingerprint(inside),
            "files": files,
        }


def _file_facts(file: Path) -> dict[str, Any]:
    with file.open("rb") as handle:
        return {"sha256": hashlib.file_digest(handle, "sha256").hexdigest(), "bytes": file.stat().st_size}
