"""Reading an experiment: what is accepted becomes frozen values, what is not is named with what was expected."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from tasks.config import Experiment, TrainConfig
from tasks.experiment import (
    EXPERIMENTS,
    ConfigError,
    all_keys,
    apply_overrides,
    attempt_of,
    experiment_names,
    load_experiment,
    parse_experiment,
)


def problems(*overrides: str) -> list[str]:
    """What is said about quickstart with these overrides, without the heading."""
    with pytest.raises(ConfigError) as error:
        load_experiment("quickstart", overrides)
    return [line.strip() for line in str(error.value).splitlines()[1:]] or [str(error.value)]


@pytest.fixture
def toml(tmp_path: Path) -> Callable[..., str]:
    def write(text: str, name: str = "mine.toml") -> str:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


# --- files


@pytest.mark.parametrize("name", experiment_names())
def test_every_experiment_of_the_project_loads_and_its_run_has_its_name(name: str):
    assert load_experiment(name).run == name


def test_a_key_that_a_file_does_not_set_has_its_default_and_one_that_it_sets_has_the_files(toml):
    experiment = load_experiment(toml("steps = 2\n[train]\nlearning_rate = 3e-5\n"))
    assert (experiment.steps, experiment.train.learning_rate) == (2, 3e-5)
    assert experiment.train == TrainConfig(learning_rate=3e-5)
    assert experiment.group_size == Experiment(run="x").group_size


def test_the_run_is_named_after_the_file_unless_the_file_or_set_names_it(toml):
    assert load_experiment(toml("seed = 1", "my-run.toml")).run == "my-run"
    assert load_experiment(toml('run = "other"')).run == "other"
    assert load_experiment(toml('run = "other"'), ["run=third"]).run == "third"


def test_an_unknown_experiment_is_answered_with_the_nearest_name_and_all_names():
    with pytest.raises(ConfigError, match=r"no experiment 'quickstrt': expected .*; did you mean 'quickstart'\?$"):
        load_experiment("quickstrt")
    with pytest.raises(ConfigError, match=r"no experiment 'zzz.toml': expected a .toml file or one of ") as error:
        load_experiment("zzz.toml")
    assert all(name in str(error.value) for name in experiment_names())


@pytest.mark.parametrize("content", [b"steps = ", b"steps = 1\nsteps = 2", b"run = '\xff'"])
def test_a_file_that_is_no_toml_is_named(tmp_path: Path, content: bytes):
    path = tmp_path / "bad.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"/bad\.toml: not valid TOML: "):
        load_experiment(str(path))


# --- unknown keys


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("train.lerning_rate", "train.learning_rate"),
        ("learning_rate", "train.learning_rate"),
        ("max_tokens", "sampler.max_tokens"),
        ("group_sise", "group_size"),
        ("sampler.temprature", "sampler.temperature"),
        ("trian.learning_rate", "train"),  # the section is wrong, so the section is named
        ("warmstart.updates", "warm_start"),
    ],
)
def test_an_unknown_key_is_answered_with_the_nearest_valid_one(key: str, meant: str):
    (problem,) = problems(f"{key}=1")
    unknown = key if not meant.isidentifier() or "." not in key else key.split(".")[0]
    assert problem == f"{unknown}: unknown key; did you mean {meant!r}?"


def test_an_unknown_key_that_is_like_none_is_named_without_a_guess():
    assert problems("zzzz=1") == ["zzzz: unknown key"]


@pytest.mark.parametrize("key", all_keys())
def test_every_key_with_a_letter_missing_is_answered_with_a_key_that_exists(key: str):
    (problem,) = problems(f"{key[:-1]}=1")
    assert problem.split("did you mean ")[1].strip("'?") in all_keys()


# --- values


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("seed=true", "seed: expected a whole number at least 0, got True"),
        ("seed=x", "seed: expected a whole number at least 0, got 'x'"),
        ("seed=1.0", "seed: expected a whole number at least 0, got 1.0"),
        ("seed=-1", "seed: expected a whole number at least 0, got -1"),
        ("group_size=0", "group_size: expected a whole number at least 1, got 0"),
        ("group_size=[7]", "group_size: expected a whole number at least 1, got [7]"),
        ("train.learning_rate=x", "train.learning_rate: expected a number above 0, got 'x'"),
        ("train.learning_rate=false", "train.learning_rate: expected a number above 0, got False"),
        ("train.learning_rate=0", "train.learning_rate: expected a number above 0, got 0.0"),
        ("train.learning_rate=nan", "train.learning_rate: expected a number above 0, got nan"),
        ("train.learning_rate=inf", "train.learning_rate: expected a number above 0, got inf"),
        ("train.clip_low=1.5", "train.clip_low: expected a number above 0 and at most 1, got 1.5"),
        ("train.beta1=1", "train.beta1: expected a number at least 0 and at most 0.9999, got 1.0"),
        ("sampler.top_p=0", "sampler.top_p: expected a number above 0 and at most 1, got 0.0"),
        ("evaluation.greedy=1", "evaluation.greedy: expected true or false, got 1"),
        ("prompts.limit=0", "prompts.limit: expected a whole number at least 1, got 0"),
        ("benchmarks=a,b", """benchmarks: expected a list of text, for example ["a", "b"], got 'a,b'"""),
        ("benchmarks=[1]", """benchmarks: expected a list of text, for example ["a", "b"], got [1]"""),
        ("prompts.overlong=cut", "prompts.overlong: expected one of 'refuse', 'drop', got 'cut'"),
        ("prompts.overlong=1", "prompts.overlong: expected one of 'refuse', 'drop', got 1"),
        ("train=3", "train: expected a section [train], got 3"),
        ("sampler=[1]", "sampler: expected a section [sampler], got [1]"),
        ("seed={a = 1}", "seed: expected a whole number at least 0, got {'a': 1}"),
    ],
)
def test_a_value_of_the_wrong_type_or_out_of_range_is_told_what_was_expected(override: str, problem: str):
    assert problems(override) == [problem]


def test_a_choice_that_is_nearly_one_is_answered_with_it():
    (problem,) = problems("estimator=tmpo")
    assert problem.startswith("estimator: expected one of 'tempo', 'tempo_loo', ")
    assert problem.endswith("got 'tmpo'; did you mean 'tempo'?")


@pytest.mark.parametrize("run", ["", ".hidden", "a/b", "../up", "a b", "it's"])
def test_a_run_that_could_not_name_a_folder_is_refused(run: str):
    assert problems(f"run={run}") == [
        f"run: expected letters, digits, '.', '_' and '-' (it names a folder), got {run!r}"
    ]


def test_values_that_contradict_one_another_are_refused_with_both():
    (terms,) = problems("arithmetic.min_terms=7", "arithmetic.max_terms=6")
    assert terms == "arithmetic.min_terms: expected at most arithmetic.max_terms = 6, got 7"
    (updates,) = problems("prompts_per_step=4", "train.updates_per_step=5")
    assert updates.startswith("train.updates_per_step: expected at most prompts_per_step = 4 ")


def test_every_problem_is_told_at_once(toml):
    text = 'seed = "a"\nsteps = true\nzzzz = 1\n[train]\nlearning_rate = -1\nlerning_rate = 1\n[sampler]\ntop_p = 2\n'
    with pytest.raises(ConfigError, match=r"mine\.toml cannot be used:\n") as error:
        load_experiment(toml(text))
    keys = [line.strip().split(":")[0] for line in str(error.value).splitlines()[1:]]
    assert sorted(keys) == ["sampler.top_p", "seed", "steps", "train.learning_rate", "train.lerning_rate", "zzzz"]


def test_a_tree_without_a_run_is_told_that_it_is_missing():
    with pytest.raises(ConfigError, match="run: missing; expected text"):
        parse_experiment({})


def test_a_whole_number_serves_as_a_number_and_makes_the_same_attempt():
    whole, decimal = (load_experiment("quickstart", [f"sampler.temperature={t}"]) for t in ("1", "1.0"))
    assert isinstance(whole.sampler.temperature, float)
    assert attempt_of(whole) == attempt_of(decimal)


# --- --set


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("steps=3", 3),
        ("steps=1_000", 1000),
        ("train.learning_rate=1e-4", 1e-4),
        ("evaluation.greedy=false", False),
        ("dataset=gsm8k", "gsm8k"),
        ('dataset="gsm8k"', "gsm8k"),
        ("policy=Qwen/Qwen3-1.7B@main", "Qwen/Qwen3-1.7B@main"),
        ("policy=/a folder/it's = here#1", "/a folder/it's = here#1"),
        ("policy=[x", "[x"),
        ("benchmarks=[]", ()),
        ('benchmarks=["a", "b"]', ("a", "b")),
        ("run=7", "7"),  # text keys take text, whatever it looks like
        ("run=2026-01-31", "2026-01-31"),
        ("run=1e5", "1e5"),
        ("policy=true", "true"),
        ("hub_root=", ""),
    ],
)
def test_set_takes_toml_values_and_bare_words(override: str, value: object):
    node: object = load_experiment("quickstart", [override])
    for name in override.split("=")[0].split("."):
        node = getattr(node, name)
    assert node == value
    assert type(node) is type(value)


def test_set_of_a_section_gives_it_these_keys_and_the_last_set_wins():
    experiment = load_experiment("quickstart", ["credit={epsilon = 1e-3, normalize = false}", "steps=1", "steps=2"])
    assert (experiment.credit.epsilon, experiment.credit.normalize, experiment.steps) == (1e-3, False, 2)


@pytest.mark.parametrize("override", ["seed", "=3", "", ".seed=1", "train.=1", "train..x=1"])
def test_a_set_without_a_key_or_an_equals_sign_is_answered_with_an_example(override: str):
    with pytest.raises(ConfigError) as error:
        load_experiment("quickstart", [override])
    expected = "expected key=value, for example --set train.learning_rate=1e-4"
    assert str(error.value) == f"--set {override!r}: {expected}"


def test_a_set_below_a_value_is_refused():
    with pytest.raises(ConfigError, match=r"--set 'seed\.x=1': 'seed' is a value, not a section"):
        load_experiment("quickstart", ["seed.x=1"])


def test_overrides_of_a_loaded_experiment_change_what_they_name_and_nothing_else():
    experiment = load_experiment("quickstart")
    changed = apply_overrides(experiment, ["train.learning_rate=0.5", "prompts.limit=3"])
    assert changed.train == dataclasses.replace(experiment.train, learning_rate=0.5)
    assert changed.prompts.limit == 3
    assert dataclasses.replace(changed, train=experiment.train, prompts=experiment.prompts) == experiment
    assert apply_overrides(experiment, []) == experiment
    with pytest.raises(ConfigError, match="steps: expected a whole number"):
        apply_overrides(experiment, ["steps=x"])


# --- attempts


@pytest.mark.parametrize(
    "override",
    [
        "steps=99",
        "evaluate_every=7",
        "benchmarks=[]",
        "evaluation.num_samples=9",
        "hub_root=/elsewhere",
        "device=cuda",
        "threads=3",
        "sampler.batch_tokens=1024",
        "train.micro_batch_tokens=1024",
        "train.layout=padded",
    ],
)
def test_lengthening_scoring_or_moving_a_run_continues_its_attempt(override: str):
    assert attempt_of(load_experiment("quickstart", [override])) == attempt_of(load_experiment("quickstart"))


@pytest.mark.parametrize(
    "override",
    [
        "seed=1",
        "train.learning_rate=0.5",
        "group_size=9",
        "policy=x",
        "sampler.top_p=0.9",
        "run=other",
        "estimator=grpo",
    ],
)
def test_changing_what_shapes_the_training_is_another_attempt(override: str):
    assert attempt_of(load_experiment("quickstart", [override])) != attempt_of(load_experiment("quickstart"))


# --- frozen


def test_an_experiment_and_its_sections_cannot_be_changed():
    experiment = load_experiment("quickstart")
    for holder, name in [(experiment, "seed"), (experiment.train, "learning_rate"), (experiment.sampler, "top_p")]:
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(holder, name, 1)
    assert isinstance(hash(experiment), int)  # no field is a list or another thing that can change


def test_the_experiments_live_in_deployments():
    assert EXPERIMENTS.parts[-2:] == ("deployments", "experiments")
    assert "quickstart" in experiment_names()
