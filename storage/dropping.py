"""Dropping folders of a committed artifact to save disk, and putting rebuilt ones back.

The artifact stays: its tables, its manifest and therefore the digests of what was dropped. The marker `dropped.json`
beside the manifest names the parts whose files may be absent. It is written before the first file goes and removed
after the last one is back, so that a process killed at any instant leaves an artifact that is whole or marked, never
one that looks damaged.
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from storage.lock import folder_lock

if TYPE_CHECKING:
    from storage.artifact import Artifact, Staging

MARKER = "dropped.json"


def read_marker(artifact_path: Path) -> frozenset[str]:
    """Names of the parts that were dropped. Raises ValueError when the marker is no list of names."""
    try:
        names = json.loads((artifact_path / MARKER).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return frozenset()
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{artifact_path / MARKER}: expected a JSON list of part names, got {names!r}")
    return frozenset(names)


def drop_parts(artifact: "Artifact", names: Iterable[str], away: Path) -> None:
    """Mark the folder parts `names` as dropped, then move them to `away`, a folder on the same disk.

    Raises ValueError for a table: views read it, and nothing but its stage can make it again.
    """
    names = sorted(set(names))
    for name in names:
        artifact.part(name)
        if artifact.manifest["parts"][name]["kind"] != "folder":
            raise ValueError(f"part {name!r} of {artifact.stage}/{artifact.key[:12]} is a table: only folders can go")
    with folder_lock(artifact.path):
        _write_marker(artifact.path, artifact.dropped | set(names), away)
        for name in names:
            folder = artifact.part(name).path
            if folder.exists():
                os.rename(folder, away / name)
        flush(artifact.path)


def restore_parts(artifact: "Artifact", staging: "Staging", names: Iterable[str]) -> None:
    """Move rebuilt folders from `staging` back into the artifact; a part that was not dropped stays as it is.

    Raises ValueError when a folder's contents differ from those that were dropped; nothing has changed then.
    """
    names = sorted(set(names))
    for name in names:
        expected, got = artifact.part(name).digest, staging.parts.get(name, {}).get("digest")
        if expected != got:
            raise ValueError(
                f"part {name!r} of {artifact.stage}/{artifact.key[:12]} was rebuilt with other contents: expected the "
                f"digest {expected}, got {got}; it stays dropped, since what was made from it would no longer fit. "
                "Another machine kind or library version computes other bits: rebuild where the run was made"
            )
    with folder_lock(artifact.path):
        dropped = artifact.dropped
        for name in dropped.intersection(names):
            rebuilt, target = staging.path / staging.parts[name]["path"], artifact.part(name).path
            for entry in [rebuilt, *rebuilt.rglob("*")]:
                flush(entry)
            if target.exists():  # left by a process that was killed while it dropped or restored the part
                os.rename(target, staging.path / f"{name}.left")
            os.rename(rebuilt, target)
            flush(target.parent)
        _write_marker(artifact.path, dropped.difference(names), staging.path)


def _write_marker(artifact_path: Path, names: Iterable[str], scratch: Path) -> None:
    """Replace the marker in one rename, or remove it when no name is left; on disk when this returns."""
    listed = sorted(names)
    if listed:
        written = scratch / MARKER
        written.write_text(json.dumps(listed), encoding="utf-8")
        flush(written)
        os.rename(written, artifact_path / MARKER)
    else:
        (artifact_path / MARKER).unlink(missing_ok=True)
    flush(artifact_path)


def flush(path: Path) -> None:
    """Flush a file or a folder's entries to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
