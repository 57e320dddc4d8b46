"""Scoring a policy: prompts, generation, verification and evaluation of every benchmark, sampled and greedy."""

import dataclasses

from flows.run import Sources
from storage.artifact import Artifact
from tasks.config import Experiment
from tasks.core.seeds import derive_seed
from tasks.core.verifiers import get_verifier
from tasks.datasets import get_dataset
from tasks.evaluation import evaluation
from tasks.generation import Selection, generation
from tasks.prompts import prompts
from tasks.stage import Run
from tasks.verification import verification


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
