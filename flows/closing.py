"""The closing table of a command: what was learned, what it cost, where the data are, what to try next."""

import resource
import shlex
import sys
from pathlib import Path

import duckdb
from rich.console import Console
from rich.table import Table

from flows.next_commands import command_name, next_commands
from flows.progress import RunListener
from flows.score_table import MIN_WIDTH, changes_table, print_scores
from flows.server import history_command
from storage.catalog import open_catalog
from tasks.config import Experiment
from tasks.core.advantage import HAS_TD


def print_closing(
    experiment: Experiment,
    data_root: Path,
    listener: RunListener,
    *,
    again: str,
    final_step: int | None,
    has_history: bool,
) -> None:
    """Print scores (of a training: before and after, and branch statistics), time per stage and three commands.

    `again` is the command that did the work; `final_step` the step it scored, None for a training run: its last.
    """
    console = Console(highlight=False, width=None if sys.stdout.isatty() else MIN_WIDTH)
    connection = open_catalog(data_root)
    if final_step is not None:
        print_scores(console, listener, experiment, data_root)
    else:
        console.print(changes_table(listener, experiment, experiment.steps))
        for line in branch_lines(connection, experiment.run, experiment.steps):
            console.print(line, markup=False, soft_wrap=True)
    console.print(_stages(listener))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform != "darwin" else 1024**2)
    console.print(f"peak memory {peak:,.0f} MB; data in {data_root.resolve()}", markup=False, soft_wrap=True)
    console.print("\nTry next:", markup=False)
    for command in next_commands(experiment, data_root, again):
        console.print(f"  {command}", markup=False, soft_wrap=True)
    if has_history:
        console.print(f"History in Prefect's UI:\n  {history_command(data_root)}", markup=False, soft_wrap=True)


def branch_lines(connection: duckdb.DuckDBPyConnection, run: str, last: int) -> list[str]:
    """One line for the first and for the last step; credit of a token's own is named where the estimator gives any."""
    rows = connection.execute(
        "SELECT step, estimator, branch_tokens, td_tokens, td_share, num_groups_without_signal, num_groups "
        "FROM branch_statistics WHERE run = ? AND step IN (1, ?) AND purpose = 'train' AND branch_tokens IS NOT NULL "
        "ORDER BY step",
        [run, last],
    ).fetchall()
    return [
        f"step {step:>3}: {tokens:.2f} branch tokens per completion"
        + (f", {moved:.2f} of them with credit of their own ({share:.1%} of all credit)" if name in HAS_TD else "")
        + f"; {silent} of {groups} groups gave no signal"
        for step, name, tokens, moved, share, silent, groups in rows
    ]


def _stages(listener: RunListener) -> Table:
    table = Table(title="Stages of this command", title_justify="left")
    table.add_column("stage")
    for name in ("ran", "cached", "seconds"):
        table.add_column(name, justify="right")
    for stage, tally in listener.tallies.items():
        table.add_row(stage, str(tally.ran), str(tally.cached), f"{tally.seconds:.1f}")
    total = listener.tallies.values()
    table.add_section()
    table.add_row(
        "all", str(sum(t.ran for t in total)), str(sum(t.cached for t in total)), f"{sum(t.seconds for t in total):.1f}"
    )
    return table


def print_recredited(experiment: Experiment, data_root: Path, listener: RunListener) -> None:
    """The stages of a recredit, and how to compare its rows with those of the training."""
    console = Console(highlight=False)
    console.print(_stages(listener))
    root = "" if data_root == Path("data") else f" --data-root {shlex.quote(str(data_root))}"
    compare = (
        "SELECT step, estimator, label, avg(abs(advantage)) AS size, avg(abs(td)) AS td FROM token_credit "
        f"WHERE run = '{experiment.run}' GROUP BY ALL ORDER BY ALL"
    )
    console.print("\nThe rows stand beside those of training, with purpose 'recredit'. Try next:", markup=False)
    queries = ["recredit_changes", *(["verifier_disagreement"] if "verification" in listener.tallies else [])]
    asked = [f"--query {query} --run {experiment.run}" for query in queries]
    for question in (*asked, f'"{compare}"'):
        console.print(f"  {command_name()} sql {question}{root}", markup=False, soft_wrap=True)
