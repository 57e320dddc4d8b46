"""A run whose objective asks models: the KL to the first policy and importance weights, computed once a step."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from flows.loop import train_experiment
from storage.catalog import open_catalog
from tasks.experiment import load_experiment

ASKS = ["steps=2", "train.kl_coefficient=0.1", "train.importance_sampling=token"]


def query(data: Path, statement: str) -> list[tuple[Any, ...]]:
    return open_catalog(data).execute(statement).fetchall()


@pytest.fixture(scope="module")
def asked(stored: Path, learning: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished run of conftest.py, trained again with an objective that asks models."""
    data = Path(shutil.copytree(stored, tmp_path_factory.mktemp("asked") / "data", symlinks=True))
    train_experiment(load_experiment("quickstart", [*learning, *ASKS]), data, uses_prefect=False)
    return data


def test_what_the_objective_needs_is_computed_from_the_first_policy_and_the_one_that_trains(asked: Path):
    given = 'SELECT count(*), count(trainer_logprobs), count(reference_logprobs), count(entropies), count("values") '
    assert query(asked, given + "FROM signals") == [(48, 48, 48, 0, 0)]  # 2 steps x 6 prompts x 4 completions
    inputs = "SELECT step, list_sort(map_keys(inputs)) FROM stage_runs WHERE stage = 'signals' ORDER BY step"
    assert query(asked, inputs) == [(step, ["policy", "prompts", "reference", "rollouts"]) for step in (1, 2)]
    first = "SELECT DISTINCT split_part(inputs['reference'], '/', 1) FROM stage_runs WHERE stage = 'signals'"
    assert query(asked, first) == [("warm_start",)]  # the policy before the first step, at every step
    # at step 1 the policy is the reference, and the trainer all but the sampler: no KL, and weights of 1
    ((kl, weight),) = query(
        asked,
        "SELECT reference_kl, importance_weight FROM updates WHERE step = 1 AND \"update\" = 0 AND phase = 'training'",
    )
    assert kl == pytest.approx(0, abs=1e-6)
    assert weight == pytest.approx(1, abs=1e-3)
    assert query(asked, "SELECT min(reference_kl) > 1e-5 FROM updates WHERE step = 2") == [(True,)]


def test_credit_that_needs_no_signal_does_not_depend_on_them(asked: Path):
    outcomes = "SELECT outcome FROM stage_runs WHERE stage = 'credit' AND step = 1 AND run = 'quickstart' ORDER BY line"
    assert query(asked, outcomes) == [("ran",), ("cached",)]
