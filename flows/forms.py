"""Forms: the parameters of the flows, made from the one declaration of the experiment's keys in tasks/config.py.

A form has every key of its section with its bounds, choices and description, and no key has to be filled in: what is
left empty is as the experiment's file says. Prefect shows a form as such, and its server refuses a misfit before a flow
run exists. `overrides` turns a filled form into the `key=value` entries of `tempo train --set`.
"""

import ast
import dataclasses
import functools
import inspect
import json
import types
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, create_model, model_serializer

from flows.stored_runs import ALL, SCORING_KEYS
from flows.takes import StageName
from tasks.bounds import Bounds
from tasks.config import Experiment
from tasks.core.advantage import ESTIMATORS
from tasks.core.verifiers import VERIFIERS
from tasks.datasets import DATASETS
from tasks.experiment import apply_override, experiment_names


def _only_what_can_be_filled_in(schema: dict[str, Any]) -> None:
    """A key that is left out needs no null: without it the page shows one field, and not a choice of two."""
    for entry in schema["properties"].values():
        entry.pop("default", None)
        kinds = [kind for kind in entry.get("anyOf", []) if kind.get("type") != "null"]
        if len(kinds) == 1:
            del entry["anyOf"]
            entry.update(kinds[0] | entry)


class Form(BaseModel):
    """Some keys, all optional; unknown ones are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, json_schema_extra=_only_what_can_be_filled_in)

    @model_serializer(mode="wrap")
    def _filled_in(self, serialize: Any) -> dict[str, Any]:
        """Without what is left empty: the page of a run then shows what was asked, and nothing else."""
        return {name: value for name, value in serialize(self).items() if value is not None}


def overrides(form: Form | None, path: str = "") -> list[str]:
    """The filled-in keys as `a.b=value` entries, values written as TOML.

    >>> overrides(Settings(steps=3, benchmarks=("arithmetic",), train={"learning_rate": 1e-4}))
    ['steps=3', 'benchmarks=["arithmetic"]', 'train.learning_rate=0.0001']
    """
    entries = []
    for name in type(form).model_fields if form is not None else ():
        value = getattr(form, name)
        if isinstance(value, Form):
            entries += overrides(value, f"{path}{name}.")
        elif value is not None:
            entries.append(f"{path}{name}={_toml(value)}")
    return entries


def _toml(value: Any) -> str:
    """A number, text, truth value or list as TOML, which writes them as JSON does."""
    return json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)


def filled_in(form: type[Form], entries: Sequence[str]) -> Form:
    """The form as `key=value` entries fill it in: the other way round."""
    tree: dict[str, Any] = {}
    for entry in entries:
        apply_override(tree, entry)
    return form.model_validate(tree)


def form_of(section: type, name: str, keys: tuple[str, ...] = ()) -> type[Form]:
    """The form of a dataclass of tasks/config.py: all its fields, or `keys`; nested dataclasses become nested forms."""
    hints = get_type_hints(section, include_extras=True)
    descriptions = dict(_field_docstrings(section))
    fields: dict[str, Any] = {
        field.name: (_optional(hints[field.name]), Field(default=None, description=descriptions.get(field.name)))
        for field in dataclasses.fields(section)
        if not keys or field.name in keys
    }
    return create_model(name, __base__=Form, __doc__=inspect.getdoc(section), **fields)


def _optional(hint: Any) -> Any:
    """The field's type as pydantic bounds it, or None."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        kinds = [argument for argument in arguments if argument is not type(None)]
        return _optional(kinds[0]) if len(kinds) == 1 else hint | None
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _nested(hint) | None
    if origin is Annotated:
        kind, *metadata = arguments
        bounds = next((entry for entry in metadata if isinstance(entry, Bounds)), Bounds())
        limits = {"ge": bounds.at_least, "le": bounds.at_most, "gt": bounds.above}
        given = {key: kind(limit) for key, limit in limits.items() if limit is not None}
        return Annotated[kind, Field(strict=kind is int, allow_inf_nan=None if kind is int else False, **given)] | None
    return hint | None


@functools.cache
def _nested(section: type) -> type[Form]:
    return form_of(section, section.__name__.replace("Config", "Settings"))


def _field_docstrings(section: type) -> Iterator[tuple[str, str]]:
    """(field, the string below it): how tasks/config.py documents its keys."""
    (definition,) = ast.parse(inspect.getsource(section)).body
    assert isinstance(definition, ast.ClassDef)
    for field, below in zip(definition.body, definition.body[1:], strict=False):
        is_text = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and is_text:
            yield field.target.id, inspect.cleandoc(str(below.value.value))  # type: ignore[attr-defined]


Settings = form_of(Experiment, "Settings")
"""Every key of an experiment."""

ScoringSettings = form_of(Experiment, "ScoringSettings", tuple(key.rstrip(".") for key in SCORING_KEYS))
"""The keys that change how a policy is scored."""

CreditingSettings = form_of(Experiment, "CreditingSettings", ("verification", "credit", "contracts"))
"""The keys that change how stored rollouts are judged and credited."""

BenchmarkName = Literal[(ALL, *sorted(DATASETS))]  # type: ignore[valid-type]
EstimatorName = Literal[tuple(ESTIMATORS)]  # type: ignore[valid-type]
VerifierName = Literal[  # type: ignore[valid-type]
    tuple(name for verifier in sorted(VERIFIERS) for name in (verifier, f"{verifier}@{VERIFIERS[verifier].version}"))
]
ExperimentName = Annotated[
    str,
    Field(
        pattern="^(" + "|".join(name.replace(".", "[.]") for name in experiment_names()) + "|.+[.]toml)$",
        description="A name in deployments/experiments, or the path of a .toml file on the worker's machine.",
    ),
]


class RerunForm(Form):
    """Compute one stage of the run again, and then what depends on it."""

    from_stage: StageName = Field(description="The stage to compute again although storage has it.")
    step: Annotated[int, Field(ge=0, strict=True)] | None = Field(
        default=None, description="At this step only; empty: wherever the run has that stage."
    )
    purpose: Literal["train", "eval"] = Field(
        default="train", description="'eval' for the generation and verification of the benchmarks."
    )
    force: bool | None = Field(
        default=None, description="Also compute again what depends on it when the new contents equal the old ones."
    )
    settings: Settings | None = Field(  # type: ignore[valid-type]
        default=None, description="Settings that hold from that step on."
    )
