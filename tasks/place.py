"""Where a stage stands: the run and its attempt, the step, the purpose; what a run's reruns changed; who watches."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from storage.artifact import Artifact, Part, Staging, Store
from tasks.judges import Judges
from tasks.samplers import Samplers

if TYPE_CHECKING:
    from tasks.call import Call

Summary = dict[str, Any]
"""Figures for people: stored with the artifact, shown when it is made and when it is found again."""

EVAL_STAGES = ("evaluation",)
"""Stages that stand in a run with purpose 'eval' only."""


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


@dataclass(frozen=True, kw_only=True)
class Take:
    """A rerun as the stages' identity sees it: the stage that it computes again has the take's name in its key.

    What depends on it follows from its contents: equal contents, equal keys. With `force` the name is handed on to
    every stage that takes an artifact of the take as input.
    """

    name: str
    """r1, r2, ...: unique in its run."""
    from_stage: str
    """The stage that is computed again."""
    step: int | None = None
    """At this step only; None: at every step."""
    purpose: str = "train"
    """'train' or 'eval': generation and verification stand in both."""
    force: bool = False
    """Hand the name on to what depends on the stage."""
    overrides: tuple[str, ...] = ()
    """`key=value` settings that hold from `step` on."""

    def covers(self, place: "Place", stage: str) -> bool:
        """Whether this take asks for the stage at this place to be computed again."""
        return stage == self.from_stage and place.purpose == self.purpose and self.step in (None, place.step)


@dataclass(frozen=True)
class Run:
    """One attempt at a run: where it is stored and who watches."""

    name: str
    attempt: str
    store: Store
    listener: Listener = field(default_factory=Listener)
    device: str = "auto"
    threads: int = 0
    limits: Mapping[str, float | bool] = field(default_factory=dict, compare=False)
    """Figures that contracts compare with (config.ContractsConfig); one that is absent is not compared."""
    takes: tuple[Take, ...] = ()
    """Reruns of this attempt, oldest first."""
    perform: "Callable[[Call], Artifact] | None" = None
    """What to do with a call of a stage, instead of finding or computing it: Prefect displays it, a plan only looks."""
    samplers: Samplers = field(default_factory=Samplers, compare=False)
    """Samplers whose engines outlive a stage."""
    judges: Judges = field(default_factory=Judges, compare=False)
    """Verifiers whose workers outlive a stage."""
    makers: "dict[tuple[str, str], Call]" = field(default_factory=dict, compare=False)
    """(stage, key) -> the call that makes the artifact, for those that can be rebuilt (tasks/rebuilding.py)."""

    @property
    def log(self) -> Path:
        return self.store.root / "log.jsonl"

    def at(self, step: int, purpose: str = "train", label: str = "") -> "Place":
        return Place(self, step, purpose, label)


@dataclass(frozen=True)
class Place:
    """Where in a run a stage stands: the step, its purpose, and a label that tells apart what else would coincide."""

    run: Run
    step: int
    purpose: str = "train"
    label: str = ""

    def title(self, stage: str) -> str:
        return f"step {self.step:03d} {stage}" + (f" {self.label}" if self.label else "")

    def take_of(self, stage: str, identity: Mapping[str, Any]) -> str | None:
        """Name of the newest take that computes the stage here again, None if there is none."""
        inputs = [value.artifact.take for value in identity.values() if isinstance(value, Part)]
        names = [t.name for t in self.run.takes if t.covers(self, stage) or (t.force and t.name in inputs)]
        return names[-1] if names else None


@dataclass(frozen=True)
class Context:
    """What a stage's computation may use beside its identity."""

    staging: Staging
    key: str
    """The artifact's key."""
    identity: str
    """The key without the take: the same each time a stage is computed again, so that equal results are equal bytes."""
    device: str
    threads: int
    progress: Callable[[int, int], None]
    samplers: Samplers = field(default_factory=Samplers)
    judges: Judges = field(default_factory=Judges)
