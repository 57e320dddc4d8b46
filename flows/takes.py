"""Reruns: a request to compute a stage of a stored run again becomes a take, and takes decide what a step is made with.

The commit log holds the takes of every attempt (run event 'started'), so that a rerun that was killed is resumed by
asking for it again, and `tempo train` goes on with the attempt that the last rerun made.
"""

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from tasks.config import Experiment
from tasks.experiment import EXTENDING, ConfigError, apply_overrides
from tasks.place import EVAL_STAGES, Take

StageName = Literal[
    "policy",
    "prompts",
    "demonstrations",
    "warm_start",
    "critic",
    "generation",
    "verification",
    "signals",
    "credit",
    "training",
    "separation",
    "evaluation",
]


@dataclass(frozen=True, kw_only=True)
class Rerun:
    """A request to compute a stage of a stored run again, and then whatever depends on it."""

    from_stage: str
    """The stage to compute again although storage has it."""
    step: int | None = None
    """At this step only; absent: wherever the run has that stage."""
    purpose: str = "train"
    """'eval' for the generation and verification of the benchmarks."""
    force: bool = False
    """Also compute again what depends on it when the new contents equal the old ones."""
    overrides: tuple[str, ...] = ()
    """`key=value` settings that hold from that step on."""

    def take(self, name: str) -> Take:
        purpose = "eval" if self.from_stage in EVAL_STAGES else self.purpose
        return Take(
            name=name,
            from_stage=self.from_stage,
            step=self.step,
            purpose=purpose,
            force=self.force,
            overrides=self.overrides,
        )


def stored_takes(event: Mapping[str, Any]) -> tuple[Take, ...]:
    """The takes of a run event."""
    return tuple(Take(**{**take, "overrides": tuple(take["overrides"])}) for take in event.get("takes") or ())


def takes_as_json(takes: Iterable[Take]) -> list[dict[str, Any]]:
    return [asdict(take) for take in takes]


def takes_of_training(events: Sequence[Mapping[str, Any]], base: str) -> tuple[Take, ...]:
    """Takes that a plain training goes on with: those of the run's newest attempt of the same settings.

    `events` are the run's 'started' events, oldest first; `base` names the settings (attempt_of). Takes that brought
    settings of their own are left out: a training is as its experiment says.
    """
    same = [event for event in events if event.get("base", event["attempt"]) == base]
    return tuple(take for take in stored_takes(same[-1]) if not take.overrides) if same else ()


def takes_of_rerun(
    events: Sequence[Mapping[str, Any]], request: Rerun, *, ended: bool, flow_run: str | None
) -> tuple[Take, ...]:
    """Takes of the run's newest attempt, and one more for the request.

    When the newest attempt is this very request and did not complete (`ended`), or was made by the same Prefect flow
    run (its Retry button), it is resumed and gets no new take.
    """
    newest = events[-1] if events else {}
    takes = stored_takes(newest)
    is_same = bool(takes) and request.take(takes[-1].name) == takes[-1]
    if is_same and (not ended or (flow_run is not None and newest.get("flow_run") == flow_run)):
        return takes
    numbers = [int(take.name[1:]) for event in events for take in stored_takes(event)]
    return (*takes, request.take(f"r{max(numbers, default=0) + 1}"))


def split_overrides(overrides: Sequence[str]) -> tuple[list[str], tuple[str, ...]]:
    """(those that lengthen or score the whole run, those that hold from a step on). Raises ConfigError for `run`."""
    extending, local = [], []
    for override in overrides:
        section = override.partition("=")[0].split(".")[0]
        if section == "run":
            raise ConfigError(
                "--set run: a rerun stays in its run; to start another one, use tempo train --set run=NAME"
            )
        (extending if section in EXTENDING else local).append(override)
    return extending, tuple(local)


@functools.lru_cache(maxsize=256)
def settings_at(experiment: Experiment, takes: tuple[Take, ...], step: int) -> Experiment:
    """The experiment as it holds at a step: with the overrides of every take that begins there or before."""
    overrides = tuple(override for take in takes if (take.step or 0) <= step for override in take.overrides)
    return _overridden(experiment, overrides)


@functools.lru_cache(maxsize=256)
def _overridden(experiment: Experiment, overrides: tuple[str, ...]) -> Experiment:
    return apply_overrides(experiment, overrides) if overrides else experiment
