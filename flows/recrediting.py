"""Re-crediting: another verifier, other rewards or another estimator over the stored rollouts of a run.

No model is loaded, but for an estimator that takes entropies: those are computed with each step's stored policy.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flows.history import stored_experiment
from flows.planning import learn_makers
from flows.progress import current_listener
from flows.run import open_run
from flows.stored_steps import StoredRun, StoredStep, stored_steps
from storage.artifact import Part
from storage.fingerprint import canonical
from tasks.config import Experiment
from tasks.core.verdict import Verifier
from tasks.core.verifiers import VERIFIERS, get_verifier
from tasks.credit import credit
from tasks.datasets import get_dataset
from tasks.experiment import ConfigError, apply_overrides
from tasks.place import Place, Run
from tasks.rebuilding import borrowed
from tasks.signals import signals, signals_of_estimator
from tasks.verification import verification

PURPOSE = "recredit"
"""Purpose of the rows that are added beside those of training."""
SECTIONS = ("verification.", "credit.", "contracts.")
"""Keys that a recredit may set."""
SHOWN_ANSWERS = 5
"""Gold answers named where a verifier refuses them."""


@dataclass(frozen=True)
class Recredit:
    """What a recredit does with a stored run."""

    experiment: Experiment
    """The run's, with what is asked for."""
    stored: Experiment
    """The run's."""
    found: StoredRun
    judge: Verifier | None
    """Who judges the rollouts anew; None: the stored verdicts stand."""

    @property
    def verdicts_label(self) -> str:
        """Verifier and version, and changed keys of the section verification; '' where the stored verdicts stand."""
        if self.judge is None:
            return ""
        changed = _changes(self.stored.verification, self.experiment.verification)
        return " ".join([f"{self.judge.name}@{self.judge.version}", *changed])

    @property
    def label(self) -> str:
        """What tells a run's recredits apart: estimator, verifier and rewards where the rollouts are judged anew, and
        changed credit keys.

        The rows of an earlier recredit give way only to one with the same label: "tempo td_scale=0" and "tempo
        td_clip=0.5" stand side by side.
        """
        changed = _changes(self.stored.credit, self.experiment.credit)
        return " ".join(part for part in (self.experiment.estimator, self.verdicts_label, *changed) if part)


def recredit_run(
    run: str,
    estimator: str | None,
    verifier: str | None,
    data_root: Path,
    *,
    uses_prefect: bool,
    overrides: Sequence[str] = (),
) -> int:
    """Add verdicts (of another verifier, or worth other rewards) and advantages of every step's stored rollouts;
    returns the number of steps.

    The rows stand in the run's current attempt with purpose 'recredit'; nothing of the training changes.

    Raises ConfigError when that is what the run has already, and when an estimator or a setting cannot be used.
    """
    stored = stored_experiment(data_root, run)
    asked = prepare_recredit(data_root, stored, estimator, verifier, overrides)
    wanted, found = asked.experiment, asked.found
    listener = current_listener(wanted)
    with open_run(wanted, data_root, listener, uses_prefect=uses_prefect, attempt=found.attempt) as opened:
        if any(step.policy.dropped for step in found.steps.values()):
            learn_makers(replace(opened, takes=found.takes), stored)
        for number, step in sorted(found.steps.items()):
            verdicts = _verdicts(opened, number, step, asked)
            place = opened.at(number, PURPOSE, wanted.estimator)
            credit(
                opened.at(number, PURPOSE, asked.label),
                rollouts=step.rollouts,
                verdicts=verdicts,
                signals=_signals(place, step, wanted.estimator, wanted.train.precision),
                estimator=wanted.estimator,
                config=wanted.credit,
            )
    return len(found.steps)


def _verdicts(run: Run, number: int, step: StoredStep, asked: Recredit) -> Part:
    """The step's stored verdicts where they are what is asked for; else new ones, beside them."""
    judge, settings = asked.judge, asked.experiment.verification
    if judge is None or step.is_judged(judge, settings):
        return step.verdicts
    return verification(
        run.at(number, PURPOSE, asked.verdicts_label),
        rollouts=step.rollouts,
        prompts=step.prompts,
        verifier=judge.name,
        verifier_version=judge.version,
        config=settings,
    ).part("verdicts")


def _changes(before: Any, now: Any) -> list[str]:
    """`key=value` of every setting that differs."""
    stored = dict(_flat(canonical(before)))
    return [f"{key}={_text(value)}" for key, value in _flat(canonical(now)) if value != stored[key]]


def _flat(tree: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(str, value)) or "none"
    return str(value).lower().removesuffix(".0")


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
) -> Recredit:
    """What to do for another estimator, verifier (NAME or NAME@VERSION), `credit.` or `verification.` settings.

    Raises ConfigError where it cannot be had from what is stored of the run, or is there already.
    """
    strange = [override for override in overrides if not override.startswith(SECTIONS)]
    if strange:
        raise ConfigError(
            f"--set {strange[0]}: expected a key that changes verdicts or credit alone, of the sections "
            f"{', '.join(section.rstrip('.') for section in SECTIONS)}"
        )
    changes = [*overrides, *(f"{k}={v}" for k, v in (("estimator", estimator), ("verifier", verifier)) if v)]
    wanted = apply_overrides(stored, changes)
    judge = get_verifier(wanted.verifier or get_dataset(wanted.dataset, "dataset").verifier)
    found = stored_steps(data_root, stored.run)
    _refuse_without_rollouts(found, wanted)
    judges = verifier is not None or canonical(wanted.verification) != canonical(stored.verification)
    if not judges or all(step.is_judged(judge, wanted.verification) for step in found.steps.values()):
        if (wanted.estimator, wanted.credit) == (stored.estimator, stored.credit):
            name, version = next(iter(found.steps.values())).verifier
            raise ConfigError(
                f"the run {stored.run!r} is judged by {name}@{version} and credited with {stored.estimator} already: "
                "name another --estimator or --verifier, or change a setting with --set credit.KEY=VALUE or "
                "--set verification.KEY=VALUE"
            )
        return Recredit(wanted, stored, found, None)
    _refuse_answers(found, judge)
    return Recredit(wanted, stored, found, judge)


def _refuse_without_rollouts(found: StoredRun, wanted: Experiment) -> None:
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


def _refuse_answers(found: StoredRun, judge: Verifier) -> None:
    """Raise ConfigError where the gold answers, written for the run's own verifier, cannot be compared by `judge`."""
    asked = {step.prompts.path: step.prompts for step in found.steps.values()}
    drawn = {i for step in found.steps.values() for i in step.rollouts.read(["prompt_id"]).column(0).to_pylist()}
    answers = {
        row["prompt_id"]: (row["answer"], tuple(row["options"] or ()))
        for prompts in asked.values()
        for row in prompts.read(["prompt_id", "answer", "options"]).to_pylist()
        if row["prompt_id"] in drawn
    }
    problems = {prompt_id: said for prompt_id, gold in answers.items() if (said := _problem(judge, *gold))}
    if not problems:
        return
    own, version = next(iter(found.steps.values())).verifier
    able = [name for name, each in VERIFIERS.items() if not any(_problem(each, *answers[i]) for i in problems)]
    shown = [f"  {prompt_id}: {said[:300]}" for prompt_id, said in sorted(problems.items())[:SHOWN_ANSWERS]]
    more = f"\n  and {len(problems) - len(shown):,} more" if len(problems) > len(shown) else ""
    raise ConfigError(
        f"verifier: expected gold answers that {judge.name}@{judge.version} can compare, got {len(problems):,} of "
        f"{len(answers):,} that it refuses; they were written for {own}@{version}:\n"
        + "\n".join(shown)
        + f"{more}\nNothing was judged. These verifiers read them: {', '.join(able)}; for {judge.name}, train on a "
        "dataset with answers of its kind"
    )


def _problem(verifier: Verifier, answer: str, options: tuple[str, ...]) -> str | None:
    try:
        verifier.check_answer(answer, options)
    except ValueError as error:
        return str(error)
    return None
