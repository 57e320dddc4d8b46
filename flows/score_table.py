"""Scores for people: before and after a training; everything that a command scored, benchmark by benchmark."""

import shlex
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from flows.next_commands import command_name
from flows.progress import RunListener
from tasks.config import Experiment

MIN_WIDTH = 120
"""Columns of output that is no terminal: the table of scores is not folded there."""


def print_scores(console: Console, listener: RunListener, experiment: Experiment, data_root: Path) -> None:
    """What was scored, one line a benchmark and decoding, and how to see it by subject and level."""
    console.print(scores_table(listener, experiment))
    if any(score["num_parts"] for _, score in listener.scores):
        root = "" if data_root == Path("data") else f" --data-root {shlex.quote(str(data_root))}"
        console.print("By subject and level:", markup=False)
        query = f"  {command_name()} sql --query score_parts --run {experiment.run}{root}"
        console.print(query, markup=False, soft_wrap=True)


def scores_table(listener: RunListener, experiment: Experiment) -> Table:
    """mean is avg@k with its standard error over prompts; truncated and unparseable are shares of the completions."""
    table = Table(title=f"Scores of {experiment.run}", title_justify="left")
    for name in ("benchmark", "decoding"):
        table.add_column(name)
    for name in ("n", "k", "mean", "macro", "pass@k", "maj@k", "truncated", "unparseable", "unassigned"):
        table.add_column(name, justify="right", no_wrap=True)
    for _, score in listener.scores:
        table.add_row(
            score["benchmark"],
            score["decoding"],
            f"{score['n']:,}",
            str(score["k"]),
            mean_with_error(score),
            *(share(score[name]) for name in ("macro_mean", "pass_at_k", "maj_at_k")),
            *(f"{score[name]:.1%}" for name in ("truncation_rate", "unparseable_rate")),
            f"{score['num_unassigned']:,}",
        )
    return table


def changes_table(listener: RunListener, experiment: Experiment, last: int) -> Table:
    """The mean before the first and after the last step of a training."""
    table = Table(title=f"Scores of {experiment.run}", title_justify="left")
    steps = [0, last] if last else [last]
    for name in ("benchmark", "decoding"):
        table.add_column(name)
    for name in ("before", "after") if last else ("score",):
        table.add_column(name, justify="right")
    shown: dict[tuple[str, str], dict[int, str]] = {}
    for step, score in listener.scores:
        shown.setdefault((score["benchmark"], score["decoding"]), {})[step] = mean_with_error(score)
    for (benchmark, decoding), by_step in sorted(shown.items()):
        table.add_row(benchmark, decoding, *(by_step.get(step, "-") for step in steps))
    return table


def mean_with_error(score: dict[str, Any]) -> str:
    """0.412 ± 0.014; without a score -, with one prompt no error."""
    mean, stderr = score["mean"], score["stderr"]
    return share(mean) + ("" if stderr is None else f" ± {stderr:.3f}")


def share(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
