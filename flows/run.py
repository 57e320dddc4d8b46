"""Opening a run: everything that can be refused is refused here, before any work; then the lock, the log, the end."""

import functools
import platform
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from flows.takes import Rerun, takes_as_json, takes_of_rerun, takes_of_training
from storage.artifact import Store
from storage.commit_log import read_events
from storage.fingerprint import fingerprint
from storage.lock import root_lock, run_lock
from tasks.config import Experiment
from tasks.core.verifiers import get_verifier
from tasks.datasets import DatasetSource, dataset_source, get_dataset
from tasks.experiment import ConfigError, attempt_of
from tasks.judges import Judges
from tasks.policy import PolicySource, check_layout, policy_source
from tasks.prefect_task import Display
from tasks.samplers import Samplers, check_sampler
from tasks.stage import Listener, Run, log_event

PACKAGES = ("torch", "transformers", "prefect", "pyarrow", "duckdb", "datasets", "numpy")


@dataclass(frozen=True)
class Sources:
    """Where a run's first policy, prompts and benchmarks come from: found and identified."""

    policy: PolicySource | None
    prompts: DatasetSource
    verifier: str
    benchmarks: dict[str, DatasetSource]


def _check_device(device: str) -> None:
    if device in ("auto", "cpu"):
        return
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"device: torch {torch.__version__} cannot use {device!r} here ({str(error).splitlines()[0]}); expected "
            "auto, cpu, or a device of this machine such as cuda:0"
        ) from None


@functools.cache
def find_sources(experiment: Experiment, *, has_policy: bool = False) -> Sources:
    """Find all that the experiment names, once per process. Raises ValueError, with the key, before anything ran.

    With `has_policy` the policy is stored already, and where it first came from is not asked.
    """
    trains = not has_policy and experiment.steps > 0
    if trains and experiment.sampler.top_p < 1 and experiment.train.importance_sampling == "none":
        raise ConfigError(
            f"sampler.top_p: expected 1 for training with train.importance_sampling = 'none', got "
            f"{experiment.sampler.top_p}: the sampler's log-probabilities would be those of a renormalised nucleus and "
            "the trainer's not, so that importance ratios start below 1. Set train.importance_sampling=token: ratios "
            "then compare the trainer with itself, and weights p_trainer / p_sampler undo the renormalisation. The "
            "paper uses top_p = 1; scoring (tempo evaluate) takes any"
        )
    _check_device(experiment.device)
    dataset = get_dataset(experiment.dataset, "dataset")
    verifier = get_verifier(experiment.verifier or dataset.verifier).name  # the key may say name@version
    for benchmark in experiment.benchmarks:
        get_verifier(get_dataset(benchmark, "benchmarks").verifier)
    check_sampler(experiment.sampler)
    source = None if has_policy else policy_source(experiment)
    if source is not None and experiment.steps:
        check_layout(source, experiment.train.layout)
    if experiment.train.lora_rank and find_spec("peft") is None:
        raise ConfigError(
            "train.lora_rank: adapters need the package peft, which is not installed: install the extra, pip install "
            "-c constraints.txt -e '.[lora]', or train all weights with train.lora_rank=0"
        )
    return Sources(
        policy=source,
        prompts=dataset_source(experiment, experiment.dataset, is_benchmark=False),
        verifier=verifier,
        benchmarks={name: dataset_source(experiment, name, is_benchmark=True) for name in experiment.benchmarks},
    )


def check_writable(data_root: Path) -> None:
    """Make the data root's folders. Raises OSError with a remedy when that is not allowed."""
    if set("*?") & set(str(data_root.absolute())):
        raise ConfigError(
            f"the data root {data_root.absolute()} has * or ? in its path, which SQL would read as patterns; name "
            "another"
        )
    try:
        Store(data_root).open_for_writing()
    except OSError as error:
        raise OSError(
            f"the data root {data_root.absolute()} cannot be written to ({error.strerror}): expected a folder of "
            "yours, or a place where one can be made; name another with --data-root FOLDER or TEMPO_DATA_ROOT"
        ) from None


@contextmanager
def open_run(
    experiment: Experiment,
    data_root: Path,
    listener: Listener,
    *,
    uses_prefect: bool,
    attempt: str | None = None,
    rerun: Rerun | None = None,
) -> Iterator[Run]:
    """Hold the run and log how it ends: completed, failed, interrupted (or nothing more: killed).

    `attempt` names a stored attempt that is only added to; `rerun` asks for a stage to be computed again.

    Raises RunLocked when another process works on it, and OSError with a remedy when the data root is not writable.
    """
    check_writable(data_root)
    display = Display() if uses_prefect else None
    flush = display.flush if display else lambda: None
    run = Run(
        name=experiment.run,
        attempt=attempt or "",
        store=Store(data_root),
        listener=listener,
        perform=display.perform if display else None,
        device=experiment.device,
        threads=experiment.threads,
        limits=asdict(experiment.contracts),
        samplers=_samplers(experiment, data_root, listener),
        judges=Judges(note=listener.note),
    )
    lock = data_root / "locks" / f"{experiment.run}.lock"
    with ExitStack() as stack:
        stack.enter_context(root_lock(data_root, exclusive=False))
        stack.callback(run.samplers.close)
        stack.callback(run.judges.close)
        if attempt:  # rows added to a stored attempt: they append, and do not need its lock
            log_event(run.log, {"event": "session", "run": run.name, "attempt": attempt, "code": code_version()})
            yield run
            flush()
            return
        stack.enter_context(run_lock(lock, experiment.run))
        flow_run = _flow_run() if uses_prefect else None
        run = at_attempt(run, experiment, rerun, flow_run)
        _tell_other_attempt(run)
        with _logged(run, experiment, flow_run):
            yield run
            flush()


def _samplers(experiment: Experiment, data_root: Path, listener: Listener) -> Samplers:
    return Samplers(
        folder=data_root / "logs" / experiment.run,
        max_prompt_tokens=experiment.prompts.max_tokens,
        threads=experiment.threads,
        note=listener.note,
    )


@contextmanager
def _logged(run: Run, experiment: Experiment, flow_run: str | None) -> Iterator[None]:
    """Log that the run was started, with what, and how the block ended."""
    facts = {"experiment": asdict(experiment), "base": attempt_of(experiment), "takes": takes_as_json(run.takes)}
    _log(run, "started", code=code_version(), flow_run=flow_run, **facts)
    try:
        yield
    except Exception as error:
        _log(run, "failed", error=f"{type(error).__name__}: {error}")
        raise
    except BaseException:  # KeyboardInterrupt, or Prefect's own signal when it is told to terminate
        _log(run, "interrupted")
        raise
    _log(run, "completed")


def at_attempt(run: Run, experiment: Experiment, rerun: Rerun | None, flow_run: str | None = None) -> Run:
    """The run with the attempt and the takes that the experiment, the log and a request for a rerun lead to."""
    events = [event for event in read_events(run.log, "run") if event["run"] == run.name]
    forgotten = max((i for i, event in enumerate(events) if event["state"] == "forgotten"), default=-1)
    events = events[forgotten + 1 :]
    started = [event for event in events if event["state"] == "started"]
    base = attempt_of(experiment)
    if rerun is None:
        takes = takes_of_training(started, base)
    else:
        has_ended = bool(events) and events[-1]["state"] == "completed"
        takes = takes_of_rerun(started, rerun, ended=has_ended, flow_run=flow_run)
    attempt = fingerprint({"base": base, "takes": takes_as_json(takes)})[:8] if takes else base
    return replace(run, attempt=attempt, takes=takes)


def _flow_run() -> str | None:
    """Id of the Prefect flow run that this code runs in."""
    from prefect.runtime import flow_run

    return flow_run.id


def _tell_other_attempt(run: Run) -> None:
    """Say so when the run's name was last used with other settings: SQL shows the rows of one attempt at a time."""
    attempts = [
        event["attempt"] for event in read_events(run.log) if event.get("run") == run.name and "attempt" in event
    ]
    if attempts and attempts[-1] != run.attempt:
        what = f"The rerun {run.takes[-1].name} of the run {run.name!r} is" if run.takes else ""
        what = what or f"The settings of the run {run.name!r} are"
        run.listener.note(
            f"{what} {'used again' if run.attempt in attempts else 'new'}: SQL now shows this attempt ({run.attempt}); "
            f"the rows of attempt {attempts[-1]} stay stored and are shown again with its settings. To see both: "
            "--set run=NAME"
        )


def _log(run: Run, state: str, **extra: Any) -> None:
    event = {"event": "run", "run": run.name, "attempt": run.attempt, "state": state} | extra
    try:
        log_event(run.log, event)
    except OSError:
        if state in ("started", "completed"):
            raise  # otherwise the failure that ended the run is the one to tell


def code_version() -> dict[str, Any]:
    """Git commit and whether the tree differs from it, Python, machine and package versions."""
    root = Path(__file__).resolve().parent.parent

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    packages = {}
    for package in PACKAGES:
        try:
            packages[package] = version(package)
        except PackageNotFoundError:
            packages[package] = "absent"
    commit = git("rev-parse", "HEAD")
    return {
        "commit": commit,
        "is_dirty": bool(git("status", "--porcelain")) if commit else None,
        "python": platform.python_version(),
        "machine": platform.platform(),
        "packages": packages,
    }
