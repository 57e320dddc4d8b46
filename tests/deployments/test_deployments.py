"""What deployments/ promises, with a real Prefect server and real process workers; the whole file takes minutes.

A worker that was killed is missed after 100 s: `killed` kills it early, and the test that waits for what follows is the
last one.
"""

import json
import os
import signal
import time
import urllib.error
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.deployments.served import Served, processes_of, wait_for

CHROMIUM = Path("/usr/bin/chromium")
PREPARATION = ["step 000 policy", "step 000 prompts", "step 000 demonstrations", "step 000 warm_start"]
STEPS = [f"step 00{step} {stage}" for step in (1, 2) for stage in ("generation", "verification", "credit", "training")]
LONG = {"steps": 24, "prompts_per_step": 24, "train": {"updates_per_step": 4}}
"""Long enough to be ended in its middle: a second a step, more on a busy machine."""


def trained_steps(served: Served, run: str) -> int:
    """How many steps of a run are stored."""
    if not (served.data / "log.jsonl").exists():
        return 0
    stages = [event for event in served.events(run) if event["event"] == "stage" and event["outcome"] != "failed"]
    return len({event["step"] for event in stages if event["stage"] == "training"})


def asked_for(served: Served) -> list[str]:
    """The runs that no schedule has made."""
    return sorted(run["id"] for run in served.ask("/flow_runs/filter", {}) if not run["auto_scheduled"])


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ({"settings": {"group_size": 0}}, "settings.group_size"),
        ({"settings": {"lerning_rate": 1.0}}, "'lerning_rate' was unexpected"),
        ({"settings": {"estimator": "tempoo"}}, "settings.estimator"),
        ({"experiment": "quikstart"}, "'quikstart' does not match"),
        ({"rerun": {"from_stage": "training", "step": -1}}, "rerun"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bad_parameter_is_refused_before_a_run_exists(served, parameters, reason):
    before = asked_for(served)
    deployment = served.deployment("train/train-quickstart")["id"]
    with pytest.raises(urllib.error.HTTPError) as refused:
        served.ask(f"/deployments/{deployment}/create_flow_run", {"parameters": parameters})
    assert 400 <= refused.value.code < 500
    assert reason in json.loads(refused.value.read())["detail"]
    assert asked_for(served) == before


def test_tempo_deploy_again_makes_nothing_twice_and_leaves_what_a_person_decided(served):
    def registered() -> dict[str, Any]:
        found = {kind: served.ask(f"/{kind}/filter", {}) for kind in ("deployments", "work_pools", "automations")}
        schedules = {d["name"]: [(s["slug"], s["active"]) for s in d["schedules"]] for d in found["deployments"]}
        return {kind: sorted(one["id"] for one in entries) for kind, entries in found.items()} | {"sch": schedules}

    nightly = served.deployment("evaluate/evaluate-newest")
    (schedule,) = nightly["schedules"]
    served.ask(f"/deployments/{nightly['id']}/schedules/{schedule['id']}", {"active": False}, "PATCH")
    served.ask("/work_pools/tempo-train", {"concurrency_limit": 7}, "PATCH")
    before = registered()
    assert before["sch"]["evaluate-newest"] == [("nightly", False)]
    done = served.command("deploy", "--only", "evaluate-newest", "--data-root", served.data, name="tempo")
    assert done.returncode == 0, done.stderr
    assert "2 (0 new)" in done.stdout
    assert "1 (0 new)" in done.stdout
    assert "3 (0 new)" in done.stdout
    assert registered() == before
    assert served.ask("/work_pools/tempo-train")["concurrency_limit"] == 7
    served.ask("/work_pools/tempo-train", {"concurrency_limit": 1}, "PATCH")


@pytest.fixture(scope="module")
def scheduled(served: Served) -> str:
    """The run of the quickstart that a schedule started."""
    deployment = served.deployment("train/train-quickstart")["id"]
    soon = (datetime.now(UTC) + timedelta(seconds=12)).isoformat()
    every = {"interval": 24 * 3600, "anchor_date": soon}
    tiny = {"settings": served.tiny | {"benchmarks": ["arithmetic"]}}
    (made,) = served.ask(f"/deployments/{deployment}/schedules", [{"schedule": every, "parameters": tiny}])
    where = {"deployments": {"id": {"any_": [deployment]}}, "sort": "START_TIME_ASC"}

    def fired() -> list[str]:
        runs = served.ask("/flow_runs/filter", where)
        return [run["id"] for run in runs if run["auto_scheduled"] and run["start_time"]]

    (run,) = wait_for("the schedule to fire", fired)
    served.ask(f"/deployments/{deployment}/schedules/{made['id']}", method="DELETE")
    return str(run)


def test_a_schedule_fires_by_itself(served, scheduled):
    assert served.until(scheduled, "COMPLETED")["name"] == "Completed"
    stages = served.stages(scheduled)
    assert [stages[title] for title in (*PREPARATION, *STEPS)] == ["Completed"] * 12
    assert "step 002 evaluation arithmetic greedy" in stages


def test_a_second_training_waits_and_a_cancelled_one_leaves_no_process_and_resumes(served):
    first = served.start(LONG | {"run": "first", "seed": 1})
    wait_for("a step of the first run", lambda: trained_steps(served, "first"))
    second = served.start({"run": "second", "seed": 2})
    time.sleep(4)  # a poll of the worker, and some
    assert served.state(second)["type"] == "SCHEDULED"
    assert processes_of(second) == []
    assert processes_of(first) != []

    cancelling = {"state": {"type": "CANCELLING", "name": "Cancelling"}}  # as the UI's Cancel and `flow-run cancel`
    served.ask(f"/flow_runs/{first}/set_state", cancelling)
    served.until(first, "CANCELLED")
    wait_for("the processes of the first run to end", lambda: not processes_of(first), 30)
    assert served.events("first")[-1]["state"] == "interrupted"
    done = trained_steps(served, "first")
    assert 1 <= done < LONG["steps"]
    served.until(second, "COMPLETED")

    retried = served.command("flow-run", "retry", first)
    assert retried.returncode == 0, retried.stderr
    served.until(first, "COMPLETED")
    stages = served.stages(first)
    trained = [stages[f"step {step:03d} training"] for step in range(1, LONG["steps"] + 1)]
    assert trained == ["Cached"] * done + ["Completed"] * (LONG["steps"] - done)


@pytest.fixture(scope="module")
def killed(served: Served) -> tuple[str, int]:
    """A run whose worker died with it, and the steps that it had stored; another worker is there for what follows.

    Until somebody notices, the dead run holds the one place of the pool: for the tests there is a second.
    """
    run = served.start(LONG | {"run": "killed", "seed": 3})
    wait_for("a step of the run", lambda: trained_steps(served, "killed"))
    for process in (served.workers[0].pid, *processes_of(run)):
        os.kill(process, signal.SIGKILL)
    served.workers[0].wait(30)
    served.ask("/work_pools/tempo-train", {"concurrency_limit": 2}, "PATCH")
    served.worker("tempo-train")
    served.worker("tempo-jobs")
    return run, trained_steps(served, "killed")


class Blocked:
    """A run with a data root of its own, in which a file lies where a stage wants to store its artifacts."""

    def __init__(self, served: Served) -> None:
        self.artifacts = served.home / "blocked" / "artifacts"
        self.artifacts.mkdir(parents=True)
        self.block("credit")
        self.run = served.start({"run": "blocked", "seed": 4}, data_root=str(self.artifacts.parent))
        served.until(self.run, "FAILED")

    def block(self, stage: str) -> None:
        self.stage = stage
        (self.artifacts / stage).write_text("in the way")

    def unblock(self) -> None:
        (self.artifacts / self.stage).unlink()


@pytest.fixture(scope="module")
def blocked(served: Served, killed: tuple[str, int]) -> Blocked:
    return Blocked(served)


def test_a_failed_stage_says_why_and_a_retry_from_the_command_line_runs_it_and_its_dependants(served, blocked):
    assert served.stages(blocked.run) == dict.fromkeys([*PREPARATION, *STEPS[:2]], "Completed") | {
        "step 001 credit": "Failed"
    }
    assert (
        "Not a directory" in served.state(blocked.run)["message"]
        or "File exists" in served.state(blocked.run)["message"]
    )
    assert served.state(blocked.run)["name"] == "Failed"  # and the automation leaves it so

    blocked.unblock()
    blocked.block("training")
    retried = served.command("flow-run", "retry", blocked.run)
    assert retried.returncode == 0, retried.stderr
    served.until(blocked.run, "SCHEDULED", "PENDING", "RUNNING")
    served.until(blocked.run, "FAILED")
    assert served.stages(blocked.run) == dict.fromkeys([*PREPARATION, *STEPS[:2]], "Cached") | {
        "step 001 credit": "Completed",
        "step 001 training": "Failed",
    }


@pytest.mark.skipif(not CHROMIUM.exists(), reason=f"no browser at {CHROMIUM}")
def test_a_retry_in_the_browser_runs_the_failed_stage_and_its_dependants(served, blocked, tmp_path):
    playwright = pytest.importorskip("playwright.sync_api")
    blocked.unblock()
    stored = [title for title, state in served.stages(blocked.run).items() if state != "Failed"]
    pictures = Path(os.environ.get("TEMPO_PICTURES", tmp_path))
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=str(CHROMIUM),
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"],
        )
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(150_000)
        site = served.url.removesuffix("/api")
        page.goto(f"{site}/deployments/deployment/{served.deployment('train/train-quickstart')['id']}/run")
        page.get_by_text("group_size").or_(page.get_by_text("Group Size")).first.wait_for()
        page.screenshot(path=pictures / "form.png", full_page=True)
        page.goto(f"{site}/runs/flow-run/{blocked.run}")
        page.get_by_role("button", name="Retry").first.click()
        page.screenshot(path=pictures / "retry.png")
        page.get_by_role("button", name="Retry").last.click()
        wait_for("the retry", lambda: served.state(blocked.run)["type"] != "FAILED")
        served.until(blocked.run, "COMPLETED")
        page.reload()
        page.get_by_role("tab", name="Task Runs").or_(page.get_by_text("Task Runs", exact=True)).last.click()
        page.get_by_text("step 002 training").first.wait_for()
        page.screenshot(path=pictures / "completed.png")
        browser.close()
    assert served.stages(blocked.run) == {
        title: "Cached" if title in stored else "Completed" for title in PREPARATION + STEPS
    }


@pytest.mark.slow
def test_a_rerun_is_a_parameter_of_the_deployment(served, scheduled):
    served.until(scheduled, "COMPLETED")
    run = served.start({"benchmarks": ["arithmetic"]}, rerun={"from_stage": "training", "step": 2})
    served.until(run, "COMPLETED")
    stages = served.stages(run)
    assert [stages[title] for title in (*PREPARATION, *STEPS)] == ["Cached"] * 11 + ["Completed"]
    assert stages["step 002 evaluation arithmetic greedy"] == "Cached"  # equal weights: what follows is not redone
    (take,) = [event for event in served.events("quickstart") if event["event"] == "run"][-2]["takes"]
    assert (take["name"], take["from_stage"], take["step"]) == ("r1", "training", 2)


@pytest.mark.slow
def test_the_nightly_evaluation_scores_the_newest_policy(served, scheduled, killed):
    served.until(scheduled, "COMPLETED")
    deployment = served.deployment("evaluate/evaluate-newest")["id"]
    parameters = {"settings": {"evaluation": {"num_samples": 1}}}
    run = served.ask(f"/deployments/{deployment}/create_flow_run", {"parameters": parameters})["id"]
    served.until(run, "COMPLETED")
    assert served.stages(run)["step 002 evaluation arithmetic sampled"] == "Completed"


@pytest.mark.slow
def test_a_run_whose_process_died_under_a_living_worker_is_resumed_at_once(served, blocked):
    run = served.start(LONG | {"run": "died", "seed": 5})
    wait_for("a step of the run", lambda: trained_steps(served, "died"))
    for process in processes_of(run):
        os.kill(process, signal.SIGKILL)
    done = trained_steps(served, "died")
    wait_for("a second start", lambda: served.run(run)["run_count"] == 2)
    served.until(run, "COMPLETED")
    states = served.ask(f"/flow_run_states/?flow_run_id={run}")
    assert "Crashed" in [state["name"] for state in states]
    assert list(served.stages(run).values()).count("Completed") <= 4 * (LONG["steps"] - done) + 3


def test_a_run_whose_worker_was_killed_with_9_is_noticed_and_resumed_without_a_person(served, killed):
    run, done = killed
    served.until(run, "COMPLETED", seconds=240)
    states = {state["name"]: state["message"] for state in served.ask(f"/flow_run_states/?flow_run_id={run}")}
    assert states["Crashed"] == "No heartbeat for 100 s; the process is taken for dead."
    stages = served.stages(run)
    trained = [stages[f"step {step:03d} training"] for step in range(1, LONG["steps"] + 1)]
    assert trained == ["Cached"] * done + ["Completed"] * (LONG["steps"] - done)
    assert served.run(run)["run_count"] == 2
