"""Re-crediting: another verifier or estimator over the stored rollouts of a run. No policy is loaded."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from flows.history import stored_experiment
from flows.progress import current_listener
from flows.run import open_run
from storage.artifact import Artifact, Store
from storage.catalog import open_catalog
from tasks.config import Experiment
from tasks.core.advantage import ESTIMATORS
from tasks.core.verifiers import get_verifier
from tasks.credit import credit
from tasks.datasets import get_dataset
from tasks.experiment import ConfigError, apply_overrides
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
    wanted = recredit_experiment(stored, estimator, verifier, overrides)
    own = stored.verifier or get_dataset(stored.dataset, "dataset").verifier
    attempt, steps = _stored_steps(data_root, stored.run)
    if not steps:
        raise ConfigError(f"run: {stored.run!r} has no stored rollouts of training yet; go on with tempo train")
    judge = get_verifier(wanted.verifier or own)
    label = wanted.estimator if judge.name == own else f"{wanted.estimator} {judge.name}"
    listener = current_listener(wanted)
    with open_run(wanted, data_root, listener, uses_prefect=uses_prefect, attempt=attempt) as opened:
        for step, found in sorted(steps.items()):
            place, rollouts = opened.at(step, PURPOSE, label), found["generation"].part("rollouts")
            judged = found["verification"]
            if judge.name != own:
                judged = verification(
                    place,
                    rollouts=rollouts,
                    prompts=found["prompts"].part("prompts"),
                    verifier=judge.name,
                    verifier_version=judge.version,
                )
            verdicts = judged.part("verdicts")
            credit(place, rollouts=rollouts, verdicts=verdicts, estimator=wanted.estimator, config=wanted.credit)
    return len(steps)


def recredit_experiment(
    stored: Experiment, estimator: str | None, verifier: str | None, overrides: Sequence[str]
) -> Experiment:
    """The run's experiment with another estimator, verifier or `credit.` settings. Raises ConfigError."""
    strange = [override for override in overrides if not override.startswith("credit.")]
    if strange:
        raise ConfigError(f"--set {strange[0]}: expected a key that changes the credit alone (credit....)")
    changes = [*overrides, *(f"{k}={v}" for k, v in (("estimator", estimator), ("verifier", verifier)) if v)]
    wanted = apply_overrides(stored, changes)
    if wanted.estimator not in ESTIMATORS:
        raise ConfigError(
            f"estimator: {wanted.estimator!r} needs a learned critic, which this version does not have; expected one "
            f"of {', '.join(ESTIMATORS)}"
        )
    if (wanted.estimator, wanted.verifier, wanted.credit) == (stored.estimator, stored.verifier, stored.credit):
        raise ConfigError(
            f"the run {stored.run!r} is credited with {stored.estimator} already: name another --estimator or "
            "--verifier, or change a setting with --set credit.KEY=VALUE"
        )
    get_verifier(wanted.verifier or get_dataset(wanted.dataset, "dataset").verifier)
    return wanted


def _stored_steps(data_root: Path, run: str) -> tuple[str, dict[int, dict[str, Artifact]]]:
    """The current attempt, and of each step whose rollouts are judged the artifacts that credit needs, by stage."""
    connection, store = open_catalog(data_root), Store(data_root)
    (attempt,) = connection.execute("SELECT attempt FROM runs WHERE run = ?", [run]).fetchone() or (None,)
    rows = connection.execute(
        "SELECT DISTINCT step, stage, key FROM links WHERE run = ? AND purpose = 'train' "
        "AND part IN ('rollouts', 'verdicts', 'prompts')",
        [run],
    ).fetchall()
    steps: dict[int, dict[str, Artifact]] = defaultdict(dict)
    for step, stage, key in rows:
        steps[step][stage] = Artifact(stage, key, store.path_of(stage, key))
    asked = steps.pop(0, {})
    judged = {step: asked | found for step, found in steps.items() if {"generation", "verification"} <= set(found)}
    return str(attempt), judged
