"""Plans: the loop is walked without computing anything, and each stage says whether storage has it, and if not, why.

A stage whose input would be made anew is undecided until then: when the new contents equal the old ones it is a hit.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flows.history import Cost, History
from flows.loop import walk
from flows.run import at_attempt, find_sources
from flows.takes import Rerun
from storage.artifact import Artifact, Part, Store
from tasks.call import Call
from tasks.config import Experiment
from tasks.place import Place, Run, Take
from tasks.rebuilding import num_to_rebuild


@dataclass(frozen=True)
class PendingPart(Part):
    """A part that does not exist yet."""

    @property
    def digest(self) -> str:
        raise LookupError(f"{self.name} does not exist yet")

    @property
    def is_dropped(self) -> bool:
        return False


@dataclass(frozen=True)
class Pending(Artifact):
    """What a stage that would run would make."""

    title: str = ""
    pending_take: str | None = None

    @property
    def take(self) -> str | None:
        return self.pending_take

    def part(self, name: str) -> Part:
        return PendingPart(self, name)


@dataclass(frozen=True)
class PlannedStage:
    """One stage of a plan."""

    place: Place
    stage: str
    kind: str
    """hit, or why not: new, changed, missing, failed, rerun, waits."""
    reason: str
    """For people: what differs, from what to what; empty for a hit."""
    cost: Cost
    """Expected of a stage that would run, from its last executions; zero for a hit."""

    @property
    def is_hit(self) -> bool:
        return self.kind == "hit"

    def as_json(self) -> dict[str, Any]:
        place = {"step": self.place.step, "purpose": self.place.purpose, "label": self.place.label}
        cost = {"seconds": self.cost.seconds, "tokens": self.cost.tokens, "bytes": self.cost.num_bytes}
        return {"stage": self.stage, **place, "plan": "hit" if self.is_hit else "run", "why": self.kind} | {
            "reason": self.reason,
            **cost,
        }


class Planner:
    """Performs the calls of a walk by looking; `stages` is the plan so far."""

    def __init__(self, history: History) -> None:
        self.history = history
        self.stages: list[PlannedStage] = []

    def __call__(self, call: Call) -> Artifact:
        waits = {name: part.artifact for name, part in call.inputs.items() if isinstance(part.artifact, Pending)}
        artifact = None if waits else call.place.run.store.find(call.stage, call.key, sets_aside=False)
        if artifact is not None:
            call.remember(artifact)
            self.stages.append(PlannedStage(call.place, call.stage, "hit", "", Cost()))
            return artifact
        kind, reason = self._why(call, waits)
        rebuilt = sum(num_to_rebuild(call.place.run, part.artifact) for part in call.inputs.values() if part.is_dropped)
        if rebuilt:
            reason += f"; rebuilds {rebuilt} dropped {'policy' if rebuilt == 1 else 'policies'} first"
        cost = self.history.cost_of(call)
        self.stages.append(PlannedStage(call.place, call.stage, kind, reason, cost))
        return Pending(call.stage, "", Path(), call.place.title(call.stage), call.take)

    def _why(self, call: Call, waits: dict[str, Artifact]) -> tuple[str, str]:
        last = self.history.last(call)
        differences = self.history.differences(call, set(waits)) if last else []
        if call.take and (last is None or last["key_parts"].get("take") != call.take):
            return "rerun", ", ".join([f"computed again by the rerun {call.take}", *differences])
        if waits:
            made = [f"{name} is made by {a.title}" for name, a in waits.items() if isinstance(a, Pending)]
            return ("changed" if differences else "waits"), ", ".join([*differences, *made])
        failure = self.history.failure(call)
        if failure:
            return "failed", f"failed before: {failure}"
        if last is None:
            return "new", "not run yet"
        if last["key"] == call.key:
            return "missing", "it was stored, and its files are gone or damaged"
        return "changed", ", ".join(differences)


def plan_experiment(
    experiment: Experiment, data_root: Path, rerun: Rerun | None = None
) -> tuple[Run, list[PlannedStage]]:
    """Every stage of the run in order, and the run with the attempt and takes that it would have. Writes nothing."""
    find_sources(experiment)
    history = History(data_root / "log.jsonl", experiment.run)
    planner = Planner(history)
    run = Run(experiment.run, "", Store(data_root), uses_prefect=False, perform=planner)
    run = at_attempt(run, experiment, rerun)
    walk(run, experiment)
    return run, planner.stages


def refuse_beyond(run: Run, stages: list[PlannedStage], history_run: str, take: Take) -> None:
    """Raise ValueError when the rerun asks for a stage that the run has not reached, or changes one before it."""
    covered = [i for i, planned in enumerate(stages) if take.covers(planned.place, planned.stage)]
    reached = [i for i in covered if stages[i].kind in ("rerun", "hit")]
    where = f" at step {take.step}" if take.step is not None else ""
    if not covered:
        names = sorted({planned.stage for planned in stages})
        raise ValueError(
            f"--from {take.from_stage}: the run {history_run!r} has no such stage{where}: its stages are "
            f"{', '.join(names)}, its steps 0 to {max(planned.place.step for planned in stages)}"
        )
    changed = [planned for planned in stages[: covered[0]] if planned.kind == "changed"]
    if changed:
        first = changed[0]
        raise ValueError(
            f"the settings change {first.place.title(first.stage)} ({first.reason}), which comes before "
            f"--from {take.from_stage}{where}: a rerun leaves what comes before it alone. Start it there with "
            f"--from {first.stage} --step {first.place.step}, or name settings that only later stages use"
        )
    assert reached
    del run


def lines(stages: list[PlannedStage]) -> Iterator[str]:
    """The plan for a terminal: a line per stage, then the sums."""
    for planned in stages:
        name = f"{planned.stage} {planned.place.label}".strip()
        tail = "" if planned.is_hit else f"{planned.cost.describe():<28}  {planned.reason}"
        yield f"step {planned.place.step:>3}  {name:<40} {'hit' if planned.is_hit else 'run'}  {tail}".rstrip()
    to_run = [planned for planned in stages if not planned.is_hit]
    undecided = sum(planned.kind == "waits" for planned in to_run)
    total = replace(sum((planned.cost for planned in to_run), Cost()))
    yield (
        f"{len(stages)} stages: {len(stages) - len(to_run)} hits, {len(to_run)} would run"
        + (f" ({undecided} of them only if their inputs change)" if undecided else "")
        + (f"; expected: {total.describe()}" if to_run else "; nothing to do")
    )
