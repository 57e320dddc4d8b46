"""`tempo rerun`: what is computed again, what is not, and what stays of the earlier attempt."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows.history import stored_experiment
from flows.loop import train_experiment
from flows.planning import request_rerun
from flows.progress import RunListener, watching
from flows.takes import Rerun, takes_as_json, takes_of_rerun
from storage.commit_log import read_events
from tasks.experiment import load_experiment
from tests.flows.stored import num_lines, query, ran

Tempo = Callable[..., tuple[int, str, str]]


def rerun(data: Path, *, name: str = "quickstart", **request: Any) -> None:
    experiment, asked = request_rerun(data, name, Rerun(**request))
    train_experiment(experiment, data, uses_prefect=False, rerun=asked)


def takes(data: Path) -> list[list[str]]:
    """Names of the takes of each time the run was started."""
    events = [event for event in read_events(data / "log.jsonl") if event.get("state") == "started"]
    return [[take["name"] for take in event["takes"]] for event in events]


def test_a_stage_that_gives_the_same_bytes_again_is_all_that_runs(data):
    before, attempts = num_lines(data), query(data, "SELECT attempt FROM runs")
    digests = "SELECT outputs FROM stage_runs WHERE stage = 'training' AND step = 4 ORDER BY line"
    rerun(data, from_stage="credit", step=2)
    assert ran(data, before) == [(2, "train", "credit")]
    assert query(data, digests)[0] == query(data, digests)[-1]
    assert query(data, "SELECT attempt FROM runs") != attempts
    (old,) = attempts[0]
    assert query(data, f"SELECT count(*) > 0 FROM stage_runs WHERE attempt = '{old}'") == [(True,)]


def test_without_a_step_the_stage_runs_again_wherever_it_stands(data):
    before = num_lines(data)
    rerun(data, from_stage="verification")
    assert ran(data, before) == [(step, "train", "verification") for step in (1, 2, 3, 4)]


def test_with_force_exactly_what_depends_on_it_runs_again_too(data):
    depends = """
        WITH RECURSIVE newer AS (
            SELECT stage, key FROM stage_runs WHERE stage = 'credit' AND step = 3
            UNION
            SELECT s.stage, s.key FROM stage_runs s JOIN newer n
            ON list_contains(map_values(s.inputs), n.stage || '/' || n.key))
        SELECT DISTINCT step, purpose, stage, label FROM stage_runs JOIN newer USING (stage, key)"""
    expected = sorted((step, purpose, stage) for step, purpose, stage, _ in query(data, depends))
    before = num_lines(data)
    rerun(data, from_stage="credit", step=3, force=True)
    assert sorted(ran(data, before)) == expected
    # credit and training of step 3, all four of step 4, and the two decodings of step 4's scores
    assert len(expected) == 2 + 4 + 2 * 3


def test_the_scores_of_a_benchmark_can_be_drawn_again(data):
    before = num_lines(data)
    rerun(data, from_stage="generation", purpose="eval", step=2)
    assert ran(data, before) == [(2, "eval", "generation"), (2, "eval", "generation")]


def test_settings_hold_from_the_step_on_and_leave_what_comes_before_alone(data):
    policies = "SELECT policy FROM policies WHERE origin = 'training' ORDER BY step"
    old, before = query(data, policies), num_lines(data)
    rerun(data, from_stage="training", step=3, overrides=("train.learning_rate=1e-3",))
    new = query(data, policies)
    assert new[:2] == old[:2]
    assert new[2] != old[2]
    assert ran(data, before)[0] == (3, "train", "training")
    rates = query(data, "SELECT step, learning_rate FROM updates WHERE phase = 'training' AND update = 0 ORDER BY step")
    assert rates == [(1, 2e-4), (2, 2e-4), (3, 1e-3), (4, 1e-3)]
    # and a plain training is as the experiment says, from storage
    before = num_lines(data)
    train_experiment(stored_experiment(data, "quickstart"), data, uses_prefect=False)
    assert ran(data, before) == []
    assert query(data, policies) == old


def test_a_training_goes_on_with_what_the_last_rerun_made(data, learning):
    rerun(data, from_stage="credit", step=2)
    attempt, before = query(data, "SELECT attempt FROM runs"), num_lines(data)
    train_experiment(load_experiment("quickstart", [*learning, "steps=5"]), data, uses_prefect=False)
    assert query(data, "SELECT attempt FROM runs") == attempt
    assert {step for step, _, _ in ran(data, before)} == {5}


class Stopping(RunListener):
    """Ctrl-C when the stage of a step begins."""

    def __init__(self, experiment: Any, step: int, stage: str) -> None:
        from rich.console import Console

        super().__init__(experiment, Console(stderr=True))
        self.at = (step, stage)

    def stage_started(self, place: Any, stage: str) -> None:
        if (place.step, stage) == self.at:
            raise KeyboardInterrupt


def test_a_rerun_that_was_stopped_is_resumed_by_asking_again_and_a_finished_one_is_done_anew(data):
    experiment, asked = request_rerun(data, "quickstart", Rerun(from_stage="credit", step=2, force=True))
    with watching(Stopping(experiment, 4, "verification")), pytest.raises(KeyboardInterrupt):
        train_experiment(experiment, data, uses_prefect=False, rerun=asked)
    assert takes(data) == [[], ["r1"]]
    before = num_lines(data)
    rerun(data, from_stage="credit", step=2, force=True)
    assert takes(data) == [[], ["r1"], ["r1"]]
    assert ran(data, before)[0] == (4, "train", "verification")
    rerun(data, from_stage="credit", step=2, force=True)
    assert takes(data)[-1] == ["r1", "r2"]


@pytest.mark.parametrize(
    ("ended", "flow_run", "expected"),
    [(True, "a", ["r1"]), (True, "b", ["r1", "r2"]), (True, None, ["r1", "r2"]), (False, "b", ["r1"])],
    ids=["the Retry button", "asked for again in Prefect", "asked for again", "resumed"],
)
def test_a_retry_of_the_same_flow_run_is_the_same_rerun_and_a_new_request_another(ended, flow_run, expected):
    request = Rerun(from_stage="credit", step=2)
    (first,) = takes_of_rerun([], request, ended=False, flow_run="a")
    started = [{"attempt": "x", "flow_run": "a", "takes": takes_as_json([first])}]
    again = takes_of_rerun(started, request, ended=ended, flow_run=flow_run)
    assert [take.name for take in again] == expected


def test_ids_of_rollouts_do_not_depend_on_the_rerun(data):
    ids = "SELECT rollout_id FROM rollouts WHERE purpose = 'train' ORDER BY ALL"
    old, before = query(data, ids), num_lines(data)
    rerun(data, from_stage="generation", step=1)
    assert ran(data, before) == [(1, "train", "generation")]
    assert query(data, ids) == old


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--from", "credit", "--step", "9"], "has not done that: its stages are policy, prompts"),
        (
            ["--from", "training", "--step", "2", "--set", "sampler.temperature=0.7"],
            "the settings change step 002 generation (sampler.temperature 1.0 -> 0.7), which comes before it",
        ),
        (["--from", "credit", "--set", "run=b"], "to start another one, use tempo train --set run=NAME"),
        (["--from", "credit", "--set", "credit.epsilon=-1"], "credit.epsilon: expected a number above 0, got -1"),
    ],
)
def test_what_a_rerun_cannot_do_is_refused_before_anything_is_touched(tempo: Tempo, data, arguments, expected):
    log = (data / "log.jsonl").read_bytes()
    code, _, err = tempo("rerun", "quickstart", "--no-server", "--data-root", data, *arguments)
    assert code == 2
    assert expected in err
    assert (data / "log.jsonl").read_bytes() == log
