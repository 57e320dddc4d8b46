"""Plans: the loop is walked without computing anything, and each stage says whether storage has it, and if not, why.

A stage whose input would be made anew is undecided until then: when the new contents equal the old ones it is a hit.
"""

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from flows.history import Cost, History, stored_experiment
from flows.loop import walk
from flows.next_commands import command_name
from flows.run import at_attempt, find_sources
from flows.takes import Rerun, settings_at, split_overrides
from storage.artifact import Artifact, Part, Store
from tasks.call import Call
from tasks.config import Experiment
from tasks.experiment import apply_overrides
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
    summary: Mapping[str, Any] = field(default_factory=dict)
    """What the stored artifact of a hit says of itself."""

    @property
    def is_hit(self) -> bool:
        return self.kind == "hit"

    def as_json(self) -> dict[str, Any]:
        place = {"step": self.place.step, "purpose": self.place.purpose, "label": self.place.label}
        cost = {"seconds": self.cost.seconds, "tokens": self.cost.tokens, "bytes": self.cost.num_bytes}
        return {"stage": self.stage, **place, "plan": "hit" if self.is_hit else "run", "why": self.kind} | {
            "reason": self.reason,
            **cost,
            **({"overlap": self.overlap} if self.stage == "separation" else {}),
        }

    @property
    def overlap(self) -> Mapping[str, Any] | None:
        """A separation's counts of the benchmark's prompts that share words with training prompts, where stored."""
        return {name: self.summary[name] for name in OVERLAP_COUNTS} if self.summary else None


OVERLAP_COUNTS = ("num_prompts", "num_exact", "num_13gram")


class Planner:
    """Performs the calls of a walk by looking; `stages` is the plan so far."""

    def __init__(self, history: History) -> None:
        self.history = history
        self.stages: list[PlannedStage] = []
        self._rebuilt: set[str] = set()

    def __call__(self, call: Call) -> Artifact:
        waits = {name: part.artifact for name, part in call.inputs.items() if isinstance(part.artifact, Pending)}
        artifact = None if waits else call.place.run.store.find(call.stage, call.key, sets_aside=False)
        if artifact is not None:
            call.remember(artifact)
            self.stages.append(PlannedStage(call.place, call.stage, "hit", "", Cost(), artifact.summary))
            return artifact
        kind, reason = self._why(call, waits)
        rebuilt = self._num_to_rebuild(call)
        if rebuilt:
            reason += f"; rebuilds {rebuilt} dropped {'policy' if rebuilt == 1 else 'policies'} first"
        cost = self.history.cost_of(call)
        self.stages.append(PlannedStage(call.place, call.stage, kind, reason, cost))
        return Pending(call.stage, "", Path(), call.place.title(call.stage), call.take)

    def _num_to_rebuild(self, call: Call) -> int:
        """How many dropped policies the stage needs that no stage before it in the plan has rebuilt."""
        needed = {part.artifact.key: part.artifact for part in call.inputs.values() if part.is_dropped}
        fresh = [artifact for key, artifact in needed.items() if key not in self._rebuilt]
        self._rebuilt.update(needed)
        return sum(num_to_rebuild(call.place.run, artifact) for artifact in fresh)

    def _why(self, call: Call, waits: dict[str, Artifact]) -> tuple[str, str]:
        last, failure = self.history.last(call), self.history.failure(call)
        if last is None and failure is None:
            return "new", "not run yet"
        differences = self.history.differences(call, set(waits)) if last else []
        if call.take and (last is None or last["key_parts"].get("take") != call.take):
            others = [difference for difference in differences if not difference.startswith("take ")]
            return "rerun", ", ".join([f"computed again by the rerun {call.take}", *others])
        if waits:
            return ("changed" if differences else "waits"), ", ".join([*differences, *_waiting_for(waits)])
        if failure is not None:
            return "failed", f"failed before: {failure}"
        if last is not None and last["key"] == call.key:
            return "missing", "it was stored, and its files are gone or damaged"
        return "changed", ", ".join(differences)


def _waiting_for(waits: dict[str, Artifact]) -> list[str]:
    """Which inputs come from which stage that would run."""
    names: dict[str, list[str]] = {}
    for name, artifact in waits.items():
        assert isinstance(artifact, Pending)
        names.setdefault(artifact.title, []).append(name)
    return [f"{' and '.join(inputs)} from {title}" for title, inputs in names.items()]


def plan_experiment(
    experiment: Experiment, data_root: Path, rerun: Rerun | None = None
) -> tuple[Run, list[PlannedStage]]:
    """Every stage of the run in order, and the run with the attempt and takes that it would have. Writes nothing."""
    find_sources(experiment)
    history = History(data_root / "log.jsonl", experiment.run)
    planner = Planner(history)
    run = Run(experiment.run, "", Store(data_root), perform=planner)
    run = at_attempt(run, experiment, rerun)
    walk(run, experiment)
    return run, planner.stages


def learn_makers(run: Run, experiment: Experiment) -> None:
    """Walk the run without computing anything, so that it knows how its dropped policies were made."""
    walk(replace(run, perform=Planner(History(run.log, run.name))), experiment)


def request_rerun(data_root: Path, name: str, request: Rerun) -> tuple[Experiment, Rerun]:
    """`check_rerun` with the settings that the stored run `name` was last worked on with."""
    return check_rerun(stored_experiment(data_root, name), data_root, request)


def check_rerun(experiment: Experiment, data_root: Path, request: Rerun) -> tuple[Experiment, Rerun]:
    """The experiment and the request, ready for `train_experiment`; settings that lengthen or score the whole run go
    into the experiment.

    Raises ValueError when the run has not reached the stage, and when the settings would change a stage that comes
    before it: a rerun computes that stage and what depends on it, and nothing else.
    """
    extending, local = split_overrides(request.overrides)
    experiment = apply_overrides(experiment, extending)
    request = replace(request, overrides=local)
    settings_at(experiment, (request.take("r0"),), request.step or 0)  # a bad setting is refused before anything else
    run, stages = plan_experiment(experiment, data_root, request)
    _refuse_beyond(run.takes[-1], stages, experiment.run)
    return experiment, request


def _refuse_beyond(take: Take, stages: list[PlannedStage], run: str) -> None:
    """Raise ValueError for a stage that the run has not reached, and for settings that change a stage before it."""
    covered = [i for i, planned in enumerate(stages) if take.covers(planned.place, planned.stage)]
    reached = [i for i in covered if stages[i].kind != "new"]
    where = f"--from {take.from_stage}" + (f" --step {take.step}" if take.step is not None else "")
    if not reached:
        names = ", ".join(dict.fromkeys(planned.stage for planned in stages))
        last = max((planned.place.step for planned in stages if planned.kind != "new"), default=0)
        raise ValueError(
            f"{where}: the run {run!r} has not done that: its stages are {names}, and it has reached step {last}. "
            "Name one of these, or go on training with tempo train"
        )
    for planned in stages[: reached[0]]:
        if planned.kind == "changed":
            raise ValueError(
                f"{where}: the settings change {planned.place.title(planned.stage)} ({planned.reason}), which comes "
                f"before it, and a rerun leaves that alone. Start at --from {planned.stage} --step "
                f"{planned.place.step}, or change settings that only later stages use"
            )


def lines(stages: list[PlannedStage]) -> Iterator[str]:
    """The plan for a terminal: a line per stage, the sums, then what is known of benchmarks among training prompts."""
    for planned in stages:
        name = f"{planned.stage} {planned.place.label}".strip()
        tail = "" if planned.is_hit else f"{planned.cost.describe():<28}  {planned.reason}"
        yield f"step {planned.place.step:>3}  {name:<40} {'hit' if planned.is_hit else 'run'}  {tail}".rstrip()
    to_run = [planned for planned in stages if not planned.is_hit]
    undecided = sum(planned.kind == "waits" for planned in to_run)
    total = sum((planned.cost for planned in to_run), Cost())
    yield (
        f"{len(stages)} stages: {len(stages) - len(to_run)} hits, {len(to_run)} would run"
        + (f" ({undecided} of them only if their inputs change)" if undecided else "")
        + (f"; expected: {total.describe()}" if to_run else "; nothing to do")
    )
    yield from _overlap_lines([planned for planned in stages if planned.stage == "separation"])


def _overlap_lines(separations: list[PlannedStage]) -> Iterator[str]:
    for planned in separations:
        found = planned.overlap
        if found and (found["num_exact"] or found["num_13gram"]):
            name, root = planned.place.label, planned.place.run.store.root
            query = (
                "SELECT DISTINCT benchmark_prompt_id, prompt_id, kind, num_shared_ngrams FROM shared_prompts "
                f"WHERE benchmark_prompt_id LIKE '{name}/%'"
            )
            where = "" if root == Path("data") else f" --data-root {shlex.quote(str(root))}"
            counts = f"{found['num_13gram']} of {found['num_prompts']} prompts share 13 words in a row"
            yield (
                f"warning: {name}: {counts} with training prompts (exact: {found['num_exact']}): "
                f'{command_name()} sql "{query}"{where}'
            )
    unknown = [planned.place.label for planned in separations if planned.overlap is None]
    if unknown:
        yield f"not known yet: whether prompts of {', '.join(unknown)} are training prompts (stage separation)"
