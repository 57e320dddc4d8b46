"""What the commands that work on runs do. Heavy libraries are imported once bad input has been refused."""

import argparse
import shlex
import sys
from collections.abc import Callable
from typing import Any


def train(options: argparse.Namespace) -> int:
    from tasks.experiment import load_experiment

    experiment = load_experiment(options.experiment, options.set)

    def work() -> None:
        if options.no_server:
            from flows.loop import train_experiment

            train_experiment(experiment, options.data_root, uses_prefect=False)
        else:
            from flows.forms import Settings, filled_in
            from flows.train import train as flow

            flow(options.experiment, filled_in(Settings, options.set), data_root=str(options.data_root))

    return _watched(options, experiment, work)


def evaluate(options: argparse.Namespace) -> int:
    from flows.stored_runs import evaluation_experiment, find_policy

    overrides = [*options.set, *([f"evaluation.limit={options.limit}"] if options.limit is not None else [])]
    benchmarks = [name for name in options.benchmarks.split(",") if name]
    stored = find_policy(options.data_root, options.policy)
    experiment = evaluation_experiment(stored, benchmarks, overrides)

    def work() -> None:
        from flows import evaluate

        if options.no_server:
            evaluate.evaluate_stored(stored, experiment, options.data_root, uses_prefect=False)
        else:
            from flows.forms import ScoringSettings, filled_in

            form = filled_in(ScoringSettings, overrides)
            evaluate.evaluate(options.policy, benchmarks, form, data_root=str(options.data_root))

    return _watched(options, experiment, work, step=stored.step, stored=stored.policy is not None)


def _watched(
    options: argparse.Namespace,
    experiment: Any,
    work: Callable[[], None],
    step: int | None = None,
    stored: bool = False,
    recredits: bool = False,
) -> int:
    """Refuse bad input, find or start the Prefect server, work under a progress view, print the closing table."""
    from contextlib import ExitStack

    from flows.closing import print_closing, print_recredited
    from flows.next_commands import command_name
    from flows.progress import make_listener, watching
    from flows.run import check_writable, find_sources
    from flows.scoring import BenchmarksFailed
    from flows.server import prefect_server, without_server

    check_writable(options.data_root)
    find_sources(experiment, has_policy=stored or recredits)
    listener = make_listener(experiment)
    again = f"{command_name()} {shlex.join(options.arguments)}"
    failure = None
    try:
        with ExitStack() as stack:
            stack.enter_context(
                without_server(options.data_root) if options.no_server else prefect_server(options.data_root)
            )
            stack.enter_context(watching(listener))
            work()
    except KeyboardInterrupt:
        print(f"\nStopped. Every finished stage is stored; go on from there with:\n  {again}", file=sys.stderr)
        return 130
    except BenchmarksFailed as error:
        if step is None:
            raise
        failure = error  # after the table of what was scored
    if recredits:
        print_recredited(experiment, options.data_root, listener)
        return 0
    print_closing(
        experiment, options.data_root, listener, again=again, final_step=step, has_history=not options.no_server
    )
    if failure is not None:
        raise failure
    return 0


def rerun(options: argparse.Namespace) -> int:
    """`tempo rerun`: compute a stage of a stored run again, and what depends on it."""
    from flows.loop import train_experiment
    from flows.planning import request_rerun

    experiment, request = request_rerun(options.data_root, options.run, _request(options))

    def work() -> None:
        if options.no_server:
            train_experiment(experiment, options.data_root, uses_prefect=False, rerun=request)
        else:
            from flows.forms import Settings, filled_in
            from flows.rerun import rerun as flow

            flow(
                experiment.run,
                options.from_stage,
                step=options.step,
                purpose=options.purpose,
                force=options.force,
                settings=filled_in(Settings, options.set),
                data_root=str(options.data_root),
            )

    return _watched(options, experiment, work)


def _request(options: argparse.Namespace) -> Any:
    from flows.takes import Rerun

    return Rerun(
        from_stage=options.from_stage,
        step=options.step,
        purpose=options.purpose,
        force=options.force,
        overrides=tuple(options.set),
    )


def plan(options: argparse.Namespace) -> int:
    """`tempo plan`: exit code 0 when nothing would run, 3 when something would."""
    import json

    from flows.history import stored_experiment
    from flows.planning import lines, plan_experiment, request_rerun
    from tasks.experiment import apply_overrides, experiment_names, load_experiment

    if options.from_stage:
        experiment, request = request_rerun(options.data_root, options.experiment, _request(options))
        _, stages = plan_experiment(experiment, options.data_root, request)
    else:
        if options.experiment.endswith(".toml") or options.experiment in experiment_names():
            experiment = load_experiment(options.experiment, options.set)
        else:
            experiment = apply_overrides(stored_experiment(options.data_root, options.experiment), options.set)
        _, stages = plan_experiment(experiment, options.data_root)
    for line in map(json.dumps, (s.as_json() for s in stages)) if options.format == "json" else lines(stages):
        print(line)
    return 0 if all(planned.is_hit for planned in stages) else 3


def recredit(options: argparse.Namespace) -> int:
    """`tempo recredit`: another verifier, other rewards or another estimator over stored rollouts."""
    from flows.history import stored_experiment
    from flows.recrediting import prepare_recredit, recredit_run

    stored = stored_experiment(options.data_root, options.run)
    asked = prepare_recredit(options.data_root, stored, options.estimator, options.verifier, options.set)

    def work() -> None:
        changes = {"estimator": options.estimator, "verifier": options.verifier}
        if options.no_server:
            recredit_run(stored.run, **changes, data_root=options.data_root, uses_prefect=False, overrides=options.set)
        else:
            from flows.forms import CreditingSettings, filled_in
            from flows.recredit import recredit as flow

            form = filled_in(CreditingSettings, options.set)
            flow(stored.run, **changes, settings=form, data_root=str(options.data_root))

    return _watched(options, asked.experiment, work, recredits=True)
