"""What a run shows while it works: a live view in a terminal, one plain line a step otherwise."""

import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from tasks.config import Experiment
from tasks.stage import Listener, Place, Summary


@dataclass
class Tally:
    """What a command did with one stage."""

    ran: int = 0
    cached: int = 0
    seconds: float = 0.0


@dataclass
class StepFigures:
    """Figures of the step that is running."""

    step: int = 0
    seconds: float = 0.0
    tokens: int = 0
    is_cached: bool = True
    summaries: dict[str, Summary] = field(default_factory=dict)


class RunListener(Listener):
    """Counts stages and writes one line a step; the base of both views."""

    def __init__(self, experiment: Experiment, console: Console) -> None:
        self.experiment = experiment
        self.console = console
        self.tallies: dict[str, Tally] = defaultdict(Tally)
        self.figures = StepFigures()
        self.step_seconds: list[float] = []
        self.accuracy = "-"
        self.score = "-"
        self.scores: list[tuple[int, Summary]] = []
        self.rate = ""

    def note(self, text: str) -> None:
        self.say(text)

    def stage_finished(self, place: Place, stage: str, outcome: str, seconds: float, summary: Summary) -> None:
        tally = self.tallies[stage]
        tally.ran, tally.cached = tally.ran + (outcome == "ran"), tally.cached + (outcome == "cached")
        tally.seconds += seconds
        if place.purpose == "eval":
            self._evaluation_finished(place, stage, summary, outcome)
            return
        if place.purpose == "recredit":
            self._recredited(place, stage, summary, outcome)
            return
        if place.step == 0:
            self.say(f"{stage:<15} {_outcome(outcome, seconds)}  {_figures(summary)}")
            return
        if place.step != self.figures.step:
            self.figures = StepFigures(step=place.step)
        self.figures.seconds += seconds
        self.figures.is_cached &= outcome == "cached"
        self.figures.tokens += summary["tokens"] if stage == "generation" else 0
        self.figures.summaries[stage] = summary
        if stage == "verification":
            self._tell_failure(place, summary)
            self.accuracy = self.accuracy if summary["accuracy"] is None else f"{summary['accuracy']:.3f}"
        if stage == "training":
            self._step_finished()

    def _tell_failure(self, place: Place, summary: Summary) -> None:
        if summary.get("first_failure"):
            first, failed = summary["first_failure"], summary["unassigned"]
            self.say(f"step {place.step:>3}  the verifier failed on {failed} completions; first: {first}")

    def _evaluation_finished(self, place: Place, stage: str, summary: Summary, outcome: str) -> None:
        if stage == "evaluation":
            self.scores.append((place.step, summary))
        if stage == "evaluation" and summary["mean"] is not None:
            error = "" if summary["stderr"] is None else f" +- {summary['stderr']:.3f}"
            self.score = f"{summary['mean']:.3f}"
            self.say(
                f"step {place.step:>3}  score of {summary['benchmark']} ({summary['decoding']}): "
                f"{summary['mean']:.3f}{error} over {summary['n']} prompts"
                + ("  Cached" if outcome == "cached" else "")
            )

    def _recredited(self, place: Place, stage: str, summary: Summary, outcome: str) -> None:
        if stage == "verification":
            self._tell_failure(place, summary)
        if stage == "credit":
            self.say(
                f"step {place.step:>3}  {place.label}: mean reward {summary['mean_reward']}  {branches(summary)}  "
                f"no signal {summary['groups_without_signal']}/{summary['groups']}"
                + ("  Cached" if outcome == "cached" else "")
            )

    def _step_finished(self) -> None:
        figures = self.figures
        credit, train = figures.summaries["credit"], figures.summaries["training"]
        if not figures.is_cached:
            self.step_seconds.append(figures.seconds)
        self.rate = f"{figures.tokens / figures.seconds:,.0f} tokens/s" if figures.seconds else ""
        cost = "Cached" if figures.is_cached else f"{figures.seconds:.1f} s  {self.rate}  {self.left()}"
        entropy = "-" if train["entropy"] is None else f"{train['entropy']:.3f}"
        explained = train.get("explained_variance")
        critic = "" if explained is None else f"explained variance {explained:.2f}  "
        self.say(
            f"step {figures.step:>3}/{self.experiment.steps}  accuracy {self.accuracy}  "
            f"{branches(credit)}  "
            f"no signal {credit['groups_without_signal']}/{credit['groups']}  entropy {entropy}  {critic}{cost}"
        )

    def left(self) -> str:
        """Time left, from the last steps' mean."""
        recent = self.step_seconds[-8:]
        if not recent:
            return ""
        seconds = sum(recent) / len(recent) * (self.experiment.steps - self.figures.step)
        return f"{seconds:.0f} s left"

    def say(self, line: str) -> None:
        """One plain line, flushed; data are never read as markup."""
        print(line, file=self.console.file, flush=True)

    def __enter__(self) -> "RunListener":
        return self

    def __exit__(self, *exception: object) -> None:
        pass


class LiveListener(RunListener):
    """The step lines, and below them a bar with the running stage, accuracy and time left."""

    def __init__(self, experiment: Experiment, console: Console) -> None:
        super().__init__(experiment, console)
        self.progress = Progress(
            TextColumn("[bold]{task.fields[run]}[/]", markup=True),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.description}", markup=False),
            TextColumn("accuracy {task.fields[accuracy]}  score {task.fields[score]}", markup=False),
            TextColumn("{task.fields[rate]}  {task.fields[left]}", markup=False),
            TimeElapsedColumn(),
            console=console,
            transient=True,
        )
        self.bar = self.progress.add_task(
            "starting", total=max(experiment.steps, 1), run=experiment.run, accuracy="-", score="-", rate="", left=""
        )
        self._shown = 0.0

    def stage_started(self, place: Place, stage: str) -> None:
        self._update(f"{stage} {place.label}".strip())

    def stage_progress(self, place: Place, stage: str, done: int, total: int) -> None:
        if time.monotonic() - self._shown > 0.1:
            self._update(f"{stage} {place.label}".strip() + f" {done}/{total}")

    def stage_finished(self, place: Place, stage: str, outcome: str, seconds: float, summary: Summary) -> None:
        super().stage_finished(place, stage, outcome, seconds, summary)
        is_last = place.purpose == "train" and stage == "training"
        self.progress.update(self.bar, completed=place.step if is_last else max(place.step - 1, 0))

    def _update(self, description: str) -> None:
        self._shown = time.monotonic()
        self.progress.update(
            self.bar,
            description=description,
            accuracy=self.accuracy,
            score=self.score,
            rate=self.rate,
            left=self.left(),
        )

    def say(self, line: str) -> None:
        self.progress.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def __enter__(self) -> "LiveListener":
        self.progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.progress.stop()


def make_listener(experiment: Experiment) -> RunListener:
    """A live view when standard error is a terminal, plain lines otherwise (workers, CI, pipes)."""
    console = Console(stderr=True)
    return LiveListener(experiment, console) if sys.stderr.isatty() else RunListener(experiment, console)


_listener: ContextVar[RunListener | None] = ContextVar("listener", default=None)


@contextmanager
def watching(listener: RunListener) -> Iterator[None]:
    """Show `listener`'s view, and let the flows called inside report to it."""
    token = _listener.set(listener)
    try:
        with listener:
            yield
    finally:
        _listener.reset(token)


def current_listener(experiment: Experiment) -> RunListener:
    """The command's listener; a flow that a worker runs makes its own."""
    return _listener.get() or make_listener(experiment)


def branches(credit: Summary) -> str:
    """Branch tokens per completion, after how many tokens groups part, and the share of |advantage| that td moves."""
    depth = "-" if credit["divergence"] is None else f"{credit['divergence']:.1f}"
    return f"branch tokens {credit['branch_tokens']:.2f} from depth {depth}, td {credit['td_share']:.0%}"


def _outcome(outcome: str, seconds: float) -> str:
    return "Cached   " if outcome == "cached" else f"{seconds:6.1f} s "


def _figures(summary: dict[str, Any]) -> str:
    return "  ".join(f"{name.replace('_', ' ')} {value}" for name, value in summary.items() if value is not None)
