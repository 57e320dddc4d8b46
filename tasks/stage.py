"""A stage: identity -> look in storage -> compute -> commit. Prefect displays it, storage decides whether it runs.

    @stage("credit", version=1)
    def credit(context: Context, *, rollouts: Part, verdicts: Part, config: CreditConfig) -> Summary: ...

    artifact = credit(place, rollouts=..., verdicts=..., config=...)

Every keyword argument is part of the stage's identity: artifact parts by the digest of their contents, everything else
by its canonical JSON. What only says where or how fast (device, paths, progress) comes with the context.
"""

import functools
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Concatenate, ParamSpec

from storage.artifact import Artifact, Part, Staging, Store
from storage.commit_log import append_event
from storage.contracts import check_contracts
from storage.fingerprint import canonical, fingerprint

P = ParamSpec("P")
Summary = dict[str, Any]
"""Figures for people: stored with the artifact, shown when it is made and when it is found again."""


class Listener:
    """What a run tells whoever watches it; this one is silent."""

    def note(self, text: str) -> None:
        """Something that the person who started the run should know."""

    def stage_started(self, place: "Place", stage: str) -> None:
        """A stage is about to be looked up and, on a miss, computed."""

    def stage_progress(self, place: "Place", stage: str, done: int, total: int) -> None:
        """`done` of `total` units (completions, updates) of the running stage."""

    def stage_finished(self, place: "Place", stage: str, outcome: str, seconds: float, summary: Summary) -> None:
        """The stage's artifact is committed (outcome 'ran') or was found ('cached')."""


@dataclass(frozen=True)
class Run:
    """One attempt at a run: where it is stored and who watches. `uses_prefect` reports each stage as a Prefect task."""

    name: str
    attempt: str
    store: Store
    listener: Listener = field(default_factory=Listener)
    uses_prefect: bool = True
    device: str = "auto"
    threads: int = 0
    limits: Mapping[str, float | bool] = field(default_factory=dict, compare=False)
    """Figures that contracts compare with (config.ContractsConfig); one that is absent is not compared."""

    @property
    def log(self) -> Path:
        return self.store.root / "log.jsonl"

    def at(self, step: int, purpose: str = "train", label: str = "") -> "Place":
        return Place(self, step, purpose, label)


@dataclass(frozen=True)
class Place:
    """Where in a run a stage stands: the step, train or eval, and a label that tells apart what else would coincide."""

    run: Run
    step: int
    purpose: str = "train"
    label: str = ""

    def title(self, stage: str) -> str:
        return f"step {self.step:03d} {stage}" + (f" {self.label}" if self.label else "")


@dataclass(frozen=True)
class Context:
    """What a stage's computation may use beside its identity."""

    staging: Staging
    key: str
    device: str
    threads: int
    progress: Callable[[int, int], None]


def stage(
    name: str, *, version: int
) -> Callable[[Callable[Concatenate[Context, P], Summary]], Callable[..., Artifact]]:
    """Make `compute(context, **identity) -> summary` a stage: called with a Place, it returns a committed Artifact.

    Raise `version` whenever the same identity would give other contents: artifacts of the older version then no longer
    answer. Exceptions of the computation pass through; nothing is committed then, and the failure is in stage_runs.
    """

    def decorate(compute: Callable[Concatenate[Context, P], Summary]) -> Callable[..., Artifact]:
        @functools.wraps(compute)
        def call(place: Place, **identity: Any) -> Artifact:
            call = _Call(name, version, compute, place, identity)
            return _as_prefect_task(call) if place.run.uses_prefect else call.run()[0]

        return call

    return decorate


@dataclass(frozen=True)
class _Call:
    stage: str
    version: int
    compute: Callable[..., Summary]
    place: Place
    identity: Mapping[str, Any]

    @functools.cached_property
    def key_parts(self) -> dict[str, Any]:
        inputs = {name: value.digest for name, value in self.identity.items() if isinstance(value, Part)}
        config = {name: value for name, value in self.identity.items() if not isinstance(value, Part)}
        return {"stage": self.stage, "version": self.version, "config": canonical(config), "inputs": inputs}

    @functools.cached_property
    def key(self) -> str:
        return fingerprint(self.key_parts)

    def run(self) -> tuple[Artifact, str]:
        """The artifact and 'cached' or 'ran'; what happened goes to the commit log and the listener."""
        run = self.place.run
        started, at = time.perf_counter(), datetime.now(UTC)
        run.listener.stage_started(self.place, self.stage)
        try:
            artifact, outcome = run.store.find(self.stage, self.key), "cached"
            if artifact is None:
                artifact, outcome = self._compute(), "ran"
        except BaseException as error:
            self._log(at, "failed", time.perf_counter() - started, None, error)
            raise
        seconds = time.perf_counter() - started
        with _disk_full_explained(run.store.root):
            self._log(at, outcome, seconds, artifact, None)
        run.listener.stage_finished(self.place, self.stage, outcome, seconds, artifact.summary)
        return artifact, outcome

    def _compute(self) -> Artifact:
        run = self.place.run
        with _disk_full_explained(run.store.root), run.store.staging(self.key) as staging:
            context = Context(
                staging=staging,
                key=self.key,
                device=run.device,
                threads=run.threads,
                progress=lambda done, total: run.listener.stage_progress(self.place, self.stage, done, total),
            )
            staging.summary = canonical(self.compute(context, **self.identity))
            inputs = {name: value for name, value in self.identity.items() if isinstance(value, Part)}
            limits = {name: value for name, value in self.identity.items() if isinstance(value, int | float)}
            check_contracts(self.stage, staging, inputs, {**run.limits, **limits})
            return run.store.commit(staging, self.stage, self.key, self.key_parts)

    def _log(
        self, at: datetime, outcome: str, seconds: float, artifact: Artifact | None, error: BaseException | None
    ) -> None:
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
            "inputs": {
                n: f"{v.artifact.stage}/{v.artifact.key}" for n, v in self.identity.items() if isinstance(v, Part)
            },
            "outputs": {part.name: part.digest for part in parts},
            "files": {part.name: str(part.path.relative_to(root)) for part in parts},
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
    append_event(log, event | {"at": moment, "host": socket.gethostname(), "pid": os.getpid()})


@contextmanager
def _disk_full_explained(root: Path) -> Iterator[None]:
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


def _as_prefect_task(call: _Call) -> Artifact:
    """Run the call as a Prefect task that ends in the state Cached or Completed; Prefect's own cache stays off.

    Prefect's cache key would hold the run's id and its record may point to a deleted file; storage is the one truth.
    """
    from prefect import Task
    from prefect.cache_policies import NO_CACHE
    from prefect.states import Completed

    found: list[Artifact] = []

    def body(step: int, purpose: str, label: str, key: str) -> Any:
        artifact, outcome = call.run()
        found.append(artifact)
        message = ", ".join(f"{name} {value}" for name, value in artifact.summary.items() if value is not None)
        name = "Cached" if outcome == "cached" else "Completed"
        return Completed(name=name, message=message or None)

    task = Task(
        fn=body,
        name=call.stage,
        task_run_name=call.place.title(call.stage),
        cache_policy=NO_CACHE,
        persist_result=False,
        log_prints=False,
    )
    place = call.place
    state = task(place.step, place.purpose, place.label, call.key, return_state=True)
    if not state.is_completed():
        state.result(raise_on_failure=True)
        raise RuntimeError(f"{place.title(call.stage)} ended as {state.name}: {state.message}")
    return found[0]
