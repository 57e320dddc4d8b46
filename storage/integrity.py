"""Integrity: every stored byte against its digest, every artifact against the log, and what to do about the rest."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from storage.artifact import MANIFEST, Artifact, Store
from storage.commit_log import current_attempts, num_torn_lines, read_events
from storage.digest import DIGEST_VERSION, table_digest
from storage.dropping import MARKER
from storage.fingerprint import fingerprint
from storage.lock import remove_abandoned, root_lock
from storage.parquet import read_table
from storage.schema import TABLES

SWEEP = "run any command that writes, or tempo fsck --repair: it is swept"
AGAIN = "tempo fsck --repair sets the artifact aside; run its experiment again, and its stage is computed anew"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is not as it should be. A note needs nobody's attention: it costs disk at most."""

    kind: str
    artifact: str
    """stage/key, or the file or run concerned."""
    expected: str
    found: str
    remedy: str
    is_note: bool = False

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        level = "note" if self.is_note else "DAMAGE"
        return f"{level}: {self.kind}: {self.artifact}: expected {self.expected}, found {self.found}. {self.remedy}"


def check(root: Path, progress: Callable[[int, int], None] = lambda done, total: None) -> list[Finding]:
    """Everything that is wrong below a data root, artifact by artifact; reads every file once, and changes nothing."""
    store = Store(root)
    stored = [path for path in sorted(store.artifacts.glob("*/*")) if not path.parent.name.startswith(".")]
    findings: list[Finding] = []
    policies: dict[str, str | None] = {}
    for number, path in enumerate(stored):
        found = list(_check_artifact(Artifact(path.parent.name, path.name, path)))
        findings += found
        if not any(finding.kind != "unexpected file" for finding in found):
            policies |= _policies(Artifact(path.parent.name, path.name, path))
        progress(number + 1, len(stored))
    names = {f"{path.parent.name}/{path.name}" for path in stored}
    findings += _check_parents(policies)
    findings += _check_log(root, names)
    if store.staging_root.exists():
        for folder in sorted(store.staging_root.iterdir()):
            findings.append(_note("staging folder", folder.name, "none, or one that is being written", "one", SWEEP))
    return findings


def repair(root: Path, findings: list[Finding]) -> list[str]:
    """Set damaged artifacts aside under quarantine/ and sweep staging; returns what was done, line by line.

    Raises RootLocked while somebody writes to the root.
    """
    done = []
    with root_lock(root, exclusive=True):
        store = Store(root)
        damaged = {f.artifact: f for f in findings if not f.is_note and (store.artifacts / f.artifact).is_dir()}
        for name, finding in damaged.items():
            evidence = store.set_aside(store.artifacts / name, str(finding))
            if evidence:
                done.append(f"{name} is set aside in {evidence}")
        for folder in store.staging_root.iterdir() if store.staging_root.exists() else ():
            if remove_abandoned(folder):
                done.append(f"the staging folder {folder.name} is removed")
    return done


def _note(kind: str, artifact: str, expected: str, found: str, remedy: str) -> Finding:
    return Finding(kind=kind, artifact=artifact, expected=expected, found=found, remedy=remedy, is_note=True)


def _check_artifact(artifact: Artifact) -> Iterator[Finding]:
    name = f"{artifact.stage}/{artifact.key}"

    def damage(kind: str, expected: str, found: str) -> Finding:
        return Finding(kind=kind, artifact=name, expected=expected, found=found, remedy=AGAIN)

    try:
        manifest = artifact.manifest
        dropped = artifact.dropped
        parts: Mapping[str, Any] = manifest["parts"]
        computed = fingerprint(manifest["key_parts"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        yield damage("unreadable manifest", f"a whole {MANIFEST}", f"{type(error).__name__}: {error}")
        return
    if not manifest["key"] == computed == artifact.key:
        yield damage("wrong key", f"the folder's name {artifact.key[:16]}", f"{manifest['key'][:16]}, {computed[:16]}")
    known = {MANIFEST, MARKER}
    for part_name, part in parts.items():
        known |= set(part["files"])
        if part_name in dropped:
            continue
        broken = list(_check_files(artifact.path, part["files"], damage))
        yield from broken
        if not broken and part["kind"] == "table" and part_name in TABLES:
            digest = _digest_of_table(artifact.path / part["path"], part_name, manifest["schema_version"])
            if digest is not None and digest != part["digest"]:
                yield damage("changed contents", f"digest {part['digest'][:16]} of {part['path']}", digest[:16])
    for file in sorted(artifact.path.rglob("*")):
        relative = str(file.relative_to(artifact.path))
        if file.is_file() and relative not in known:
            yield _note(
                "unexpected file", name, "only what the manifest lists", relative, "It is never read: remove it"
            )


def _check_files(
    folder: Path, files: Mapping[str, Mapping[str, Any]], damage: Callable[[str, str, str], Finding]
) -> Iterator[Finding]:
    for file, facts in files.items():
        path = folder / file
        if not path.is_file():
            yield damage("missing file", file, "nothing")
            continue
        size = path.stat().st_size
        if size != facts["bytes"]:
            yield damage("torn file", f"{file} of {facts['bytes']:,} bytes", f"{size:,} bytes")
            continue
        with path.open("rb") as handle:
            sha256 = hashlib.file_digest(handle, "sha256").hexdigest()
        if sha256 != facts["sha256"]:
            yield damage("changed file", f"{file} with sha256 {facts['sha256'][:16]}", sha256[:16])


def _digest_of_table(file: Path, name: str, schema_version: int) -> str | None:
    """Digest of the rows; None for a file of an older schema, whose digest was of fewer columns, or made otherwise."""
    if schema_version < DIGEST_VERSION or any(column.since > schema_version for column in TABLES[name].columns):
        return None
    try:
        return table_digest(name, read_table(file))
    except (pa.ArrowException, OSError, KeyError) as error:
        return f"an unreadable table ({error})"


def _policies(artifact: Artifact) -> dict[str, str | None]:
    """Parent by policy, of the policies that the artifact holds."""
    if "policies" not in artifact.manifest["parts"]:
        return {}
    with suppress(pa.ArrowException, OSError):
        rows = artifact.part("policies").read(["policy", "parent"])
        return dict(zip(rows.column("policy").to_pylist(), rows.column("parent").to_pylist(), strict=True))
    return {}


def _check_parents(policies: Mapping[str, str | None]) -> Iterator[Finding]:
    for policy, parent in policies.items():
        if parent is not None and parent not in policies:
            yield Finding(
                kind="policy without parent",
                artifact=policy,
                expected=f"its parent {parent} in storage",
                found="none",
                remedy="Its lineage ends here; run its experiment again to make what is missing",
            )


def _check_log(root: Path, names: set[str]) -> Iterator[Finding]:
    """What the log says of the runs' current attempts against what is stored, and the other way round."""
    log = root / "log.jsonl"
    attempts = current_attempts(log)
    used: dict[str, tuple[str, str]] = {}
    known: set[str] = set()
    for event in read_events(log, "stage"):
        if event["outcome"] in ("ran", "cached", "rebuilt"):
            known.add(f"{event['stage']}/{event['key']}")
            for name in (f"{event['stage']}/{event['key']}", *event["inputs"].values()):
                used[name] = (event["run"], event["attempt"])
    for name, (run, attempt) in sorted(used.items()):
        if name not in names and attempts.get(run) == attempt:
            yield Finding(
                kind="missing artifact",
                artifact=name,
                expected=f"what the run {run!r} has committed",
                found="nothing",
                remedy=f"Run the experiment of {run!r} again: what is missing is computed anew",
            )
    for name in sorted(names - known):
        remedy = "A run that needs it finds it by its key; tempo gc removes it"
        yield _note(
            "orphan", name, "an entry in the log", "none (its writer was killed right after the commit)", remedy
        )
    torn = num_torn_lines(log)
    if torn:
        remedy = "Readers skip it, and the artifact is found by its key at the next run"
        yield _note("torn log line", str(log.name), "whole lines", f"{torn} that end in the middle", remedy)


def findings_as_json(findings: list[Finding]) -> str:
    return json.dumps([finding.as_json() for finding in findings], indent=1)
