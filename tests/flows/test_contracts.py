"""Contracts: each is broken by one changed row of a real run; nothing is committed, and the evidence is kept."""

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows.recrediting import recredit_run
from storage.artifact import Artifact, Part, Store
from storage.catalog import open_catalog
from storage.contracts import CONTRACTS, FOLDER, ContractBreach, check_contracts, contract
from storage.schema import TABLES

Row = dict[str, Any]
Rows = dict[str, list[Row]]
LIMITS = {
    "max_null_verdicts": 0.1,
    "max_mismatch": 0.2,
    "allow_benchmark_prompts": False,
    "num_samples": 4,
    "td_clip": 0.0,
    "min_support": 1,
}


@pytest.fixture(scope="module")
def copied(stored: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(stored, tmp_path_factory.mktemp("contracts") / "data"))


@pytest.fixture
def data(copied: Path) -> Path:
    """A copy of the finished run, whose quarantine is empty."""
    shutil.rmtree(copied / "quarantine", ignore_errors=True)
    return copied


class Step:
    """The artifacts of one place in a stored run."""

    def __init__(self, data: Path, stage: str) -> None:
        where = "step = (SELECT max(step) FROM stage_runs) AND purpose = 'train'"
        if stage == "signals":  # this run's training needs none, its credit with hepo does
            recredit_run("quickstart", "hepo", None, data, uses_prefect=False)
        others = dict.fromkeys(("separation", "prompts", "signals"), "true")
        where = (others | {"evaluation": "label = 'arithmetic sampled'"}).get(stage, where)
        answer = open_catalog(data).execute(
            f"SELECT key, inputs FROM stage_runs WHERE stage = '{stage}' AND {where} ORDER BY line LIMIT 1"
        )
        key, inputs = answer.fetchone()
        self.store, self.stage = Store(data), stage
        self.artifact = Artifact(stage, key, self.store.path_of(stage, key))
        self.inputs = {name: self._part(stage, name, where) for stage, name, where in self._sources(inputs)}

    @staticmethod
    def _sources(inputs: dict[str, str]) -> list[tuple[str, str, str]]:
        return [(source.split("/")[0], name, source.split("/")[1]) for name, source in inputs.items()]

    def _part(self, stage: str, name: str, key: str) -> Part:
        artifact = Artifact(stage, key, self.store.path_of(stage, key))
        part = {"policy": "checkpoint", "optimizer": "optimizer", "benchmark": "prompts"}.get(name, name)
        return artifact.part(part)

    def rows(self) -> Rows:
        return {name: self.artifact.part(name).read().to_pylist() for name in self.artifact.tables}

    def check(self, rows: Rows, **limits: Any) -> None:
        with self.store.staging(self.artifact.key) as staging:
            for name, table in rows.items():
                columns = [column.name for column in TABLES[name].columns]
                staging.add_table(name, {column: [row[column] for row in table] for column in columns})
            check_contracts(self.stage, staging, self.inputs, LIMITS | limits)


@pytest.mark.parametrize("stage", sorted(set(CONTRACTS) - {"warm_start"}))
def test_what_a_real_run_made_holds_every_contract(data, stage):
    step = Step(data, stage)
    step.check(step.rows())


def first(rows: list[Row], holds: Callable[[Row], bool] = lambda row: True) -> Row:
    return next(row for row in rows if holds(row))


def drop_a_logprob(rows: Rows) -> None:
    first(rows["rollouts"])["sampler_logprobs"].pop()


def a_logprob(value: float) -> Callable[[Rows], None]:
    def change(rows: Rows) -> None:
        first(rows["rollouts"])["sampler_logprobs"][0] = value

    return change


def a_signal(name: str, value: float) -> Callable[[Rows], None]:
    def change(rows: Rows) -> None:
        row = first(rows["signals"])
        row[name] = [value] * len(row["entropies"])

    return change


def lose(table: str) -> Callable[[Rows], None]:
    def change(rows: Rows) -> None:
        rows[table].pop()

    return change


def put(table: str, holds: Callable[[Row], bool] = lambda row: True, **values: Any) -> Callable[[Rows], None]:
    def change(rows: Rows) -> None:
        first(rows[table], holds).update(values)

    return change


def add_a_part(rows: Rows) -> None:
    score = first(rows["scores"])
    shared = {name: score[name] for name in ("benchmark", "policy", "decoding", "mean", "stderr", "truncation_rate")}
    rows["score_parts"].append(shared | {"kind": "level", "part": "1", "n": score["n"] - 1})


def fail_a_quarter(rows: Rows) -> None:
    for row in rows["verdicts"][::4]:
        row |= {"status": "crashed", "reward": None, "failure": "on purpose"}


def repeat_a_dropped_prompt(rows: Rows) -> None:
    row = first(rows["prompts"])
    shared = {name: row[name] for name in ("prompt_id", "dataset", "split", "row_index")}
    rows["dropped_prompts"].append(shared | {"reason": "empty", "num_tokens": 0})


def share_a_prompt(rows: Rows) -> None:
    shared = {"benchmark_prompt_id": "arithmetic/test/000001", "prompt_id": "arithmetic/train/000003"}
    rows["shared_prompts"].append(shared | {"prompt_text": "1+2=", "kind": "exact", "num_shared_ngrams": 0})


def share_13_words(rows: Rows) -> None:
    share_a_prompt(rows)
    rows["shared_prompts"][-1] |= {"kind": "13-gram", "num_shared_ngrams": 5}


BROKEN = [
    ("prompts", "prompt_has_tokens", put("prompts", prompt_token_ids=[])),
    ("prompts", "prompt_is_unique", repeat_a_dropped_prompt),
    ("separation", "no_benchmark_prompt_in_training", share_a_prompt),
    ("generation", "completion_has_logprobs", drop_a_logprob),
    ("generation", "logprobs_are_log_probabilities", a_logprob(0.5)),
    ("generation", "logprobs_are_log_probabilities", a_logprob(float("nan"))),
    ("generation", "logprobs_are_log_probabilities", a_logprob(float("-inf"))),
    ("generation", "group_is_complete", lose("rollouts")),
    ("verification", "rollout_has_one_verdict", lose("verdicts")),
    ("verification", "reward_fits_status", put("verdicts", status="timeout", reward=None)),
    ("verification", "reward_fits_status", put("verdicts", failure="but it has a verdict")),
    ("verification", "reward_fits_status", put("verdicts", lambda row: row["status"] == "wrong", reward=None)),
    ("verification", "reward_fits_status", put("verdicts", lambda row: row["status"] == "wrong", reward=0.5)),
    ("verification", "few_null_verdicts", fail_a_quarter),
    ("signals", "signals_fit_tokens", lambda rows: first(rows["signals"])["entropies"].pop()),
    ("signals", "signals_fit_tokens", put("signals", trainer_logprobs=[])),
    ("signals", "signals_fit_tokens", a_signal("values", float("nan"))),
    ("signals", "signals_fit_tokens", a_signal("reference_logprobs", 0.5)),
    ("signals", "signals_fit_tokens", a_signal("kept_mass", 0.0)),
    ("signals", "signals_fit_tokens", a_signal("kept_mass", 1.01)),
    ("signals", "signals_fit_tokens", put("signals", kept_mass=[0.9] * 99)),
    ("credit", "credit_covers_rewards", put("advantages", reward=7.0)),
    ("credit", "advantages_fit_tokens", put("advantages", lambda r: r["td_positions"], td_positions=[999])),
    ("credit", "advantages_fit_tokens", put("advantages", token_returns=[0.5] * 99)),
    ("credit", "advantages_fit_tokens", put("advantages", num_trained_tokens=0)),
    ("credit", "no_signal_no_credit", put("advantages", lambda r: r["group_std"] == 0, base_advantage=0.1)),
    ("credit", "td_telescopes", put("advantages", lambda r: len(r["td_values"]) == 1, td_values=[0.123])),
    ("credit", "node_values_add_up", put("prefix_nodes", lambda r: r["parent"] is None, value=0.123)),
    ("training", "updates_are_finite", put("updates", loss=float("nan"))),
    # e^0.191 = 1.21 and e^-0.224 = 0.799, also where importance sampling makes every ratio 1
    ("training", "sampler_and_trainer_agree", put("updates", mismatch_p95=0.191, ratio_p05=1.0, ratio_p95=1.0)),
    ("training", "sampler_and_trainer_agree", put("updates", mismatch_p05=-0.224, ratio_p05=1.0, ratio_p95=1.0)),
    ("training", "group_is_trained_once", lose("update_groups")),
    ("evaluation", "score_counts_every_completion", put("scores", k=3)),
    ("evaluation", "score_counts_every_completion", put("scores", maj_at_k=1.01)),
    ("evaluation", "score_counts_every_completion", put("scores", pass_at_k=0.123)),
    ("evaluation", "score_counts_every_completion", lose("score_passes")),
    ("evaluation", "score_counts_every_completion", put("score_passes", lambda r: r["attempts"] == 1, pass_at_k=0.1)),
    ("evaluation", "score_counts_every_completion", put("score_statuses", num_completions=99)),
    ("evaluation", "score_counts_every_completion", add_a_part),
]


@pytest.mark.parametrize(
    ("stage", "name", "change"), BROKEN, ids=[f"{s}-{n}-{i}" for i, (s, n, _) in enumerate(BROKEN)]
)
def test_one_changed_row_breaks_the_contract_and_is_kept_as_evidence(data, stage, name, change):
    step = Step(data, stage)
    rows = step.rows()
    change(rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(CONTRACTS, stage, (name,))  # type: ignore[arg-type] (one row can break several)
        with pytest.raises(ContractBreach) as breach:
            step.check(rows)
    message = str(breach.value)
    (evidence,) = (data / "quarantine").iterdir()
    facts = json.loads((evidence / "breach.json").read_text())
    assert (facts["stage"], facts["contract"], facts["message"]) == (stage, name, message)
    assert len(facts["rows"]) == facts["num_rows"] > 0
    for part in (name, "Expected: ", "Got:", "Why it matters: ", "What to do: ", str(evidence)):
        assert part in message
    assert {f"{table}.parquet" for table in rows} <= {path.name for path in evidence.iterdir()}
    assert list(step.store.staging_root.iterdir()) == []
    with pytest.raises(ContractBreach):
        step.check(rows)


def test_each_contract_is_broken_by_one_of_these_tests_and_has_its_sentences():
    assert {name for _, name, _ in BROKEN} == {name for names in CONTRACTS.values() for name in names}
    assert {path.stem for path in FOLDER.glob("*.sql")} == {name for names in CONTRACTS.values() for name in names}
    for names in CONTRACTS.values():
        for name in names:
            assert all((contract(name).holds, contract(name).why, contract(name).remedy))


@pytest.mark.parametrize(
    ("stage", "change", "limits"),
    [
        ("verification", fail_a_quarter, {"max_null_verdicts": 0.25}),
        ("training", put("updates", mismatch_p95=0.191), {"max_mismatch": 0.3}),
        ("training", put("updates", mismatch_p05=-50.0), {"max_mismatch": 1.0}),
        ("separation", share_a_prompt, {"allow_benchmark_prompts": True}),
    ],
)
def test_a_limit_of_the_configuration_allows_it(data, stage, change, limits):
    step = Step(data, stage)
    rows = step.rows()
    change(rows)
    step.check(rows, **limits)


def test_a_benchmark_may_share_13_words_with_a_training_prompt(data):
    step = Step(data, "separation")
    rows = step.rows()
    share_13_words(rows)
    step.check(rows)


def test_through_the_command_a_breach_stops_the_run_with_exit_code_1_and_the_next_run_goes_on(
    tempo, tmp_path, learning
):
    settings = [argument for setting in learning for argument in ("--set", setting)]
    data = tmp_path / "data"
    strict = [*settings, "--set", "contracts.max_mismatch=0.0", "--no-server", "--data-root", data]
    code, _, err = tempo("train", "quickstart", *strict)
    assert code == 1
    assert "tempo: the contract sampler_and_trainer_agree is broken by 1 rows of the stage training" in err
    for remedy in ("sampler.engine", "weight_syncs", "train.importance_sampling=token", "contracts.max_mismatch=SHARE"):
        assert remedy in err
    assert "Traceback" not in err
    assert not (data / "artifacts" / "training").exists()
    (failed,) = open_catalog(data).execute("SELECT error FROM stage_runs WHERE outcome = 'failed'").fetchall()
    assert failed[0].startswith("ContractBreach: the contract sampler_and_trainer_agree")
    (folder,) = (data / "quarantine").iterdir()
    assert {"breach.json", "updates.parquet", "checkpoint"} <= {path.name for path in folder.iterdir()}
    code, _, _ = tempo("train", "quickstart", *settings, "--no-server", "--data-root", data)
    assert code == 0


@pytest.mark.parametrize("moment", ["DuckDB reads rows", "the thread for DuckDB starts"])
def test_a_stop_while_contracts_are_checked_is_a_stop_and_no_error_of_duckdb(data, monkeypatch, moment):
    step = Step(data, "generation")
    rows = step.artifact.part("rollouts").read()
    reads, start = threading.Event(), threading.Thread.start

    class Stopped:
        """Rows that are read when Ctrl-C is pressed, once."""

        def __arrow_c_schema__(self):
            return rows.schema.__arrow_c_schema__()

        def __arrow_c_stream__(self, requested_schema=None):
            if not reads.is_set():
                reads.set()
                if moment == "DuckDB reads rows":
                    os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.05)  # in the main thread the handler would run here
            return rows.__arrow_c_stream__(requested_schema)

    def interrupted(thread):
        """Start a thread; Ctrl-C comes before the starter knows."""
        monkeypatch.undo()
        start(thread)
        reads.wait(60)
        raise KeyboardInterrupt

    if moment == "the thread for DuckDB starts":
        monkeypatch.setattr(threading.Thread, "start", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with step.store.staging("k1") as staging:
            staging.tables["rollouts"] = Stopped()
            with pytest.raises(KeyboardInterrupt):
                check_contracts("generation", staging, step.inputs, LIMITS)
            staging.tables["rollouts"] = rows
            check_contracts("generation", staging, step.inputs, LIMITS)  # the connection is as good as before
    finally:
        signal.signal(signal.SIGINT, before)
