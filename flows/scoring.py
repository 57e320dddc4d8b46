"""Scoring a policy: prompts, generation, verification and evaluation of every benchmark, sampled and greedy."""

import dataclasses

from flows.run import Sources
from storage.artifact import Artifact, Part
from tasks.config import Experiment
from tasks.core.seeds import derive_seed
from tasks.core.verifiers import get_verifier
from tasks.datasets import DatasetSource, get_dataset
from tasks.evaluation import evaluation
from tasks.generation import Selection, generation
from tasks.prompts import prompts
from tasks.separation import separation
from tasks.stage import Run
from tasks.verification import verification
from tasks.verification_config import RewardsConfig


def benchmark_prompts(
    run: Run, experiment: Experiment, source: DatasetSource, tokenizer: Artifact, *, step: int
) -> Part:
    """The prompts of one benchmark."""
    return prompts(
        run.at(step, "eval", source.dataset),
        source=source,
        tokenizer=tokenizer.part("tokenizer"),
        config=dataclasses.replace(experiment.prompts, limit=experiment.evaluation.limit),
        verifier=get_dataset(source.dataset, "benchmarks").verifier,
    ).part("prompts")


def separate_benchmarks(
    run: Run, experiment: Experiment, sources: Sources, questions: Artifact, tokenizer: Artifact
) -> None:
    """Refuse benchmarks whose prompts are training prompts too, before anything is trained."""
    for name, source in sources.benchmarks.items():
        separation(
            run.at(0, "train", name),
            prompts=questions.part("prompts"),
            benchmark=benchmark_prompts(run, experiment, source, tokenizer, step=0),
            allow_benchmark_prompts=experiment.contracts.allow_benchmark_prompts,
        )


def evaluate_policy(
    run: Run, experiment: Experiment, sources: Sources, policy: Artifact, tokenizer: Artifact, *, step: int
) -> None:
    """Sample k times and decode greedily on every benchmark; one row of scores for each."""
    settings = experiment.evaluation
    sampler = dataclasses.replace(experiment.sampler, temperature=settings.temperature or 1.0)
    counts = {"sampled": 4 if settings.num_samples is None else settings.num_samples, "greedy": int(settings.greedy)}
    for name, source in sources.benchmarks.items():
        verifier = get_verifier(get_dataset(name, "benchmarks").verifier)
        asked = benchmark_prompts(run, experiment, source, tokenizer, step=step)
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
                place,
                rollouts=sampled,
                prompts=asked,
                verifier=verifier.name,
                verifier_version=verifier.version,
                config=dataclasses.replace(experiment.verification, rewards=RewardsConfig()),
            ).part("verdicts")
            evaluation(place, benchmark=name, prompts=asked, rollouts=sampled, verdicts=judged)
