"""The loop: first policy, prompts, warm start; then generate, verify, credit, train; with scores on the way.

Nothing here knows Prefect: the same walk through the stages trains (under the flow `train`), and plans.
"""

from collections.abc import Callable
from pathlib import Path

from flows.models import Models, signals_of_step, with_base, with_critic
from flows.progress import current_listener
from flows.retention import Retention
from flows.run import Sources, find_sources, open_run
from flows.scoring import evaluate_policy, separate_benchmarks
from flows.takes import Rerun, settings_at
from storage.artifact import Artifact
from tasks.config import Experiment
from tasks.core.seeds import derive_seed
from tasks.core.verifiers import get_verifier
from tasks.credit import credit
from tasks.datasets import tutor_seed
from tasks.demonstrations import demonstrations
from tasks.generation import Selection, generation
from tasks.policy import first_policy
from tasks.prompts import prompts
from tasks.signals import signals_of_estimator, signals_of_training
from tasks.stage import Run
from tasks.training import training
from tasks.verification import verification
from tasks.warm_start import warm_start


def train_experiment(
    experiment: Experiment, data_root: Path, *, uses_prefect: bool, rerun: Rerun | None = None
) -> None:
    """Find what the experiment names, open its run, and go through its stages; `rerun` computes one of them again."""
    find_sources(experiment)
    listener = current_listener(experiment)
    with open_run(experiment, data_root, listener, uses_prefect=uses_prefect, rerun=rerun) as run:
        retention = Retention(run, experiment.keep_policies)
        walk(run, experiment, after_step=retention.add)


def walk(run: Run, experiment: Experiment, after_step: Callable[[int, Artifact], None] = lambda *_: None) -> None:
    """Every stage of the run in order. What a call of a stage does is the run's matter: it trains, or it plans."""
    settings = settings_at(experiment, run.takes, 0)
    sources = find_sources(settings)
    policy, questions, tokenizer = prepare(run, settings, sources)
    evaluate_policy(run, settings, sources, policy, tokenizer, step=0)
    models = Models(policy, reference=policy)
    for step in range(1, experiment.steps + 1):
        settings = settings_at(experiment, run.takes, step)
        sources = find_sources(settings)
        models = train_step(run, settings, sources, models, questions, step)
        is_due = experiment.evaluate_every and step % experiment.evaluate_every == 0
        if is_due or step == experiment.steps:
            evaluate_policy(run, settings, sources, models.policy, tokenizer, step=step)
        after_step(step, models.policy)


def prepare(run: Run, experiment: Experiment, sources: Sources) -> tuple[Artifact, Artifact, Artifact]:
    """Step 0: the first policy (warm-started if the experiment says so), the prompts, and the tokenizer's artifact."""
    assert sources.policy is not None
    start = first_policy(run.at(0), source=sources.policy)
    tokenizer = start.part("tokenizer")
    questions = prompts(
        run.at(0), source=sources.prompts, tokenizer=tokenizer, config=experiment.prompts, verifier=sources.verifier
    )
    separate_benchmarks(run, experiment, sources, questions, start)
    if not experiment.warm_start.updates:
        return start, questions, start
    pairs = demonstrations(
        run.at(0),
        source=sources.prompts,
        prompts=questions.part("prompts"),
        tokenizer=tokenizer,
        seed=tutor_seed(experiment),
    )
    policy = warm_start(
        run.at(0),
        policy=start.part("checkpoint"),
        prompts=questions.part("prompts"),
        demonstrations=pairs.part("demonstrations"),
        config=experiment.warm_start,
        max_grad_norm=experiment.train.max_grad_norm,
        seed=derive_seed(experiment.seed, "warm_start"),
    )
    return policy, questions, start


def train_step(
    run: Run, experiment: Experiment, sources: Sources, models: Models, questions: Artifact, step: int
) -> Models:
    """One iteration of the loop; returns what the next one starts from."""
    place, asked = run.at(step), questions.part("prompts")
    models = with_base(experiment, with_critic(run, experiment, models, step))
    sampled = generation(
        place,
        policy=models.policy.part("checkpoint"),
        prompts=asked,
        selection=Selection(step=step, prompts_per_step=experiment.prompts_per_step, seed=experiment.seed),
        sampler=experiment.sampler,
        num_samples=experiment.group_size,
        decoding="sampled",
        seed=derive_seed(experiment.seed, "generation", step),
    ).part("rollouts")
    judged = verification(
        place,
        rollouts=sampled,
        prompts=asked,
        verifier=sources.verifier,
        verifier_version=get_verifier(sources.verifier).version,
        config=experiment.verification,
    ).part("verdicts")
    told = signals_of_step(place, experiment, models, asked, sampled)
    credited = credit(
        place,
        rollouts=sampled,
        verdicts=judged,
        signals=told if signals_of_estimator(experiment.estimator) else None,
        estimator=experiment.estimator,
        config=experiment.credit,
    ).part("advantages")
    trained = training(
        place,
        **models.parts,
        prompts=asked,
        rollouts=sampled,
        advantages=credited,
        signals=told if signals_of_training(experiment) else None,
        config=experiment.train,
        critic_config=experiment.critic if models.critic else None,
        is_critic_warmup=models.critic is not None and step <= experiment.critic.warmup_steps,
        temperature=experiment.sampler.temperature,
        max_tokens=experiment.sampler.max_tokens,
        seed=derive_seed(experiment.seed, "training", step),
    )
    return models.after(trained)
