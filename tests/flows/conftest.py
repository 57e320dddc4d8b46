"""A reduced quickstart in which credit has signal, run once; tests work on copies of its data root."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flows.loop import train_experiment
from tasks.experiment import load_experiment

LEARNING = [
    "steps=4",
    "prompts_per_step=6",
    "group_size=4",
    "train.updates_per_step=2",
    "evaluate_every=2",
    "arithmetic.num_train=48",
    "arithmetic.num_test=8",
    "arithmetic.min_terms=2",
    "arithmetic.max_terms=2",
    "warm_start.updates=40",
    "warm_start.batch_size=16",
    "warm_start.learning_rate=6e-3",
    "evaluation.num_samples=2",
]
"""Two-term chains after 40 updates: some completions are right and some wrong, so that policies move."""


@pytest.fixture(autouse=True, scope="module")
def _torch_as_it_was() -> Iterator[None]:
    """Stages set torch's threads and flush denormal numbers, for the whole process: put back for other tests."""
    import torch

    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.set_flush_denormal(False)


@pytest.fixture(scope="session")
def learning() -> list[str]:
    return list(LEARNING)


@pytest.fixture(scope="session")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data root of a finished run."""
    data = tmp_path_factory.mktemp("stored") / "data"
    train_experiment(load_experiment("quickstart", LEARNING), data, uses_prefect=False)
    return data


@pytest.fixture
def data(stored: Path, tmp_path: Path) -> Path:
    """A copy of it, to be changed."""
    return Path(shutil.copytree(stored, tmp_path / "data", symlinks=True))


@pytest.fixture
def tempo(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """The command in this process: (exit code, standard output, standard error)."""
    from flows.cli import main

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return call
