"""Flow `evaluate`: score a policy on benchmarks, in the same prompts, rollouts and verdicts tables (purpose eval)."""

from dataclasses import replace
from pathlib import Path

from prefect import flow

from flows.forms import BenchmarkName, ScoringSettings, overrides
from flows.planning import learn_makers
from flows.progress import current_listener
from flows.run import find_sources, open_run
from flows.scoring import evaluate_policy
from flows.stored_runs import StoredPolicy, evaluation_experiment, find_policy
from tasks.config import Experiment
from tasks.policy import first_policy
from tasks.rebuilding import borrowed


@flow(name="evaluate", flow_run_name="evaluate {policy}", persist_result=False)
def evaluate(
    policy: str,
    benchmarks: list[BenchmarkName] = [],  # noqa: B006 (validated into a new list)
    settings: ScoringSettings = ScoringSettings(),  # noqa: B008 (frozen)
    data_root: str = "data",
) -> None:
    """Score a policy.

    Args:
        policy: a policy id, RUN@STEP, RUN@latest, a Hugging Face checkpoint (folder or Hub id), or builtin/tiny-qwen3.
        benchmarks: names in the registry, or all: every one that comes from the Hub; none: those of the policy's run.
        settings: keys that differ from the run's experiment.
        data_root: folder that holds artifacts, log and tables.
    """
    stored = find_policy(Path(data_root), policy)
    experiment = evaluation_experiment(stored, benchmarks, overrides(settings))
    evaluate_stored(stored, experiment, Path(data_root), uses_prefect=True)


def evaluate_stored(stored: StoredPolicy, experiment: Experiment, data_root: Path, *, uses_prefect: bool) -> None:
    """Score a stored policy under its run and step; a checkpoint that is not stored yet becomes a run of its own.

    A policy whose weights were dropped is rebuilt for the time it takes.
    """
    sources = find_sources(experiment, has_policy=stored.policy is not None)
    with open_run(
        experiment,
        data_root,
        current_listener(experiment),
        uses_prefect=uses_prefect,
        attempt=stored.attempt,
    ) as run:
        start = stored.first_policy or first_policy(run.at(0), source=sources.policy)
        policy = stored.policy or start
        if policy.dropped:
            run = replace(run, takes=stored.takes)
            learn_makers(run, stored.experiment)
        with borrowed(run, [policy.part("checkpoint")]):
            evaluate_policy(run, experiment, sources, policy, start, step=stored.step)
