"""A run that trains on what it sampled from nuclei: top_p below 1, made up for by importance weights."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from flows.loop import train_experiment
from flows.run import find_sources
from storage.catalog import open_catalog
from tasks.experiment import ConfigError, load_experiment

NUCLEUS = ["steps=2", "sampler.top_p=0.8", "train.importance_sampling=token"]


def query(data: Path, statement: str) -> list[tuple[Any, ...]]:
    return open_catalog(data).execute(statement).fetchall()


@pytest.fixture(scope="module")
def nucleus(stored: Path, learning: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished run of conftest.py, trained again on samples of the nucleus of 0.8."""
    data = Path(shutil.copytree(stored, tmp_path_factory.mktemp("nucleus") / "data", symlinks=True))
    train_experiment(load_experiment("quickstart", [*learning, *NUCLEUS]), data, uses_prefect=False)
    return data


def test_every_token_s_sampler_logprob_is_the_trainer_s_without_the_log_of_the_kept_mass(nucleus: Path):
    tokens = (
        "WITH tokens AS (SELECT unnest(trainer_logprobs) AS trainer, unnest(kept_mass) AS mass, "
        "unnest(sampler_logprobs) AS sampler FROM signals JOIN rollouts USING (run, step, purpose, rollout_id)) "
        "SELECT min(mass), max(mass), count(*) FILTER (mass < 0.99), max(abs(trainer - ln(mass) - sampler)) FROM tokens"
    )
    ((smallest, largest, num_cut, difference),) = query(nucleus, tokens)
    assert 0.8 - 1e-6 <= smallest < largest <= 1 + 1e-6
    assert num_cut > 100  # of many tokens something was cut off
    assert difference < 1e-4


def test_updates_tell_the_engines_apart_from_the_nucleus(nucleus: Path):
    rows = query(
        nucleus,
        "SELECT kept_mass, mismatch_min, mismatch_max, mismatch_kl, importance_weight, importance_capped FROM updates "
        "WHERE phase = 'training' ORDER BY step, \"update\"",
    )
    assert len(rows) == 4  # 2 steps x 2 updates
    for kept_mass, smallest, largest, kl, weight, capped in rows:
        assert 0.8 <= kept_mass < 0.999
        assert max(abs(smallest), abs(largest)) < 1e-4  # one engine: transformers samples and trains
        assert kl < 1e-8
        assert weight == pytest.approx(kept_mass, abs=1e-4)  # p_trainer / p_sampler is the kept mass
        assert capped == 0
    ratios = "SELECT min(ratio_min), max(ratio_max) FROM updates WHERE phase = 'training' AND \"update\" = 0"
    assert query(nucleus, ratios) == [(pytest.approx(1, abs=1e-3), pytest.approx(1, abs=1e-3))]


def test_top_p_is_asked_of_the_signals_only_where_it_is_not_1(nucleus: Path, stored: Path):
    asked = "SELECT DISTINCT key_parts->'$.config'->>'top_p' FROM stage_runs WHERE stage = 'signals'"
    assert query(nucleus, asked) == [("0.8",)]
    assert query(stored, "SELECT count(kept_mass) FROM updates") == [(0,)]  # top_p = 1: everything is kept
    ((smallest, largest),) = query(
        stored,
        "SELECT min(mismatch_min), max(mismatch_max) FROM updates WHERE phase = 'training' AND \"update\" = 0",
    )
    assert -1e-4 < smallest < largest < 1e-4


def test_a_nucleus_is_trained_on_with_importance_sampling_alone_and_scored_without():
    def sources(*overrides: str, **how: bool) -> object:
        return find_sources(load_experiment("quickstart", ["sampler.top_p=0.9", *overrides]), **how)

    with pytest.raises(
        ConfigError, match=r"expected 1 .* got 0\.9: .* Set train\.importance_sampling=token: "
    ) as error:
        sources()
    assert "tempo evaluate" in str(error.value)
    for free in (["train.importance_sampling=token"], ["train.importance_sampling=sequence"], ["steps=0"]):
        assert sources(*free)
    assert sources(has_policy=True)  # a stored policy is scored
