"""Locks that the kernel frees when their holder ends, however it ends.

A run has one writer (`run_lock`). A data root has any number of writers, and none while something is removed from it
(`root_lock`). A folder is held by whoever is changing it (`folder_lock`), and a staging folder by its writer.
"""

import fcntl
import json
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

ROOT_LOCK = ".data-root.lock"
"""No run has this name: one that begins with a dot is refused."""


class RunLocked(RuntimeError):
    """Another process is working on the run."""


@contextmanager
def run_lock(path: Path, run: str) -> Iterator[None]:
    """Hold the lock file `path` for the run, or raise RunLocked and say who holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunLocked(
                f"the run {run!r} is already being worked on by {_holder(descriptor)}; two writers of one run would "
                "repeat each other's work. Wait for it, stop it, or give this one another name: --set run=NAME"
            ) from None
        holder = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "since": datetime.now(UTC).isoformat("T", "seconds"),
        }
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(holder).encode(), 0)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Hold a folder to oneself for an instant, waiting for whoever has it. Raises FileNotFoundError when it is gone."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


class RootLocked(RuntimeError):
    """Something else is at work on the data root."""


@contextmanager
def root_lock(root: Path, *, exclusive: bool) -> Iterator[None]:
    """Hold the data root together with other writers, or to oneself, to remove things from it.

    Writers wait for whoever removes: that takes seconds. Raises RootLocked when something is to be removed and somebody
    writes: an artifact that is not in the log yet, or was just found in storage, must not be taken away from them.
    """
    (root / "locks").mkdir(parents=True, exist_ok=True)
    descriptor = os.open(root / "locks" / ROOT_LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB if exclusive else fcntl.LOCK_SH)
        except BlockingIOError:
            held = [f"{run} ({holder})" for run, holder in held_runs(root).items()]
            raise RootLocked(
                f"the data root {root.resolve()} is being written to: {', '.join(held) or 'by another process'}. "
                "Nothing is removed while somebody writes; wait for it to end, or stop it, and call this again"
            ) from None
        yield
    finally:
        os.close(descriptor)


def held_runs(root: Path) -> dict[str, str]:
    """The runs that somebody is working on, and who."""
    held = {}
    for path in sorted((root / "locks").glob("*.lock")):
        if path.name == ROOT_LOCK:
            continue
        descriptor = os.open(path, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            held[path.name.removesuffix(".lock")] = _holder(descriptor)
        finally:
            os.close(descriptor)
    return held


def hold_new_folder(folder: Path) -> int:
    """Make `folder` and hold it; returns the descriptor that holds it until it is closed.

    Raises FileExistsError when it exists, and FileNotFoundError when `remove_abandoned` took it between the two.
    """
    folder.mkdir(parents=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_ino != folder.stat().st_ino:
            raise FileNotFoundError(folder)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def remove_abandoned(folder: Path) -> bool:
    """Remove a folder that nobody holds; True if it is gone."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except (FileNotFoundError, NotADirectoryError):
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)


def _holder(descriptor: int) -> str:
    try:
        holder = json.loads(os.pread(descriptor, 4096, 0))
        return f"process {holder['pid']} on {holder['host']} since {holder['since']}"
    except (ValueError, KeyError):
        return "another process"
