"""Identity: what decides a result enters its key, in one form only; everything else is refused or left out."""

import hashlib
import subprocess
import sys
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path

import numpy as np
import pytest

from storage.fingerprint import NOT_IDENTITY, canonical_json, fingerprint

REPOSITORY = Path(__file__).resolve().parent.parent.parent


@dataclass(frozen=True)
class Inner:
    weight: float = 0.5


@dataclass(frozen=True)
class Settings:
    name: str
    inner: Inner = Inner()
    sizes: tuple[int, ...] = (1, 2)
    device: str = field(default="cpu", metadata=NOT_IDENTITY)


class Colour(Enum):
    RED = "red"


def test_a_fingerprint_is_the_sha256_of_the_canonical_json():
    text = '{"a":1,"b":[0.1,null,true],"ö":"x"}'
    assert canonical_json({"ö": "x", "b": (0.1, None, True), "a": 1}) == text
    assert fingerprint({"ö": "x", "b": (0.1, None, True), "a": 1}) == hashlib.sha256(text.encode()).hexdigest()


def test_the_order_of_keys_does_not_matter():
    assert fingerprint({"a": 1, "b": {"c": 2, "d": 3}}) == fingerprint({"b": {"d": 3, "c": 2}, "a": 1})


def test_the_order_of_a_list_matters():
    assert fingerprint([1, 2]) != fingerprint([2, 1])


def test_a_tuple_is_a_list_and_an_enum_is_its_value():
    assert fingerprint((1, (2, 3))) == fingerprint([1, [2, 3]])
    assert fingerprint(Colour.RED) == fingerprint("red")


def test_values_that_python_calls_equal_but_json_writes_differently_differ():
    whole, real, flag, text, nothing = map(fingerprint, (1, 1.0, True, "1", None))
    assert 1 == 1.0 == True
    assert len({whole, real, flag, text, nothing}) == 5


def test_neighbouring_floats_differ():
    assert fingerprint(0.1 + 0.2) != fingerprint(0.3)  # 0.30000000000000004


def test_a_dataclass_is_the_object_of_its_identity_fields():
    assert canonical_json(Settings("x")) == '{"inner":{"weight":0.5},"name":"x","sizes":[1,2]}'


def test_fields_marked_not_identity_are_left_out_and_the_others_are_not():
    settings = Settings("x")
    assert fingerprint(replace(settings, device="cuda")) == fingerprint(settings)
    assert fingerprint(replace(settings, inner=Inner(0.25))) != fingerprint(settings)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ({1, 2}, "set"),
        (len, "builtin_function_or_method"),
        (lambda: 1, "function"),
        (Path("/tmp"), "PosixPath"),
        (np.zeros(2), "ndarray"),
        (np.int64(1), "int64"),
        (b"x", "bytes"),
        (1j, "complex"),
        (Settings, "type"),
    ],
)
def test_what_has_no_canonical_form_is_refused_with_its_path_and_type(value: object, kind: str):
    with pytest.raises(TypeError, match=rf"^\$\.config\[1\]\.value is a {kind}: "):
        fingerprint({"config": [0, {"value": value}]})


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_a_float_that_is_not_finite_is_refused_with_its_path(number: float):
    with pytest.raises(ValueError, match=r"^\$\.inner\.weight is -?(nan|inf): only finite floats"):
        fingerprint(Settings("x", inner=Inner(number)))


def test_keys_that_are_not_text_are_refused_since_json_would_merge_1_with_its_text():
    with pytest.raises(TypeError, match=r"^\$\.table has the key 1: expected text keys"):
        fingerprint({"table": {1: "a", "1": "b"}})


def test_another_process_with_another_hash_seed_gives_the_same_fingerprint():
    code = (
        "from storage.fingerprint import fingerprint; print(fingerprint({'b': [1.5, 'é'], 'a': {'y': 1, 'x': None}}))"
    )
    here = fingerprint({"a": {"x": None, "y": 1}, "b": [1.5, "é"]})
    for seed in ("1", "2"):
        answer = subprocess.run(
            [sys.executable, "-c", code],
            cwd=REPOSITORY,
            env={"PYTHONHASHSEED": seed, "PYTHONUTF8": "1"},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        assert answer.stdout.strip() == here
