"""A call of a stage: its identity, and the way from there to an artifact: look in storage, else compute and commit."""

import functools
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from os import getpid
from pathlib import Path
from typing import Any, TypeVar

from storage.artifact import Artifact, Part, Staging
from storage.commit_log import append_event
from storage.contracts import check_contracts
from storage.fingerprint import canonical, fingerprint, fingerprint_of_canonical
from storage.schema import SCHEMA_VERSION
from tasks.place import Context, Place, Summary

Found = TypeVar("Found", Artifact, Artifact | None)


@dataclass(frozen=True)
class Call:
    """One stage at one place with its identity: the keyword arguments it was called with."""

    stage: str
    version: int
    compute: Callable[..., Summary]
    place: Place
    identity: Mapping[str, Any]

    @functools.cached_property
    def inputs(self) -> dict[str, Part]:
        return {name: value for name, value in self.identity.items() if isinstance(value, Part)}

    @functools.cached_property
    def config(self) -> dict[str, Any]:
        """Everything of the identity that is no input, in canonical form."""
        return {name: canonical(value, f"$.{name}") for name, value in self.identity.items() if name not in self.inputs}

    @functools.cached_property
    def take(self) -> str | None:
        return self.place.take_of(self.stage, self.identity)

    @functools.cached_property
    def key_parts(self) -> dict[str, Any]:
        inputs = {name: part.digest for name, part in self.inputs.items()}
        parts = {"stage": self.stage, "version": self.version, "config": self.config, "inputs": inputs}
        return parts | ({"take": self.take} if self.take else {})

    @functools.cached_property
    def key(self) -> str:
        return fingerprint_of_canonical(self.key_parts)

    def run(self) -> tuple[Artifact, str]:
        """The artifact and 'cached' or 'ran'; what happened goes to the commit log and the listener."""
        found = self.hit()
        return (found, "cached") if found is not None else (self._finish("ran", self._make), "ran")

    def hit(self) -> Artifact | None:
        """The stored artifact, logged as 'cached'; None when the stage has to be computed."""
        self.place.run.listener.stage_started(self.place, self.stage)
        return self._finish("cached", lambda: self.place.run.store.find(self.stage, self.key))

    def _finish(self, outcome: str, get: Callable[[], Found]) -> Found:
        """What `get` gives, logged and told; None is no outcome, an exception is the outcome 'failed'."""
        run, started, at = self.place.run, time.perf_counter(), datetime.now(UTC)
        try:
            artifact = get()
        except BaseException as error:
            self.log(at, "failed", time.perf_counter() - started, None, error)
            raise
        if artifact is not None:
            seconds = time.perf_counter() - started
            with disk_full_explained(run.store.root):
                self.log(at, outcome, seconds, artifact, None)
            self.remember(artifact)
            run.listener.stage_finished(self.place, self.stage, outcome, seconds, artifact.summary)
        return artifact

    def remember(self, artifact: Artifact) -> None:
        """Keep the call of an artifact with folders: those may be dropped, and made again by this call."""
        if len(artifact.tables) < len(artifact.manifest["parts"]):
            self.place.run.makers[artifact.stage, artifact.key] = self

    def _make(self) -> Artifact:
        """Compute and commit; inputs that retention has dropped are rebuilt first."""
        from tasks.rebuilding import rebuild

        run = self.place.run
        for part in self.inputs.values():
            if part.is_dropped:
                rebuild(run, part.artifact)
        with self.computed() as staging:
            return run.store.commit(staging, self.stage, self.key, self.key_parts)

    @contextmanager
    def computed(self) -> Iterator[Staging]:
        """The stage's result in a staging folder that is gone after the block, whether it was committed or not."""
        run = self.place.run
        with disk_full_explained(run.store.root), run.store.staging(self.key) as staging:
            context = Context(
                staging=staging,
                key=self.key,
                identity=fingerprint({name: part for name, part in self.key_parts.items() if name != "take"}),
                device=run.device,
                threads=run.threads,
                progress=lambda done, total: run.listener.stage_progress(self.place, self.stage, done, total),
                samplers=run.samplers,
                judges=run.judges,
            )
            staging.summary = canonical(self.compute(context, **self.identity))
            known = self.identity | self.config.get("config", {})
            numbers = {name: value for name, value in known.items() if isinstance(value, int | float)}
            check_contracts(self.stage, staging, self.inputs, {**run.limits, **numbers})
            yield staging

    def log(
        self, at: datetime, outcome: str, seconds: float, artifact: Artifact | None, error: BaseException | None
    ) -> None:
        """Append the stage's event: its place, key and key parts, inputs, outputs and files, outcome and cost."""
        place, root = self.place, self.place.run.store.root
        parts = [artifact.part(name) for name in artifact.manifest["parts"]] if artifact else []
        event = {
            "event": "stage",
            "run": place.run.name,
            "attempt": place.run.attempt,
            "step": place.step,
            "purpose": place.purpose,
            "label": place.label,
            "stage": self.stage,
            "stage_version": self.version,
            "key": self.key,
            "key_parts": self.key_parts,
            "inputs": {name: f"{part.artifact.stage}/{part.artifact.key}" for name, part in self.inputs.items()},
            "outputs": {part.name: part.digest for part in parts},
            "files": {part.name: str(part.path.relative_to(root)) for part in parts},
            "schema_version": artifact.manifest["schema_version"] if artifact else SCHEMA_VERSION,
            "bytes": artifact.num_bytes if artifact else None,
            "outcome": outcome,
            "seconds": round(seconds, 6),
            "tokens": artifact.summary.get("tokens") if artifact else None,
            "error": f"{type(error).__name__}: {error}" if error else None,
        }
        try:
            log_event(place.run.log, event, at)
        except OSError:
            if error is None:
                raise  # an artifact that cannot be logged is a failure; a failure that cannot be logged is already one


def log_event(log: Path, event: dict[str, Any], at: datetime | None = None) -> None:
    """Append an event with time (UTC), host and process."""
    moment = (at or datetime.now(UTC)).strftime("%Y-%m-%d %H:%M:%S.%f")
    append_event(log, event | {"at": moment, "host": socket.gethostname(), "pid": getpid()})


@contextmanager
def disk_full_explained(root: Path) -> Iterator[None]:
    """Turn 'no space left' of any library into one sentence; the staging folder is already gone then."""
    try:
        yield
    except Exception as error:
        if getattr(error, "errno", None) == 28 or "No space left on device" in str(error):
            raise DiskFull(
                f"no space left on the disk of {root.resolve()}: the stage could not be stored; every stage stored "
                "before it is intact. Free some space (or name another --data-root) and run the same command again: it "
                "goes on from the last stored stage"
            ) from error
        raise


class DiskFull(OSError):
    """The data root's disk is full."""
