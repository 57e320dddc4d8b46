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


class BenchmarksFailed(ValueError):
    """Some of several benchmarks could not be scored; the scores of the others are stored."""

    exit_code = 1


def evaluate_policy(
    run: Run, experiment: Experiment, sources: Sources, policy: Artifact, tokenizer: Artifact, *, step: int
) -> None:
    """Score every benchmark, each on its own: what fails on one (its rows, its prompts, a contract) spares the others.

    Raises BenchmarksFailed at the end for those of several that failed. Other errors (a full disk, an engine that is
    gone) would meet the next benchmark too, and pass through at once.
    """
    scored: list[str] = []
    failed: dict[str, ValueError] = {}
    for name, source in sources.benchmarks.items():
        try:
            evaluate_benchmark(run, experiment, source, policy, tokenizer, step=step)
            scored.append(name)
        except ValueError as error:
            if len(sources.benchmarks) == 1:
                raise
            failed[name] = error
            run.listener.note(f"step {step:>3}  {name} could not be scored; on to the next benchmark")
        except Exception:
            if scored:
                run.listener.note(f"The scores of {', '.join(scored)} are stored; the same command goes on from there")
            raise
    if failed:
        kept = f"The scores of {', '.join(scored)} are stored" if scored else "There is no score"
        reasons = "".join(f"\n  {name}: {error}" for name, error in failed.items())
        raise BenchmarksFailed(
            f"{len(failed)} of {len(sources.benchmarks)} benchmarks could not be scored. {kept}; run the same command "
            f"again when the reason is gone, and only what is missing is done:{reasons}"
        )


def evaluate_benchmark(
    run: Run, experiment: Experiment, source: DatasetSource, policy: Artifact, tokenizer: Artifact, *, step: int
) -> None:
    """Sample k times and decode greedily; one row of scores for each. k and temperature are the benchmark's own unless
    the experiment sets others."""
    settings, dataset = experiment.evaluation, get_dataset(source.dataset, "benchmarks")
    temperature = dataset.temperature if settings.temperature is None else settings.temperature
    num_samples = dataset.k if settings.num_samples is None else settings.num_samples
    verifier = get_verifier(dataset.verifier)
    asked = benchmark_prompts(run, experiment, source, tokenizer, step=step)
    for decoding, count in {"sampled": num_samples, "greedy": int(settings.greedy)}.items():
        if not count:
            continue
        place = run.at(step, "eval", f"{source.dataset} {decoding}")
        sampled = generation(
            place,
            policy=policy.part("checkpoint"),
            prompts=asked,
            selection=Selection(step=None, prompts_per_step=None, seed=0),
            sampler=dataclasses.replace(experiment.sampler, temperature=temperature),
            num_samples=count,
            decoding=decoding,
            seed=derive_seed(experiment.seed, "evaluation", source.dataset),
        ).part("rollouts")
        judged = verification(
            place,
            rollouts=sampled,
            prompts=asked,
            verifier=verifier.name,
            verifier_version=verifier.version,
            config=dataclasses.replace(experiment.verification, rewards=RewardsConfig()),
        ).part("verdicts")
        evaluation(place, benchmark=source.dataset, prompts=asked, rollouts=sampled, verdicts=judged)
