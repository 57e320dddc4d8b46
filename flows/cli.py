"""The `tempo` command. Nothing heavy is imported before a command needs it: `--help` and `sql` answer at once."""

import argparse
import atexit
import io
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from flows import commands

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
    if getattr(options, "hub_root", None) is not None:
        options.set = [*options.set, f"hub_root={json.dumps(options.hub_root)}"]
    try:
        code: int = options.command(options)
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader went away: not an error of ours
        return 0
    except (ValueError, FileNotFoundError) as error:
        return _fail(error, getattr(error, "exit_code", 2))  # a broken contract (ContractBreach) is a failure: 1
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
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
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
    hub = argparse.ArgumentParser(add_help=False)
    hub.add_argument(
        "--hub-root", metavar="FOLDER", help="read datasets from this mirror of the Hub (short for --set hub_root=…)"
    )

    def add(name: str, command: Callable[[Any], int], help: str, *parents: argparse.ArgumentParser) -> Any:
        sub = subparsers.add_parser(name, help=help, description=help, parents=[*parents, common])
        sub.set_defaults(command=command)
        return sub

    train = add("train", commands.train, "train as an experiment says, from the last committed stage", working, hub)
    train.add_argument("experiment", help="a name in deployments/experiments, or a .toml file")
    evaluate = add("evaluate", commands.evaluate, "score a policy on benchmarks", working, hub)
    evaluate.add_argument(
        "policy",
        help="a policy id, RUN@STEP, RUN@latest, a Hugging Face checkpoint (folder or Hub id) or builtin/tiny-qwen3",
    )
    evaluate.add_argument(
        "--benchmarks", default="", help="names, separated by commas, or all (default: those of its run)"
    )
    evaluate.add_argument("--limit", type=int, help="score only this many prompts of each benchmark")
    rerun = add("rerun", commands.rerun, "compute a stage of a stored run again, and what depends on it", working)
    rerun.add_argument("run", help="a stored run, or the beginning of its name")
    _add_rerun(rerun, required=True)
    _add_plan(add, hub)
    _add_judging_commands(add, working)
    _add_storage_commands(add)
    return parser


def _add_plan(add: Callable[..., Any], hub: argparse.ArgumentParser) -> None:
    help = "say which stages are stored, which would run, why, and at what expected cost"
    plan = add("plan", commands.plan, help, hub)
    plan.add_argument("experiment", help="an experiment, as for train, or a stored run")
    plan.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override an experiment key")
    plan.add_argument("--format", choices=("table", "json"), default="table")
    _add_rerun(plan, required=False)
    plan.epilog = "Nothing is executed. Exit code: 0 when nothing would run, 3 when something would."


def _add_judging_commands(add: Callable[..., Any], working: argparse.ArgumentParser) -> None:
    """The commands that judge what was sampled before, by a run or elsewhere."""
    recredit = add("recredit", commands.recredit, "judge or credit a run's stored rollouts in another way", working)
    recredit.add_argument("run", help="a stored run, or the beginning of its name")
    recredit.add_argument("--estimator", help="another advantage estimator (default: the run's)")
    recredit.add_argument("--verifier", metavar="NAME[@VERSION]", help="another verifier (default: the run's)")
    verify = add("verify", _verify, "judge completions from a file or a pipe: JSON lines in, JSON lines out")
    verify.add_argument("--verifier", required=True, metavar="NAME[@VERSION]", help="the verifier")
    verify.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a verification.... key")
    verify.add_argument("--input", type=Path, metavar="FILE", help="read from this file (default: standard input)")
    verify.add_argument("--output", type=Path, metavar="FILE", help="write to this file, all of it or nothing")
    verify.epilog = (
        "In: {completion, answer} and, where there is one, is_truncated or finish_reason, options; any other keys go "
        "through. Out: those keys, verifier, verifier_version, status, reward, extracted_answer, failure, seconds."
    )


def _add_storage_commands(add: Callable[..., Any]) -> None:
    """The commands that work on what is stored."""
    sql = add("sql", _sql, "answer a question about rollouts, verdicts, trees, advantages, updates and scores")
    sql.add_argument("statement", nargs="?", help="one reading statement; absent: list the tables and their columns")
    sql.add_argument("--query", metavar="NAME", help="a stored query instead, such as lineage (tempo sql lists them)")
    sql.add_argument("--run", help="the run that a stored query is asked of")
    sql.add_argument("--format", choices=("table", "json", "csv", "parquet"), default="table")
    sql.add_argument("--output", type=Path, help="write to this file (needed for parquet)")
    runs = add("runs", _runs, "list the stored runs: state, last stage, age, size")
    runs.add_argument("--format", choices=("table", "json", "csv"), default="table")
    fsck = add("fsck", _fsck, "verify every stored byte, and every artifact against the log")
    fsck.add_argument("--repair", action="store_true", help="set damaged artifacts aside; their stages then run again")
    fsck.add_argument("--format", choices=("table", "json"), default="table")
    gc = add("gc", _gc, "say what no kept run needs, and how large it is")
    gc.add_argument("--delete", action="store_true", help="remove it (default: only say it)")
    gc.add_argument("--forget", action="append", default=[], metavar="RUN", help="no longer keep this run")
    deploy = add("deploy", _deploy, "register deployments, work pools and automations on the configured Prefect server")
    deploy.add_argument("--only", metavar="NAME", help="register this deployment only (with all pools and automations)")


def _add_rerun(parser: argparse.ArgumentParser, *, required: bool) -> None:
    """The options that say what a rerun computes again."""
    before = ("policy", "prompts", "demonstrations", "warm_start", "critic")
    of_step = ("generation", "verification", "signals", "credit", "training")
    parser.add_argument(
        "--from",
        dest="from_stage",
        required=required,
        choices=(*before, *of_step, "separation", "evaluation"),
        help="the stage to compute again",
    )
    parser.add_argument("--step", type=int, help="at this step only (default: at every step)")
    parser.add_argument("--force", action="store_true", help="redo what depends on it even if its contents stay equal")
    parser.add_argument(
        "--purpose", choices=("train", "eval"), default="train", help="eval: generation or verification of benchmarks"
    )


def _verify(options: argparse.Namespace) -> int:
    from flows.verify import verify

    return verify(options)


def _sql(options: argparse.Namespace) -> int:
    from flows.query import print_named_query, print_query, print_tables

    if options.query and options.statement:
        raise ValueError("sql: expected a statement or --query NAME, got both")
    if options.run and not options.query:
        raise ValueError("sql: --run belongs to --query NAME; in a statement, name it: WHERE run = 'NAME'")
    if options.query:
        print_named_query(options.data_root, options.query, options.run, options.format, options.output)
    elif options.statement is None:
        print_tables()
    else:
        print_query(options.data_root, options.statement, options.format, options.output)
    return 0


def _runs(options: argparse.Namespace) -> int:
    from flows.upkeep import print_runs

    print_runs(options.data_root, options.format)
    return 0


def _fsck(options: argparse.Namespace) -> int:
    from flows.upkeep import fsck

    return fsck(options.data_root, options.repair, options.format)


def _gc(options: argparse.Namespace) -> int:
    from flows.upkeep import gc

    return gc(options.data_root, options.delete, options.forget)


def _deploy(options: argparse.Namespace) -> int:
    from flows.deploy import deploy

    deploy(options.data_root, options.only)
    return 0


if __name__ == "__main__":
    run()
