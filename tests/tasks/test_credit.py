"""The credit stage: the same tables however the rollouts are cut, every estimator within its contracts, bad input."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from flows.closing import branch_lines
from storage import groups
from storage.artifact import Artifact, Part, Store
from storage.catalog import open_catalog
from storage.commit_log import append_event
from storage.schema import FLAGS
from tasks.completions import loss_mask
from tasks.config import CreditConfig
from tasks.core.advantage import ESTIMATORS, HAS_TD, SIGNALS, AdvantageConfig, compute_advantages
from tasks.credit import credit
from tasks.place import Run
from tasks.training import token_advantages

NUM_GROUPS, GROUP_SIZE = 40, 5


class Stored:
    """Rollouts, verdicts and signals written by hand, and the credit stage over them."""

    def __init__(self, root: Path, num_groups: int = NUM_GROUPS, **changes: Any) -> None:
        self.store = Store(root)
        self.store.open_for_writing()
        self.place = Run(name="demo", attempt="a", store=self.store, threads=1, device="cpu").at(1)
        rng = np.random.default_rng(5)
        num = num_groups * GROUP_SIZE
        self.group_id = [f"g{i // GROUP_SIZE:03d}" for i in range(num)]
        self.rollout_id = [f"{group}-{i % GROUP_SIZE}" for i, group in enumerate(self.group_id)]
        self.tokens: list[list[int]] = []
        for i in range(num):
            donor = self.tokens[-1] if i % GROUP_SIZE else []
            kept = donor[: rng.integers(0, len(donor) + 1)]
            self.tokens.append([*kept, *rng.integers(0, 9, rng.integers(1, 8)).tolist()])
        self.rewards: list[float | None] = rng.integers(0, 2, num).astype(float).tolist()
        self.masks: list[list[bool] | None] = [None] * num
        self.signals = {name: [rng.random(len(t)).tolist() for t in self.tokens] for name in ("entropies", "values")}
        self.__dict__.update(changes)
        self.artifacts = {name: self._commit(name, make()) for name, make in self._tables().items()}

    def _tables(self) -> dict[str, Callable[[], dict[str, Any]]]:
        num = len(self.rollout_id)
        ids = {"rollout_id": self.rollout_id, "group_id": self.group_id}
        text = ("prompt_id", "text", "finish_reason", "policy", "sampler", "decoding")
        numbers = ("seed", "temperature", "top_p", "max_tokens", "epoch")
        told = ("trainer_logprobs", "entropies", "kept_mass", "reference_logprobs", "values")
        return {
            "rollouts": lambda: (
                ids
                | {"token_ids": self.tokens, "sampler_logprobs": [[-1.0] * len(t) for t in self.tokens]}
                | {"loss_mask": self.masks}
                | {name: ["x"] * num for name in text}
                | {name: [1] * num for name in numbers}
            ),
            "verdicts": lambda: (
                ids
                | {"verifier": ["v"] * num, "verifier_version": [1] * num, "status": ["correct"] * num}
                | {
                    "reward": self.rewards,
                    "extracted_answer": [None] * num,
                    "failure": [None] * num,
                    "num_attempts": [1] * num,
                    "seconds": [0.0] * num,
                }
            ),
            "signals": lambda: ids | {name: self.signals.get(name, [None] * num) for name in told},
        }

    def _commit(self, name: str, columns: dict[str, Any]) -> Artifact:
        with self.store.staging(f"{name}k") as staging:
            staging.add_table(name, columns)
            return self.store.commit(staging, name, f"{name}k", {"key": name})

    def part(self, name: str) -> Part:
        return self.artifacts[name].part(name)

    def credit(self, estimator: str, **settings: Any) -> Artifact:
        signals = {"signals": self.part("signals")} if estimator in SIGNALS else {}
        inputs = {"rollouts": self.part("rollouts"), "verdicts": self.part("verdicts"), **signals}
        return credit(self.place, **inputs, estimator=estimator, config=CreditConfig(**settings))

    def sql(self, statement: str) -> list[tuple[Any, ...]]:
        """What the catalogue answers with the rollouts logged as well."""
        files = {"rollouts": str(self.part("rollouts").path.relative_to(self.store.root))}
        event = {"event": "stage", "run": "demo", "attempt": "a", "step": 1, "purpose": "train", "stage": "generation"}
        event |= {"label": "", "key": "rolloutsk", "outcome": "ran", "files": files, "schema_version": 3}
        append_event(self.place.run.log, event)
        return open_catalog(self.store.root).execute(statement).fetchall()


@pytest.fixture(scope="module")
def stored(tmp_path_factory) -> Stored:
    return Stored(tmp_path_factory.mktemp("credit") / "data")


def flat(lists: list[list[Any]], dtype: Any) -> np.ndarray:
    return np.array([value for values in lists for value in values], dtype=dtype)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_stage_stores_what_the_core_computes_and_no_contract_is_broken(stored: Stored, estimator: str):
    artifact = stored.credit(estimator)
    rows = artifact.part("advantages").read().to_pylist()
    offsets = np.cumsum([0] + [len(t) for t in stored.tokens])
    expected = compute_advantages(
        estimator,
        flat(stored.tokens, np.int32),
        offsets,
        np.arange(0, len(stored.tokens) + 1, GROUP_SIZE),
        np.array(stored.rewards),
        entropies_N=flat(stored.signals["entropies"], np.float32),
        values_N=flat(stored.signals["values"], np.float32),
    )
    found = token_advantages(artifact.part("advantages").read(), offsets)  # as the training stage reads them
    np.testing.assert_allclose(found, expected.advantages, rtol=1e-5, atol=1e-6)
    if expected.returns_N is not None:
        assert [value for row in rows for value in row["token_returns"]] == expected.returns_N.tolist()
    assert {row["token_returns"] is None for row in rows} == {estimator != "ppo"}
    assert {row["token_advantages"] is None for row in rows} == {expected.dense_N is None}
    assert any(row["td_values"] for row in rows) == (estimator in HAS_TD)
    assert len(rows) == len(stored.tokens)


@pytest.mark.parametrize("estimator", ["tempo", "reinforce_pp", "hepo", "ppo"])
def test_the_tables_do_not_depend_on_how_the_rollouts_are_cut(tmp_path: Path, estimator: str, monkeypatch):
    found = []
    for number, rows_per_chunk in enumerate((10**6, 7, 64)):
        monkeypatch.setattr(groups, "ROWS_PER_CHUNK", rows_per_chunk)
        monkeypatch.setattr("storage.parquet.ROW_GROUP_ROWS", 16)  # groups of 5 straddle row groups
        stored = Stored(tmp_path / str(number))
        found.append(stored.credit(estimator))
    nodes = {artifact.part("prefix_nodes").digest for artifact in found}
    assert len(nodes) == 1
    tables = [artifact.part("advantages").read() for artifact in found]
    if estimator == "tempo":
        assert len({artifact.part("advantages").digest for artifact in found}) == 1
    for table in tables[1:]:  # moments of chunks are merged in another order of additions
        for name in ("base_advantage", "token_advantages", "token_returns"):
            left, right = (pa.array(t.column(name).combine_chunks()) for t in (tables[0], table))
            assert left.is_null().equals(right.is_null())
            left, right = (a.flatten() if pa.types.is_list(a.type) else a for a in (left, right))
            np.testing.assert_allclose(left.to_numpy(False), right.to_numpy(False), rtol=1e-6, atol=1e-7)
    assert len({str(artifact.summary) for artifact in found}) == 1


def test_the_summary_says_what_the_view_says(tmp_path: Path):
    masks: list[list[bool] | None] = [None] * (NUM_GROUPS * GROUP_SIZE)
    stored = Stored(tmp_path / "data")
    masks[::3] = [[i % 2 == 0 for i in range(len(t))] for t in stored.tokens[::3]]
    stored = Stored(tmp_path / "masked", masks=masks)
    summary = stored.credit("tempo").summary
    row = stored.sql(
        "SELECT num_groups, num_groups_without_signal, branch_tokens, divergence, td_share FROM branch_statistics"
    )[0]
    names = ("groups", "groups_without_signal", "branch_tokens", "divergence", "td_share")
    assert [summary[name] for name in names] == pytest.approx(list(row), abs=5e-3)
    assert 0 < summary["td_share"] < 1
    assert summary["branch_tokens"] > 1
    # and the view per token: masked ones have no advantage, the others are as often there as num_trained_tokens says
    masked = [not kept for mask in masks if mask for kept in mask]
    ((not_trained, moved, trained),) = stored.sql(
        "SELECT count(*) FILTER (NOT is_trained), sum(abs(advantage)) FILTER (NOT is_trained), "
        "count(*) FILTER (is_trained) FROM token_credit"
    )
    assert (not_trained, moved) == (sum(masked), 0)
    assert trained == stored.sql("SELECT sum(num_trained_tokens) FROM advantages")[0][0]


@pytest.mark.parametrize("estimator", ["tempo", "tempo_loo", "grpo", "ppo"])
def test_the_closing_line_names_credit_of_a_tokens_own_where_an_estimator_gives_any(tmp_path: Path, estimator: str):
    stored = Stored(tmp_path / "data", num_groups=4)
    stored.credit(estimator)
    stored.sql("SELECT 1")  # the rollouts are logged as well
    (line,) = branch_lines(open_catalog(stored.store.root), "demo", 1)
    assert ("of them with credit of their own" in line) == (estimator in HAS_TD)
    assert " branch tokens per completion" in line
    assert line.endswith("of 4 groups gave no signal")


def test_td_of_tempo_loo_and_cut_td_break_no_contract(stored: Stored):
    assert stored.credit("tempo_loo").summary["td_share"] > 0
    assert stored.credit("tempo", td_clip=0.1).summary["td_share"] < stored.credit("tempo").summary["td_share"]
    assert (
        stored.credit("tempo", min_support=3).summary["branch_tokens"]
        == stored.credit("tempo").summary["branch_tokens"]
    )


def test_completions_without_a_reward_are_left_out_and_groups_without_any_vanish(tmp_path: Path):
    rewards: list[float | None] = [1.0, None, 0.0, 1.0, 0.0] + [None] * 5 + [1.0] * 5
    stored = Stored(tmp_path / "data", num_groups=3, rewards=rewards)
    for estimator in ESTIMATORS:
        artifact = stored.credit(estimator)
        assert artifact.part("advantages").read(["rollout_id"]).num_rows == 9
        assert (artifact.summary["unassigned"], artifact.summary["groups"]) == (6, 2)
        assert artifact.summary["mean_reward"] == round(7 / 9, 4)
    none = Stored(tmp_path / "none", num_groups=1, rewards=[None] * 5).credit("tempo")
    assert (none.summary["groups"], none.summary["mean_reward"], none.summary["divergence"]) == (0, None, None)


def test_statistics_of_the_step_do_not_see_masked_tokens(tmp_path: Path):
    stored = Stored(tmp_path / "data")
    masks = [[i > 0 for i in range(len(t))] for t in stored.tokens]
    stored = Stored(tmp_path / "masked", masks=masks)
    rows = stored.credit("hepo", hepo_fraction=0.3).part("advantages").read().to_pylist()
    num_trained = sum(len(t) - 1 for t in stored.tokens)
    entropies = sorted((e for values in stored.signals["entropies"] for e in values[1:]), reverse=True)
    threshold = entropies[-(-num_trained * 3 // 10) - 1]
    for row, values, tokens in zip(rows, stored.signals["entropies"], stored.tokens, strict=True):
        expected = [row["base_advantage"] if i and e >= threshold else 0 for i, e in enumerate(values)]
        np.testing.assert_allclose(row["token_advantages"], expected, rtol=1e-6)
        assert row["num_trained_tokens"] == len(tokens) - 1


# --- bad input: refused by name, and nothing is stored


def refused(root: Path, match: str, estimator: str = "tempo", **changes: Any) -> None:
    stored = Stored(root, num_groups=3, **changes)
    with pytest.raises(ValueError, match=match):
        stored.credit(estimator)
    assert not (root / "artifacts" / "credit").exists()
    assert list(stored.store.staging_root.iterdir()) == []


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_reward_that_is_not_finite(tmp_path: Path, bad: float):
    refused(
        tmp_path, "finite numbers in the column reward, got .* rollout 'g001-1'", rewards=[1.0] * 6 + [bad] + [0.0] * 8
    )


def test_groups_that_are_not_sorted(tmp_path: Path):
    names = [f"g{i % 3:03d}" for i in range(15)]
    refused(
        tmp_path,
        "group 'g000' at row 0 and again at row 3",
        group_id=names,
        rollout_id=[f"r{i:03d}" for i in range(15)],
    )


def test_verdicts_of_other_rollouts(tmp_path: Path):
    mine, others = Stored(tmp_path / "mine", num_groups=3), Stored(tmp_path / "others", num_groups=2)
    mine.artifacts["verdicts"] = others.artifacts["verdicts"]
    with pytest.raises(ValueError, match=r"verdicts: .* got none where the rollouts have 'g002-0' of group 'g002'"):
        mine.credit("tempo")


def test_signals_that_are_missing_or_do_not_fit(tmp_path: Path):
    good = Stored(tmp_path / "good", num_groups=3)
    inputs = {"rollouts": good.part("rollouts"), "verdicts": good.part("verdicts")}
    with pytest.raises(ValueError, match="entropies_N: expected one number per completion token"):
        credit(good.place, **inputs, estimator="hepo", config=CreditConfig())
    refused(tmp_path / "a", "signals.values: expected . values, one per token, got none", "ppo", signals={})
    short = {"values": [[0.0] * (len(t) - (i == 7)) for i, t in enumerate(good.tokens)]}
    refused(tmp_path / "b", "one per token, got . for the rollout 'g001-2'; they would", "ppo", signals=short)
    broken = {"values": [[float("nan")] * len(t) for t in good.tokens]}
    refused(tmp_path / "c", "values_N: expected finite numbers, got nan", "ppo", signals=broken)


@pytest.mark.parametrize(("estimator", "whiten"), [("hepo", True), ("ppo", True), ("ppo", False)])
def test_a_bad_signal_of_the_last_chunk_is_told_before_anything_is_credited(
    tmp_path: Path, estimator: str, whiten: bool, monkeypatch
):
    monkeypatch.setattr(groups, "ROWS_PER_CHUNK", 5)
    monkeypatch.setattr("storage.parquet.ROW_GROUP_ROWS", 5)
    good = Stored(tmp_path / "good", num_groups=3)
    signals = {name: [*lists[:-1], [float("nan")] * len(lists[-1])] for name, lists in good.signals.items()}
    stored, credited = Stored(tmp_path / "bad", num_groups=3, signals=signals), []

    def watched(*arguments: Any, **settings: Any) -> Any:
        credited.append(1)
        return compute_advantages(*arguments, **settings)

    monkeypatch.setattr("tasks.credit.compute_advantages", watched)
    with pytest.raises(ValueError, match="expected finite numbers, got nan"):
        stored.credit(estimator, whiten=whiten)
    assert not credited
    good.credit(estimator, whiten=whiten)
    assert len(credited) == 3  # chunks


def test_one_reading_of_masks_serves_credit_and_training():
    # NULL is a completion that is trained on as a whole; all NULL needs no mask
    rows = pa.table({"rollout_id": ["a", "b", "c"], "loss_mask": pa.array([[True, False], None, []], FLAGS)})
    found = loss_mask(rows, np.array([0, 2, 5, 5]))
    assert found is not None
    assert found.tolist() == [True, False, True, True, True]
    assert loss_mask(rows.slice(1, 1), np.array([0, 3])) is None
    with pytest.raises(ValueError, match=r"rollouts\.loss_mask: expected 3 values, one per token, got 2 .* 'a'"):
        loss_mask(rows, np.array([0, 3, 6, 6]))


def test_the_settings_are_those_of_the_core():
    assert AdvantageConfig() == AdvantageConfig(**vars(CreditConfig()))
