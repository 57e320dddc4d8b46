"""Helpers of the storage tests: a data root built by hand, and real processes that can be killed."""

import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from storage.artifact import Artifact, Store
from storage.catalog import open_catalog, run_query
from storage.commit_log import append_event

REPOSITORY = Path(__file__).resolve().parent.parent.parent
SECONDS = 60
"""No test waits longer than this for another process."""


class Process:
    """Python code in a process of its own: `line()` waits for what it prints, `go()` lets its `input()` return."""

    def __init__(self, code: str, *arguments: str, **environment: str) -> None:
        self.popen = subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
            cwd=REPOSITORY,
            env=os.environ | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def line(self) -> str:
        assert self.popen.stdout is not None
        assert select.select([self.popen.stdout], [], [], SECONDS)[0], "the other process said nothing"
        return self.popen.stdout.readline().strip()

    def go(self) -> None:
        assert self.popen.stdin is not None
        print(flush=True, file=self.popen.stdin)

    def wait(self) -> int:
        return self.popen.wait(SECONDS)

    def kill(self) -> None:
        self.popen.send_signal(signal.SIGKILL)
        assert self.wait() == -signal.SIGKILL


@pytest.fixture
def start() -> Iterator[Callable[..., Process]]:
    """Start Python code in another process; it is gone when the test ends."""
    started: list[Process] = []

    def start(code: str, *arguments: str, **environment: str) -> Process:
        started.append(Process(code, *arguments, **environment))
        return started[-1]

    yield start
    for process in started:
        with suppress(ProcessLookupError):
            process.popen.kill()
        process.popen.wait(SECONDS)
        for pipe in (process.popen.stdin, process.popen.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()


class DataRoot:
    """A data root made of hand-written rows: `commit` an artifact, `log` that a run used it, ask with `sql`."""

    def __init__(self, path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.log_file = path / "log.jsonl"
        self.store = Store(path)
        self.store.open_for_writing()

    def commit(self, key: str, stage: str = "stage", **tables: dict[str, Any]) -> Artifact:
        with self.store.staging(key) as staging:
            for name, columns in tables.items():
                staging.add_table(name, columns)
            return self.store.commit(staging, stage, key, {"key": key})

    def log(self, artifact: Artifact | None, run: str = "demo", step: int = 1, **event: Any) -> None:
        place = {"event": "stage", "run": run, "step": step, "purpose": "train", "attempt": "a", "label": ""}
        if artifact is not None:
            files = {name: str(artifact.part(name).path.relative_to(self.path)) for name in artifact.tables}
            place |= {"stage": artifact.stage, "key": artifact.key, "outcome": "ran", "files": files}
            place |= {"schema_version": artifact.manifest["schema_version"]}
        append_event(self.log_file, place | event)

    def sql(self, statement: str) -> list[tuple[Any, ...]]:
        return run_query(open_catalog(self.path), statement).fetchall()


@pytest.fixture(scope="session")
def new_data_root() -> type[DataRoot]:
    return DataRoot


@pytest.fixture
def data_root(tmp_path: Path) -> DataRoot:
    return DataRoot(tmp_path / "data")


@pytest.fixture(scope="session")
def words() -> Callable[..., dict[str, Any]]:
    """Rows of the table vocabulary: the smallest table there is."""
    return lambda *texts: {"token_id": list(range(len(texts))), "text": list(texts)}
