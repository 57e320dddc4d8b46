"""Retention: weights are dropped by rule, and made again bit by bit from stored rollouts and advantages."""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flows.history import stored_experiment
from flows.loop import train_experiment
from flows.planning import learn_makers, request_rerun
from flows.retention import is_kept
from flows.run import at_attempt
from flows.takes import Rerun
from storage.artifact import Artifact, Store
from storage.catalog import open_catalog
from tasks.experiment import load_experiment
from tasks.rebuilding import NotRebuilt, rebuild
from tasks.stage import Run


def policies(data: Path) -> dict[int, Artifact]:
    """The training artifact of every step."""
    rows = open_catalog(data).execute("SELECT DISTINCT step, key FROM links WHERE stage = 'training'").fetchall()
    return {step: Artifact("training", key, Store(data).path_of("training", key)) for step, key in sorted(rows)}


def weights(artifact: Artifact) -> dict[str, str]:
    return {
        str(file.relative_to(artifact.path)): hashlib.sha256(file.read_bytes()).hexdigest()
        for name in ("checkpoint", "optimizer")
        for file in sorted(artifact.part(name).path.rglob("*"))
    }


def retrain(data: Path, *overrides: str, learning: list[str]) -> None:
    train_experiment(load_experiment("quickstart", [*learning, *overrides]), data, uses_prefect=False)


@pytest.mark.parametrize(
    ("kind", "n", "kept"),
    [("last", 1, [6]), ("last", 3, [4, 5, 6]), ("every", 2, [2, 4, 6]), ("every", 4, [4, 6]), ("every", 9, [6])],
)
def test_the_rules_keep_these_of_six_policies(kind, n, kept):
    assert [step for step in range(1, 7) if is_kept(kind, n, step, newest=6)] == kept


@pytest.mark.parametrize(("rule", "kept"), [("last(2)", [3, 4]), ("every(3)", [3, 4]), ("all", [1, 2, 3, 4])])
def test_a_run_drops_the_weights_of_policies_that_its_rule_does_not_keep_and_nothing_else(data, learning, rule, kept):
    rows = open_catalog(data).execute("SELECT count(*) FROM token_credit").fetchall()
    retrain(data, f"keep_policies={rule}", learning=learning)
    found = policies(data)
    assert [step for step in found if not found[step].dropped] == kept
    assert [step for step in found if found[step].part("checkpoint").path.exists()] == kept
    catalog = open_catalog(data)
    assert catalog.execute("SELECT count(*) FROM token_credit").fetchall() == rows
    assert catalog.execute("SELECT count(*) FROM missing_files").fetchall() == [(0,)]
    retrain(data, f"keep_policies={rule}", learning=learning)  # a cached rerun needs no weights
    last = "SELECT count(*) FILTER (outcome = 'ran') FROM stage_runs WHERE line > (SELECT max(line) FROM run_events " \
           "WHERE state = 'started')"  # fmt: skip
    assert open_catalog(data).execute(last).fetchall() == [(0,)]


def test_dropped_policies_are_rebuilt_from_rollouts_and_advantages_bit_by_bit(data, learning):
    before = {step: weights(artifact) for step, artifact in policies(data).items()}
    retrain(data, "keep_policies=last(1)", learning=learning)
    experiment = stored_experiment(data, "quickstart")
    run = at_attempt(Run("quickstart", "", Store(data)), experiment, None)
    learn_makers(run, experiment)
    found = policies(data)
    rebuild(run, found[3])  # by way of steps 1 and 2, which stay dropped
    assert weights(found[3]) == before[3]
    assert [step for step in found if found[step].dropped] == [1, 2]
    outcomes = "SELECT step FROM stage_runs WHERE outcome = 'rebuilt' ORDER BY line"
    assert open_catalog(data).execute(outcomes).fetchall() == [(1,), (2,), (3,)]


def test_a_rerun_rebuilds_what_it_needs_by_itself_and_drops_it_again(data, learning):
    retrain(data, "keep_policies=last(1)", learning=learning)
    experiment, asked = request_rerun(data, "quickstart", Rerun(from_stage="training", step=3, force=True))
    train_experiment(experiment, data, uses_prefect=False, rerun=asked)
    found = policies(data)
    assert [step for step in found if not found[step].dropped] == [4]


def test_a_policy_that_another_run_uses_is_left_alone(data, learning):
    retrain(data, "run=other", learning=learning)
    retrain(data, "keep_policies=last(1)", learning=learning)
    assert [artifact.dropped for artifact in policies(data).values()] == [frozenset()] * 4


def test_weights_that_come_out_differently_are_refused_and_stay_dropped(data, learning):
    retrain(data, "keep_policies=last(1)", learning=learning)
    experiment = stored_experiment(data, "quickstart")
    run = at_attempt(Run("quickstart", "", Store(data)), experiment, None)
    learn_makers(run, experiment)
    first = policies(data)[1]
    call = run.makers["training", first.key]
    faster: dict[str, Any] = {"config": replace(call.identity["config"], learning_rate=1e-2)}
    run.makers["training", first.key] = replace(call, identity=call.identity | faster)
    with pytest.raises(NotRebuilt, match=r"step 001 training: the rebuilt weights are not those .*expected the digest"):
        rebuild(run, first)
    assert first.dropped == {"checkpoint", "optimizer"}
    assert not first.part("checkpoint").path.exists()


def test_the_score_of_a_dropped_policy_is_the_one_that_it_had(tempo, data, learning):
    scores = "SELECT decoding, mean FROM scores WHERE step = 2 AND n = 8 ORDER BY ALL"
    before = open_catalog(data).execute(scores).fetchall()
    retrain(data, "keep_policies=last(1)", learning=learning)
    code, _, err = tempo("evaluate", "quickstart@2", "--limit", "7", "--no-server", "--data-root", data)
    assert code == 0
    assert "rebuilt the dropped policy of step 2" in err
    assert policies(data)[2].dropped  # only for the time it took
    assert open_catalog(data).execute(scores).fetchall() == before


@pytest.mark.parametrize("rule", ["last", "last(0)", "every(-1)", "newest(3)"])
def test_other_rules_are_refused(rule):
    with pytest.raises(ValueError, match=r"keep_policies: expected all, last\(n\) or every\(n\) with n at least 1"):
        load_experiment("quickstart", [f"keep_policies={rule}"])
