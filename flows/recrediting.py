"""Re-crediting: another verifier or estimator over the stored rollouts of a run.

No model is loaded, but for an estimator that takes entropies: those are computed with each step's stored policy.
"""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from flows.history import stored_experiment
from flows.planning import learn_makers
from flows.progress import current_listener
from flows.run import open_run
from flows.takes import stored_takes
from storage.artifact import Artifact, Part, Store
from storage.catalog import open_catalog
from tasks.config import Experiment
from tasks.core.verifiers import get_verifier
from tasks.credit import credit
from tasks.datasets import get_dataset
from tasks.experiment import ConfigError, apply_overrides
from tasks.place import Place, Take
from tasks.rebuilding import borrowed
from tasks.signals import signals, signals_of_estimator
from tasks.verification import verification

PURPOSE = "recredit"
"""Purpose of the rows that are added beside those of training."""


def recredit_run(
    run: str,
    estimator: str | None,
    verifier: str | None,
    data_root: Path,
    *,
    uses_prefect: bool,
    overrides: Sequence[str] = (),
) -> int:
    """Add verdicts (for another verifier) and advantages of every step's stored rollouts; returns the number of steps.

    The rows stand in the run's current attempt with purpose 'recredit'; nothing of the training changes.

    Raises ConfigError when that is what the run has already, and when an estimator or a setting cannot be used.
    """
    stored = stored_experiment(data_root, run)
    wanted, found = prepare_recredit(data_root, stored, estimator, verifier, overrides)
    own = stored.verifier or get_dataset(stored.dataset, "dataset").verifier
    judge = get_verifier(wanted.verifier or own)
    label = recredit_label(wanted, stored, "" if judge.name == own else judge.name)
    listener = current_listener(wanted)
    with open_run(wanted, data_root, listener, uses_prefect=uses_prefect, attempt=found.attempt) as opened:
        if any(step.policy.dropped for step in found.steps.values()):
            learn_makers(replace(opened, takes=found.takes), stored)
        for number, step in sorted(found.steps.items()):
            place = opened.at(number, PURPOSE, label)
            verdicts = step.verdicts
            if judge.name != own:
                verdicts = verification(
                    opened.at(number, PURPOSE, judge.name),
                    rollouts=step.rollouts,
                    prompts=step.prompts,
                    verifier=judge.name,
                    verifier_version=judge.version,
                    config=wanted.verification,
                ).part("verdicts")
            credit(
                place,
                rollouts=step.rollouts,
                verdicts=verdicts,
                signals=_signals(
                    opened.at(number, PURPOSE, wanted.estimator), step, wanted.estimator, wanted.train.precision
                ),
                estimator=wanted.estimator,
                config=wanted.credit,
            )
    return len(found.steps)


def recredit_label(wanted: Experiment, stored: Experiment, verifier: str) -> str:
    """What tells a run's recredits apart: estimator, the verifier where it is another, and changed credit keys.

    The rows of an earlier recredit give way only to one with the same label: "tempo td_scale=0" and "tempo td_clip=0.5"
    stand side by side.
    """
    before, now = asdict(stored.credit), asdict(wanted.credit)
    changed = [f"{key}={str(value).lower().removesuffix('.0')}" for key, value in now.items() if value != before[key]]
    return " ".join(part for part in (wanted.estimator, verifier, *changed) if part)


@dataclass(frozen=True)
class StoredStep:
    """What is stored of a step, as far as credit needs it."""

    prompts: Part
    rollouts: Part
    verdicts: Part
    policy: Artifact
    """The one that sampled."""
    signals: Part | None

    def has(self, names: Sequence[str]) -> bool:
        """Whether its stored signals are these and perhaps more."""
        stored = self.signals.artifact.manifest["key_parts"]["config"]["wanted"] if self.signals else []
        return set(names) <= set(stored)


@dataclass(frozen=True)
class StoredRun:
    """The run's current attempt, and its steps whose rollouts are judged."""

    attempt: str
    takes: tuple[Take, ...]
    steps: dict[int, StoredStep]


def _signals(place: Place, step: StoredStep, estimator: str, precision: str) -> Part | None:
    """The step's stored signals where they hold what the estimator needs; else computed, with the policy that sampled.

    A policy whose weights were dropped is rebuilt for the time it takes.
    """
    needed = signals_of_estimator(estimator)
    if not needed:
        return None
    if step.has(needed):
        return step.signals
    policy = step.policy.part("checkpoint")
    with borrowed(place.run, [policy]):
        return signals(
            place,
            wanted=needed,
            policy=policy,
            reference=None,
            critic=None,
            prompts=step.prompts,
            rollouts=step.rollouts,
            temperature=step.rollouts.read(["temperature"]).column("temperature")[0].as_py(),
            top_p=1.0,
            precision=precision,
        ).part("signals")


def prepare_recredit(
    data_root: Path, stored: Experiment, estimator: str | None, verifier: str | None, overrides: Sequence[str]
) -> tuple[Experiment, StoredRun]:
    """The run's experiment with another estimator, verifier or `credit.` settings, and what is stored of the run.

    Raises ConfigError where the one cannot be had from the other.
    """
    strange = [override for override in overrides if not override.startswith("credit.")]
    if strange:
        raise ConfigError(f"--set {strange[0]}: expected a key that changes the credit alone (credit....)")
    changes = [*overrides, *(f"{k}={v}" for k, v in (("estimator", estimator), ("verifier", verifier)) if v)]
    wanted = apply_overrides(stored, changes)
    if (wanted.estimator, wanted.verifier, wanted.credit) == (stored.estimator, stored.verifier, stored.credit):
        raise ConfigError(
            f"the run {stored.run!r} is credited with {stored.estimator} already: name another --estimator or "
            "--verifier, or change a setting with --set credit.KEY=VALUE"
        )
    get_verifier(wanted.verifier or get_dataset(wanted.dataset, "dataset").verifier)
    found = _stored_run(data_root, stored.run)
    _refuse_without_values(found, wanted)
    return wanted, found


def _refuse_without_values(found: StoredRun, wanted: Experiment) -> None:
    """Raise ConfigError for a run without judged rollouts, and for values that no stored critic has given."""
    if not found.steps:
        raise ConfigError(f"run: {wanted.run!r} has no stored rollouts of training yet; go on with tempo train")
    needed = [name for name in signals_of_estimator(wanted.estimator) if name == "values"]
    lacking = [number for number, step in sorted(found.steps.items()) if not step.has(needed)]
    if lacking:
        raise ConfigError(
            f"estimator: {wanted.estimator!r} needs a critic's values of every token, and the run {wanted.run!r} has "
            f"none at step {lacking[0]}: a critic learns beside the policy, none can be made up for it afterwards. "
            f"Train one: tempo train EXPERIMENT --set estimator={wanted.estimator} --set run=NAME"
        )


def _stored_run(data_root: Path, run: str) -> StoredRun:
    """What is stored of the run's current attempt."""
    connection, store = open_catalog(data_root), Store(data_root)

    def artifact(stage: str, key: str) -> Artifact:
        return Artifact(stage, key, store.path_of(stage, key))

    (attempt,) = connection.execute("SELECT attempt FROM runs WHERE run = ?", [run]).fetchone() or (None,)
    (takes,) = connection.execute(
        "SELECT arg_max(takes, line) FROM run_events WHERE run = ? AND state = 'started'", [run]
    ).fetchone() or (None,)
    rows = connection.execute(
        "SELECT DISTINCT l.step, l.part, l.stage, l.key, s.inputs['policy'] FROM links l "
        "JOIN stage_runs s USING (run, step, purpose, stage, key) WHERE run = ? AND purpose = 'train' "
        "AND l.part IN ('rollouts', 'verdicts', 'prompts', 'signals') AND s.outcome <> 'failed'",
        [run],
    ).fetchall()
    parts: dict[int, dict[str, Part]] = defaultdict(dict)
    policies: dict[int, Artifact] = {}
    for step, part, stage, key, policy in rows:
        parts[step][part] = artifact(stage, key).part(part)
        if part == "rollouts":
            policies[step] = artifact(*policy.split("/"))
    asked = parts.pop(0, {})
    steps = {
        step: StoredStep(asked["prompts"], found["rollouts"], found["verdicts"], policies[step], found.get("signals"))
        for step, found in parts.items()
        if {"rollouts", "verdicts"} <= set(found)
    }
    return StoredRun(str(attempt), stored_takes({"takes": json.loads(takes or "[]")}), steps)
