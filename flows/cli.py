"""The `tempo` command. Nothing heavy is imported before a command needs it: `--help` and `sql` answer at once."""

import argparse
import atexit
import io
import os
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

DESCRIPTION = (
    "Train language models by reinforcement learning with prefix-tree credit; every stage stored and queryable."
)


def run() -> NoReturn:
    """The console command: `main`, then the end of the process without tearing the interpreter down.

    Prefect's event-loop threads outlive every flow, and at a regular exit duckdb's bindings report all that such
    threads keep alive as leaked: sixty lines after a run that went well. Exit handlers run, and streams are flushed.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without UTF-8 shows ? where it has no character
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a polite end is a Ctrl-C: the run is logged as stopped
    try:
        code = main()
    except SystemExit as end:  # argparse, after --help or a usage error
        code = end.code if isinstance(end.code, int) else 0
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(BrokenPipeError, ValueError):
            stream.flush()
    os._exit(code)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code (0 done, 1 failed, 2 bad input, 130 stopped by Ctrl-C)."""
    options = _parser().parse_args(arguments)
    options.arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code: int = options.command(options)
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader went away: not an error of ours
        return 0
    except (ValueError, FileNotFoundError) as error:
        return _fail(error, 2)
    except (OSError, RuntimeError, FloatingPointError) as error:
        return _fail(error, 1)
    return code


def _fail(error: Exception, code: int) -> int:
    if os.environ.get("TEMPO_TRACEBACK"):
        raise error
    print(f"tempo: {error}", file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tempo", description=DESCRIPTION)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--data-root",
        type=Path,
        default=Path(os.environ.get("TEMPO_DATA_ROOT") or "data"),
        help="folder of artifacts, log and tables (default: TEMPO_DATA_ROOT, or ./data)",
    )
    working = argparse.ArgumentParser(add_help=False)
    working.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override an experiment key")
    working.add_argument("--no-server", action="store_true", help="run the stages without a Prefect server")

    def add(name: str, command: Callable[[Any], int], help: str, *parents: argparse.ArgumentParser) -> Any:
        sub = commands.add_parser(name, help=help, description=help, parents=[*parents, common])
        sub.set_defaults(command=command)
        return sub

    train = add("train", _train, "train as an experiment says, from the last committed stage", working)
    train.add_argument("experiment", help="a name in deployments/experiments, or a .toml file")
    evaluate = add("evaluate", _evaluate, "score a policy on benchmarks", working)
    evaluate.add_argument(
        "policy", help="a policy id, RUN@STEP, RUN@latest, or a Hugging Face checkpoint (folder or Hub id)"
    )
    evaluate.add_argument("--benchmarks", default="", help="names, separated by commas (default: those of its run)")
    evaluate.add_argument("--limit", type=int, help="score only this many prompts of each benchmark")
    sql = add("sql", _sql, "answer a question about rollouts, verdicts, trees, advantages, updates and scores")
    sql.add_argument("statement", nargs="?", help="one reading statement; absent: list the tables and their columns")
    sql.add_argument("--format", choices=("table", "json", "csv", "parquet"), default="table")
    sql.add_argument("--output", type=Path, help="write to this file (needed for parquet)")
    add("runs", _runs, "list the stored runs")
    deploy = add("deploy", _deploy, "register deployments, work pools and automations on the configured Prefect server")
    deploy.add_argument("--only", metavar="NAME", help="register this deployment only (with all pools and automations)")
    return parser


def _train(options: argparse.Namespace) -> int:
    from tasks.experiment import load_experiment

    experiment = load_experiment(options.experiment, options.set)

    def work() -> None:
        if options.no_server:
            from flows.loop import train_experiment

            train_experiment(experiment, options.data_root, uses_prefect=False)
        else:
            from flows.forms import Settings, filled_in
            from flows.train import train

            train(options.experiment, filled_in(Settings, options.set), data_root=str(options.data_root))

    return _watched(options, experiment, work)


def _evaluate(options: argparse.Namespace) -> int:
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
) -> int:
    """Refuse bad input, find or start the Prefect server, work under a progress view, print the closing table."""
    from contextlib import ExitStack

    from flows.closing import print_closing
    from flows.next_commands import command_name
    from flows.progress import make_listener, watching
    from flows.run import check_writable, find_sources
    from flows.server import prefect_server, without_server

    check_writable(options.data_root)
    find_sources(experiment, has_policy=stored)
    listener = make_listener(experiment)
    again = f"{command_name()} {shlex.join(options.arguments)}"
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
    print_closing(
        experiment, options.data_root, listener, again=again, final_step=step, has_history=not options.no_server
    )
    return 0


def _sql(options: argparse.Namespace) -> int:
    from flows.query import print_query, print_tables

    if options.statement is None:
        print_tables()
        return 0
    print_query(options.data_root, options.statement, options.format, options.output)
    return 0


def _runs(options: argparse.Namespace) -> int:
    from flows.query import print_query

    statement = (
        "SELECT run, state, last_stage, num_ran, num_cached, started_at, last_event_at FROM runs ORDER BY last_event_at"
    )
    print_query(options.data_root, statement, "table", None)
    return 0


def _deploy(options: argparse.Namespace) -> int:
    from flows.deploy import deploy

    deploy(options.data_root, options.only)
    return 0


if __name__ == "__main__":
    run()
