"""How Prefect displays a stage: a task that ends in the state Cached or Completed; Prefect's own cache stays off.

Prefect's cache key would hold the run's id and its record may point to a deleted file; storage is the one truth.

A task costs Prefect's server some 40 ms of CPU, which a stage that was found in storage does not take itself: the first
hits of a run are tasks of their own, the many of a long run are shown by the hundred.
"""

from typing import Any

from storage.artifact import Artifact
from tasks.call import Call

SINGLE_HITS = 250
"""Cached stages that are shown one by one: all 199 of the quickstart."""
GROUPED_HITS = 100
"""Cached stages that are one task after that."""


class Display:
    """Reports the stages of one run to Prefect."""

    def __init__(self) -> None:
        self.num_hits = 0
        self.grouped: list[str] = []

    def perform(self, call: Call) -> Artifact:
        """Find or compute the stage, as a task of its own or as one of a group of hits."""
        if self.num_hits >= SINGLE_HITS:
            artifact = call.hit()
            if artifact is not None:
                self.grouped.append(call.place.title(call.stage))
                if len(self.grouped) == GROUPED_HITS:
                    self.flush()
                return artifact
            self.flush()
        artifact, outcome = _as_task(call)
        self.num_hits += outcome == "cached"
        return artifact

    def flush(self) -> None:
        """Report the hits that have not been reported yet, as one task."""
        if self.grouped:
            first, last, count = self.grouped[0], self.grouped[-1], len(self.grouped)
            self.grouped = []
            _run_task("cached stages", f"{first} to {last}", lambda: ("Cached", f"{count} stages found in storage"))


def _as_task(call: Call) -> tuple[Artifact, str]:
    found: list[tuple[Artifact, str]] = []

    def body() -> tuple[str, str]:
        artifact, outcome = call.run()
        found.append((artifact, outcome))
        message = ", ".join(f"{name} {value}" for name, value in artifact.summary.items() if value is not None)
        return "Cached" if outcome == "cached" else "Completed", message

    place = call.place
    parameters = {"step": place.step, "purpose": place.purpose, "label": place.label, "key": call.key}
    _run_task(call.stage, place.title(call.stage), body, parameters)
    return found[0]


def _run_task(name: str, title: str, body: Any, parameters: dict[str, Any] | None = None) -> None:
    """Run `body() -> (name of the completed state, message)` as a Prefect task; its exceptions pass through."""
    from prefect import Task
    from prefect.cache_policies import NO_CACHE
    from prefect.states import Completed

    def run(place: dict[str, Any]) -> Any:
        state_name, message = body()
        return Completed(name=state_name, message=message or None)

    task = Task(fn=run, name=name, task_run_name=title, cache_policy=NO_CACHE, persist_result=False, log_prints=False)
    state = task(parameters or {}, return_state=True)
    if not state.is_completed():
        state.result(raise_on_failure=True)
        raise RuntimeError(f"{title} ended as {state.name}: {state.message}")
