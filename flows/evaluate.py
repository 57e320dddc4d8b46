"""Flow `evaluate`: score a policy on benchmarks, in the same prompts, rollouts and verdicts tables (purpose eval)."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from prefect import flow

from flows.progress import current_listener
from flows.run import Sources, find_sources, open_run
from flows.stored_runs import StoredPolicy, evaluation_experiment, find_policy
from storage.artifact import Artifact
from tasks.config import Experiment
from tasks.core.seeds import derive_seed
from tasks.core.verifiers import get_verifier
from tasks.datasets import get_dataset
from tasks.evaluation import evaluation
from tasks.generation import Selection, generation
from tasks.policy import first_policy
from tasks.prompts import prompts
from tasks.stage import Run
from tasks.verification import verification


@flow(name="evaluate", flow_run_name="evaluate {policy}", persist_result=False)
def evaluate(
    policy: str, benchmarks: Sequence[str] = (), overrides: Sequence[str] = (), data_root: str = "data"
) -> None:
    """Score a policy.

    Args:
        policy: a policy id, RUN@STEP, or a Hugging Face checkpoint (folder or Hub id).
        benchmarks: names in the registry; none: those of the policy's run.
        overrides: `key=value` entries over the experiment's keys.
        data_root: folder that holds artifacts, log and tables.
    """
    stored = find_policy(Path(data_root), policy)
    settings = evaluation_experiment(stored, benchmarks, overrides)
    evaluate_stored(stored, settings, Path(data_root), uses_prefect=True)


def evaluate_stored(stored: StoredPolicy, experiment: Experiment, data_root: Path, *, uses_prefect: bool) -> None:
    """Score a stored policy under its run and step; a checkpoint that is not stored yet becomes a run of its own."""
    sources = find_sources(experiment, has_policy=stored.policy is not None)
    with open_run(
        experiment,
        data_root,
        current_listener(experiment),
        uses_prefect=uses_prefect,
        attempt=stored.attempt,
    ) as run:
        start = stored.first_policy or first_policy(run.at(0), source=sources.policy)
        evaluate_policy(run, experiment, sources, stored.policy or start, start, step=stored.step)


def evaluate_policy(
    run: Run, experiment: Experiment, sources: Sources, policy: Artifact, tokenizer: Artifact, *, step: int
) -> None:
    """Sample k times and decode greedily on every benchmark; one row of scores for each."""
    settings = experiment.evaluation
    sampler = dataclasses.replace(experiment.sampler, temperature=settings.temperature)
    counts = {"sampled": settings.num_samples, "greedy": 1 if settings.greedy else 0}
    for name, source in sources.benchmarks.items():
        verifier = get_verifier(get_dataset(name, "benchmarks").verifier)
        asked = prompts(
            run.at(step, "eval", name),
            source=source,
            tokenizer=tokenizer.part("tokenizer"),
            config=dataclasses.replace(experiment.prompts, limit=settings.limit),
            verifier=verifier.name,
        ).part("prompts")
        for decoding, num_samples in counts.items():
            if not num_samples:
                continue
            place = run.at(step, "eval", f"{name} {decoding}")
            sampled = generation(
                place,
                policy=policy.part("checkpoint"),
                prompts=asked,
                selection=Selection(step=None, prompts_per_step=None, seed=0),
                sampler=sampler,
                num_samples=num_samples,
                decoding=decoding,
                seed=derive_seed(experiment.seed, "evaluation", name),
            ).part("rollouts")
            judged = verification(
                place, rollouts=sampled, prompts=asked, verifier=verifier.name, verifier_version=verifier.version
            ).part("verdicts")
            evaluation(place, benchmark=name, prompts=asked, rollouts=sampled, verdicts=judged)
