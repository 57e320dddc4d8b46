"""Forms are the experiment's keys; the files of deployments/ and the README agree with the code. Nothing is started."""

import dataclasses
import functools
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from flows.cli import _parser
from flows.deploy import as_left_by_people
from flows.forms import RerunForm, ScoringSettings, Settings, filled_in, overrides
from flows.train import train
from tasks.config import Experiment
from tasks.core.advantage import ESTIMATORS
from tasks.experiment import experiment_names, load_experiment

ROOT = Path(__file__).resolve().parents[2]
DEPLOYMENTS = yaml.safe_load((ROOT / "deployments" / "prefect.yaml").read_text())["deployments"]
README = (ROOT / "deployments" / "README.md").read_text()


def leaves(section: object, path: str = "") -> dict[str, object]:
    """Value of every key of a dataclass tree, by its dotted name."""
    found: dict[str, object] = {}
    for field in dataclasses.fields(section):  # type: ignore[arg-type]
        value = getattr(section, field.name)
        nested = dataclasses.is_dataclass(value)
        found |= leaves(value, f"{path}{field.name}.") if nested else {f"{path}{field.name}": value}
    return found


@pytest.mark.parametrize("name", experiment_names())
def test_a_form_with_every_key_of_an_experiment_turns_another_experiment_into_it(name):
    wanted = {key: value for key, value in leaves(load_experiment(name)).items() if value is not None}
    tree: dict[str, Any] = {}
    for key, value in wanted.items():
        *sections, last = key.split(".")
        functools.reduce(lambda part, section: part.setdefault(section, {}), sections, tree)[last] = value
    other = "gsm8k" if name == "quickstart" else "quickstart"
    made = leaves(load_experiment(other, overrides(Settings.model_validate(tree))))
    assert {key: made[key] for key in wanted} == wanted


def test_an_empty_form_changes_nothing_and_entries_survive_the_way_there_and_back():
    assert overrides(Settings()) == []
    entries = ["steps=3", 'benchmarks=["arithmetic"]', "train.learning_rate=0.0001", 'estimator="grpo"']
    assert sorted(overrides(filled_in(Settings, entries))) == sorted(entries)


@pytest.mark.parametrize(
    "settings",
    [{"group_size": 0}, {"group_size": 2.0}, {"group_size": True}, {"lerning_rate": 1}, {"estimator": "tempoo"},
     {"train": {"learning_rate": 0}}, {"train": {"learning_rate": float("inf")}}, {"sampler": {"top_p": 1.1}}],
    ids=str,
)  # fmt: skip
def test_a_form_refuses_what_the_experiment_would_refuse(settings):
    with pytest.raises(ValidationError):
        Settings.model_validate(settings)


def test_the_page_shows_the_bounds_the_choices_and_the_description_of_each_key():
    definitions = train.parameters.model_dump()["definitions"]
    assert definitions["Settings"]["additionalProperties"] is False
    shown = definitions["Settings"]["properties"]
    assert shown["group_size"] == {
        "description": "G: completions per prompt. The paper: 7.",
        "minimum": 1,
        "title": "Group Size",
        "type": "integer",
    }
    assert shown["estimator"]["enum"] == list(ESTIMATORS)
    assert set(shown) == {field.name for field in dataclasses.fields(Experiment)}
    assert all(entry.get("description") or "$ref" in entry for entry in shown.values())
    assert "training" in definitions["RerunForm"]["properties"]["from_stage"]["enum"]


def test_scoring_takes_no_key_that_would_need_training():
    with pytest.raises(ValidationError):
        ScoringSettings.model_validate({"train": {"learning_rate": 1e-3}})
    with pytest.raises(ValidationError):
        RerunForm.model_validate({"from_stage": "learning"})


def test_every_experiment_has_a_training_deployment_of_its_name():
    assert sorted(entry["name"] for entry in DEPLOYMENTS if entry["name"].startswith("train-")) == [
        f"train-{name}" for name in sorted(experiment_names())
    ]
    for entry in DEPLOYMENTS:
        if entry["name"].startswith("train-"):
            assert entry["parameters"]["experiment"] == entry["name"].removeprefix("train-")
            assert entry["work_pool"]["name"] == "tempo-train"


def test_every_deployment_validates_its_parameters_sends_heartbeats_and_has_a_time_zone():
    for entry in DEPLOYMENTS:
        assert entry["enforce_parameter_schema"] is True
        assert entry["work_pool"]["job_variables"]["env"]["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == "30"
        assert all(schedule["timezone"] and schedule["slug"] for schedule in entry.get("schedules", []))
        assert "tempo" in entry["tags"]  # by this tag the automations know the runs that are theirs
        path, _, function = entry["entrypoint"].partition(":")
        assert re.search(rf"^def {function}\(", (ROOT / path).read_text(), re.MULTILINE)


def test_a_schedule_that_a_person_paused_stays_paused_and_a_new_one_is_as_declared():
    tree = {
        "deployments": [{"name": "a", "schedules": [{"slug": "old", "active": True}, {"slug": "new", "active": True}]}]
    }
    (adapted,) = as_left_by_people(tree, {"a": {"old": False}})["deployments"]
    assert [schedule["active"] for schedule in adapted["schedules"]] == [False, True]


def test_the_readme_reaches_a_scheduled_training_in_ten_commands_that_parse():
    commands = re.findall(r"^    \$ ((?:.*\\\n)*.*)", README, re.MULTILINE)
    first = README.index("## After that")
    assert len(re.findall(r"^    \$ ", README[:first], re.MULTILINE)) == 10
    ours = [command for command in commands if command.startswith("tempo ")]
    assert "tempo deploy" in ours
    for command in ours:
        _parser().parse_args(shlex.split(command.replace("\\\n", " "))[1:])
    for name in re.findall(r"(?:train|evaluate|recredit|collect-garbage)/([\w.-]+)", README):
        assert name in {entry["name"] for entry in DEPLOYMENTS}
