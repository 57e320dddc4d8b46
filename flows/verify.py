"""`tempo verify`: pairs of completion and gold answer come in as JSON lines, verdicts go out; a pipe like any other."""

import argparse
import json
import os
import resource
import shlex
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from rich.console import Console

from flows.next_commands import command_name
from flows.pairs import BadPair, Pair, PairReader, line_batches
from tasks.config import Experiment
from tasks.core.verdict import Status, Verifier
from tasks.core.verifiers import get_verifier
from tasks.experiment import ConfigError, apply_overrides
from tasks.judges import Judges, Verdict
from tasks.verification_config import VerificationConfig, reward_of

SAY_EVERY_SECONDS = 10.0
"""Plain lines of progress, where there is no terminal."""
WRITE_EVERY_SECONDS = 0.2
"""Verdicts wait at most so long for others to be written with them, and never for further input."""


def verify(options: argparse.Namespace) -> int:
    """Judge every pair of the input, in order. Raises ValueError for what cannot be judged; see `_refused`."""
    verifier = get_verifier(options.verifier)
    config = verification_settings(options.set)
    progress = Progress(verifier, to_terminal=options.output is None and sys.stdout.isatty())
    with ExitStack() as stack:
        descriptor = stack.enter_context(_opened(options.input))
        target = stack.enter_context(_target(options.output))
        stack.enter_context(progress)
        judges = Judges(note=progress.say)
        stack.callback(judges.close)
        reader = PairReader(verifier)
        try:
            for lines in line_batches(descriptor):
                pairs, problem = reader.pairs(lines)
                _judge(judges, verifier, pairs, config, target, progress)
                if problem:
                    raise problem
        except BadPair as problem:
            raise _refused(problem, progress.num_pairs, options) from None
    progress.print_summary(options.output)
    return 0


def verification_settings(overrides: Sequence[str]) -> VerificationConfig:
    """The section `verification` with `--set` applied. Raises ConfigError for other keys."""
    strange = [override for override in overrides if not override.startswith("verification.")]
    if strange:
        raise ConfigError(f"--set {strange[0]}: expected a key of the section verification (verification....=VALUE)")
    return apply_overrides(Experiment(run="verify"), overrides).verification


def _judge(
    judges: Judges,
    verifier: Verifier,
    pairs: Sequence[Pair],
    config: VerificationConfig,
    target: BinaryIO,
    progress: "Progress",
) -> None:
    """Judge the pairs and write their verdicts, whole lines at a time."""
    written, waiting = time.monotonic(), []
    for pair, verdict in zip(pairs, judges.judge(verifier, (pair.row for pair in pairs), config), strict=True):
        waiting.append(_verdict_line(pair, verdict, verifier, config))
        progress.add(verdict.judgement.status)
        if time.monotonic() - written > WRITE_EVERY_SECONDS:
            _write(target, waiting)
            written, waiting = time.monotonic(), []
    _write(target, waiting)


def _write(target: BinaryIO, lines: Sequence[bytes]) -> None:
    target.write(b"".join(lines))
    target.flush()


def _verdict_line(pair: Pair, verdict: Verdict, verifier: Verifier, config: VerificationConfig) -> bytes:
    """One JSON object in ASCII: what a completion contains is escaped, and no terminal obeys it."""
    judged = {
        "verifier": verifier.name,
        "verifier_version": verifier.version,
        "status": verdict.judgement.status,
        "reward": reward_of(verdict.judgement.status, config.rewards),
        "extracted_answer": verdict.judgement.extracted_answer,
        "failure": verdict.failure,
        "seconds": round(verdict.seconds, 6),
    }
    return json.dumps(pair.others | judged, allow_nan=False).encode() + b"\n"


def _refused(problem: BadPair, num_pairs: int, options: argparse.Namespace) -> ValueError:
    """What is wrong with the line, and what became of the verdicts before it."""
    source = f"{options.input}, " if options.input else ""
    done = f"Verdicts before it: {num_pairs:,}, all of them written"
    if options.output:
        done = f"{options.output} was not written: it would lack this verdict and those after it"
    return ValueError(f"{source}{problem}\n{done}. Mend or remove the line and run the command again")


@contextmanager
def _opened(path: Path | None) -> Iterator[int]:
    """The descriptor to read from."""
    if path is None:
        if sys.stdin is None:
            raise ValueError("expected JSON lines on standard input, which is closed; name a file with --input FILE")
        if sys.stdin.isatty():
            print('tempo: reading {"completion": ..., "answer": ...} lines; Ctrl-D ends them', file=sys.stderr)
        yield sys.stdin.fileno()
        return
    if not path.exists() or path.is_dir():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise ValueError(f"--input {path}: expected a file of JSON lines, but it {what}")
    with path.open("rb", buffering=0) as file:
        yield file.fileno()


@contextmanager
def _target(path: Path | None) -> Iterator[BinaryIO]:
    """Where verdicts go: standard output, or a file that has all of them or stays as it was."""
    if path is None:
        yield sys.stdout.buffer
        return
    path = path.resolve()  # of a link, what it points to is replaced
    if path.is_dir() or not path.parent.is_dir():
        what = "is a folder" if path.is_dir() else "would stand in a folder that does not exist"
        raise ValueError(f"--output {path}: expected a file that can be written, but it {what}")
    if path.exists() and not path.is_file():  # a device or a pipe has nothing to replace
        with path.open("wb", buffering=0) as device:
            yield device
        return
    try:
        descriptor, written = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise OSError(f"--output {path}: its folder cannot be written to ({error.strerror}); name another") from None
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            os.fsync(descriptor)
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(written, 0o666 & ~mask)
        os.rename(written, path)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(written)


class Progress:
    """Counts on standard error: a live line in a terminal, plain lines elsewhere, the summary at the end."""

    def __init__(self, verifier: Verifier, *, to_terminal: bool) -> None:
        self._verifier = verifier
        self._console = Console(stderr=True, highlight=False)
        # A live line would be torn by verdicts that are printed to the same terminal.
        self._live = self._console.status("0 pairs") if sys.stderr.isatty() and not to_terminal else None
        self._statuses: Counter[Status] = Counter()
        self._started = self._said = time.monotonic()

    @property
    def num_pairs(self) -> int:
        return self._statuses.total()

    def add(self, status: Status) -> None:
        self._statuses[status] += 1
        now = time.monotonic()
        if now - self._said > (0.1 if self._live else SAY_EVERY_SECONDS):
            self._said = now
            if self._live:
                self._live.update(self._figures())
            else:
                self.say(self._figures())

    def _figures(self) -> str:
        share = self._statuses[Status.CORRECT] / max(self.num_pairs, 1)
        return f"{self.num_pairs:,} pairs  {self._rate()}  correct {share:.1%}"

    def _rate(self) -> str:
        return f"{self.num_pairs / max(time.monotonic() - self._started, 1e-9):,.0f} pairs/s"

    def say(self, line: str) -> None:
        """One plain line; data are never read as markup."""
        self._console.print(line, markup=False, soft_wrap=True)

    def print_summary(self, output: Path | None) -> None:
        seconds = time.monotonic() - self._started
        name = f"{self._verifier.name}@{self._verifier.version}"
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform != "darwin" else 1024**2)
        self.say(
            f"{self.num_pairs:,} pairs judged by {name} in {seconds:.1f} s: {self._rate()}, peak memory {peak:,.0f} MB"
        )
        for status in Status:
            if number := self._statuses[status]:
                self.say(f"  {status:<13} {number:>9,}  {number / self.num_pairs:6.1%}")
        self.say("Try next:")
        for line in self._next(name, output):
            self.say(f"  {line}")

    def _next(self, name: str, output: Path | None) -> Iterator[str]:
        others = [status for status in Status if self._statuses[status] and status != Status.CORRECT]
        if output and others:
            rarest = min(others, key=lambda status: self._statuses[status])
            yield f'grep \'"status": "{rarest}"\' {shlex.quote(str(output))} | head'
        if self._statuses[Status.TIMEOUT]:
            yield f"{command_name()} verify --verifier {name} --set verification.timeout_seconds=20 (more time a pair)"
        yield f"{command_name()} recredit RUN --verifier {name}   (a stored run's completions, judged by it)"

    def __enter__(self) -> "Progress":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._live:
            self._live.stop()
