"""Read an experiment: TOML plus `--set key=value` into the frozen dataclasses of config.py, or say what is wrong.

Every problem is reported at once, each with the key's path, what was expected and the nearest valid key.
"""

import dataclasses
import difflib
import re
import tomllib
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from storage.fingerprint import fingerprint
from tasks.bounds import Bounds
from tasks.config import Experiment, SamplerConfig
from tasks.verification_config import reward_problems
from tasks.vllm_config import endpoint_problems

EXPERIMENTS = Path(__file__).resolve().parent.parent / "deployments" / "experiments"

EXTENDING = ("steps", "evaluate_every", "benchmarks", "evaluation")
"""Keys that only lengthen or score a run: changing them continues the same attempt (see attempt_of)."""

TEXT_KEYS = tuple(name for name, hint in get_type_hints(Experiment).items() if hint in (str, str | None))
"""Keys whose `--set` value is text even where it reads as a number or a date: --set run=2026-01-31."""


KEEP_POLICIES = re.compile(r"all|(?P<kind>last|every)\((?P<n>[1-9][0-9]{0,8})\)")
"""What keep_policies may be."""


LOWEST_VLLM_TEMPERATURE = 0.01
"""vLLM samples colder than this at this temperature, with a warning."""


class ConfigError(ValueError):
    """The experiment cannot be used; the message lists every problem."""


def experiment_names() -> list[str]:
    """Names of the experiments that come with the project."""
    return sorted(path.stem for path in EXPERIMENTS.glob("*.toml"))


def load_experiment(name: str, overrides: Sequence[str] = ()) -> Experiment:
    """The experiment `name` (a name in deployments/experiments, or a .toml file) with `a.b=value` overrides applied.

    Raises ConfigError for an unknown name, unreadable TOML, unknown keys, wrong types and values out of range.
    """
    path = _find(name)
    try:
        tree: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None
    for override in overrides:
        apply_override(tree, override)
    tree.setdefault("run", path.stem)
    return parse_experiment(tree, origin=str(path))


def parse_experiment(tree: Mapping[str, Any], *, origin: str = "the experiment") -> Experiment:
    """Check a plain tree (as TOML or JSON gives it) against the dataclasses. Raises ConfigError with every problem."""
    problems: list[str] = []
    experiment = _parse_dataclass(Experiment, _without_none(dict(tree)), "", problems)
    if not problems:
        problems += _contradictions(experiment)
    if problems:
        raise ConfigError("\n".join([f"{origin} cannot be used:", *(f"  {problem}" for problem in problems)]))
    return experiment


def apply_overrides(experiment: Experiment, overrides: Sequence[str]) -> Experiment:
    """The experiment with `a.b=value` overrides applied. Raises ConfigError."""
    tree = dataclasses.asdict(experiment)
    for override in overrides:
        apply_override(tree, override)
    return parse_experiment(_without_none(tree))


def _without_none(tree: dict[str, Any]) -> dict[str, Any]:
    """TOML has no null: keys that are not set are absent."""
    return {
        key: _without_none(value) if isinstance(value, dict) else value
        for key, value in tree.items()
        if value is not None
    }


def attempt_of(experiment: Experiment) -> str:
    """Eight digits that name an attempt at a run: equal as long as the keys that shape its training are equal."""
    tree = {
        f.name: getattr(experiment, f.name) for f in dataclasses.fields(experiment) if f.metadata.get("identity", True)
    }
    return fingerprint({name: value for name, value in tree.items() if name not in EXTENDING})[:8]


def _find(name: str) -> Path:
    path = Path(name) if name.endswith(".toml") else EXPERIMENTS / f"{name}.toml"
    if path.is_file():
        return path
    known = experiment_names()
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ConfigError(f"no experiment {name!r}: expected a .toml file or one of {', '.join(known)}{hint}")


def apply_override(tree: dict[str, Any], override: str) -> None:
    """Set the key of a `key=value` entry in a tree, as TOML reads the value. Raises ConfigError."""
    key, equals, text = override.partition("=")
    if not equals or not all(key.split(".")):
        raise ConfigError(f"--set {override!r}: expected key=value, for example --set train.learning_rate=1e-4")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text  # a bare word or a path: text without quotes
    if key in TEXT_KEYS and not isinstance(value, str):
        value = text
    *parents, last = key.split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"--set {override!r}: {parent!r} is a value, not a section")
    tree[last] = value


def _parse_dataclass(cls: type, tree: Mapping[str, Any], path: str, problems: list[str]) -> Any:
    hints = get_type_hints(cls, include_extras=True)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for key in tree:
        if key not in fields:
            problems.append(f"{path}{key}: unknown key{_nearest(path + key, isinstance(tree[key], Mapping))}")
    values = {}
    for name, field in fields.items():
        if name in tree:
            values[name] = _parse(hints[name], tree[name], path + name, problems)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            problems.append(f"{path}{name}: missing; expected {_describe(hints[name])}")
    return None if problems else cls(**values)


def _parse(hint: Any, value: Any, path: str, problems: list[str]) -> Any:
    """`value` as the type that `hint` asks for; a misfit is added to `problems`."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        (inner,) = [argument for argument in arguments if argument is not type(None)]
        return _parse(inner, value, path, problems)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if isinstance(value, Mapping):
            return _parse_dataclass(hint, value, f"{path}.", problems)
        problems.append(f"{path}: expected a section [{path}], got {value!r}")
        return None
    kind = arguments[0] if origin is Annotated else hint
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if _fits(kind, value) and all(bounds.allow(value) for bounds in getattr(hint, "__metadata__", ())):
        return tuple(value) if get_origin(kind) is tuple else value
    choices = get_args(kind) if get_origin(kind) is Literal else ()
    near = difflib.get_close_matches(value, choices, n=1) if isinstance(value, str) else []
    hint_text = f"; did you mean {near[0]!r}?" if near else ""
    problems.append(f"{path}: expected {_describe(hint)}, got {value!r}{hint_text}")
    return None


def _fits(kind: Any, value: Any) -> bool:
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if get_origin(kind) is tuple:
        return isinstance(value, list | tuple) and all(isinstance(item, get_args(kind)[0]) for item in value)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if kind is float:
        return isinstance(value, float) and value == value and abs(value) != float("inf")
    return isinstance(value, kind)


def _describe(hint: Any) -> str:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _describe(next(a for a in arguments if a is not type(None)))
    if origin is Annotated:
        bounds = next(a for a in arguments[1:] if isinstance(a, Bounds))
        return f"{_describe(arguments[0])} {bounds.describe()}"
    if origin is Literal:
        return "one of " + ", ".join(repr(a) for a in arguments)
    if origin is tuple:
        return 'a list of text, for example ["a", "b"]'
    return {int: "a whole number", float: "a number", str: "text", bool: "true or false"}.get(hint, "a section")


def _nearest(key: str, is_section: bool) -> str:
    """The valid key most like `key`, wherever in the tree it lives; the section most like it, for a section."""
    sections = {known.split(".")[0] for known in all_keys() if "." in known}
    near = difflib.get_close_matches(key, sorted(sections) if is_section else all_keys(), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


def all_keys(cls: type = Experiment, path: str = "") -> list[str]:
    """Every key of the experiment, dotted."""
    keys = []
    for name, hint in get_type_hints(cls).items():
        nested = dataclasses.is_dataclass(hint) and isinstance(hint, type)
        keys += all_keys(hint, f"{path}{name}.") if nested else [path + name]
    return keys


def _contradictions(experiment: Experiment) -> list[str]:
    problems = []
    if (
        not experiment.run
        or not all(c.isalnum() or c in "._-" for c in experiment.run)
        or experiment.run.startswith(".")
    ):
        problems.append(f"run: expected letters, digits, '.', '_' and '-' (it names a folder), got {experiment.run!r}")
    if len(experiment.run) > 100:
        problems.append(f"run: expected at most 100 characters (it names a folder), got {len(experiment.run)}")
    if not experiment.policy:
        problems.append("policy: expected builtin/tiny-qwen3, a checkpoint's folder or a Hub id, got nothing")
    if KEEP_POLICIES.fullmatch(experiment.keep_policies) is None:
        problems.append(
            f"keep_policies: expected all, last(n) or every(n) with n at least 1, got {experiment.keep_policies!r}"
        )
    if experiment.arithmetic.min_terms > experiment.arithmetic.max_terms:
        problems.append(
            f"arithmetic.min_terms: expected at most arithmetic.max_terms = {experiment.arithmetic.max_terms}, "
            f"got {experiment.arithmetic.min_terms}"
        )
    if experiment.train.schedule != "constant" and not experiment.train.schedule_updates:
        problems.append(
            f"train.schedule_updates: expected at least 1 for the schedule {experiment.train.schedule!r} (the run's "
            f"{experiment.steps} steps of {experiment.train.updates_per_step} updates are "
            f"{experiment.steps * experiment.train.updates_per_step}), got 0"
        )
    if experiment.train.updates_per_step > experiment.prompts_per_step:
        problems.append(
            f"train.updates_per_step: expected at most prompts_per_step = {experiment.prompts_per_step} (each update "
            f"takes whole groups), got {experiment.train.updates_per_step}"
        )
    needed = experiment.prompts.max_tokens + experiment.sampler.max_tokens
    if 0 < experiment.sampler.vllm.max_model_len < needed:
        problems.append(
            f"sampler.vllm.max_model_len: expected 0 or at least prompts.max_tokens + sampler.max_tokens = {needed} "
            f"(it makes room, and cuts nothing), got {experiment.sampler.vllm.max_model_len}"
        )
    problems += reward_problems(experiment.verification.rewards.unassigned)
    return problems + _sampler_problems(experiment.sampler)


def _sampler_problems(sampler: SamplerConfig) -> list[str]:
    problems = []
    if sampler.engine == "transformers" and sampler.dtype != "fp32":
        problems.append(
            f"sampler.dtype: expected fp32 for sampler.engine = 'transformers', which samples with the trainer's "
            f"weights, got {sampler.dtype!r}; vllm takes both"
        )
    if sampler.engine != "transformers" and sampler.temperature < LOWEST_VLLM_TEMPERATURE:
        problems.append(
            f"sampler.temperature: expected at least {LOWEST_VLLM_TEMPERATURE} for vLLM, which raises lower ones to "
            f"it, got {sampler.temperature}"
        )
    if sampler.engine == "vllm-server" and not sampler.vllm.endpoints:
        problems.append(
            "sampler.vllm.endpoints: expected the address of at least one running `vllm serve` for sampler.engine = "
            "'vllm-server', for example [\"http://127.0.0.1:8000\"], got none"
        )
    if sampler.engine == "vllm-server" and not sampler.vllm.shared_path:
        problems.append(
            "sampler.vllm.shared_path: expected a folder that this machine and the servers see at the same path, for "
            "sampler.engine = 'vllm-server', got nothing"
        )
    return problems + endpoint_problems(sampler.vllm.endpoints)
