"""Identity of a computation: canonical JSON and its sha256.

A fingerprint covers what decides the result (model, data, sampling, hyper-parameters) and nothing else. Dataclass
fields marked with `not_identity` (paths, devices, log levels) are left out; a type that has no canonical form raises,
so that nothing enters a key by its `repr` or its address in memory.
"""

import dataclasses
import hashlib
import json
import math
from enum import Enum
from typing import Any

NOT_IDENTITY = {"identity": False}
"""`dataclasses.field(metadata=NOT_IDENTITY)`: the field changes where or how fast a result is made, never what."""


def canonical(value: object, path: str = "$") -> Any:
    """`value` as plain JSON types: dataclasses become objects without their non-identity fields, tuples lists.

    Raises TypeError with the path of the first value that has no canonical form (sets, callables, paths, arrays, ...)
    and ValueError for a float that is not finite.
    """
    if isinstance(value, Enum):
        return canonical(value.value, path)
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{path} is {value}: only finite floats have a canonical form; give a finite number")
        return value
    if isinstance(value, list | tuple):
        return [canonical(item, f"{path}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"{path} has the key {key!r}: expected text keys, since JSON has no others")
        return {key: canonical(item, f"{path}.{key}") for key, item in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: canonical(getattr(value, field.name), f"{path}.{field.name}")
            for field in dataclasses.fields(value)
            if field.metadata.get("identity", True)
        }
    raise TypeError(
        f"{path} is a {type(value).__name__}: a fingerprint takes None, bool, int, float, text, lists, tuples, "
        "dictionaries with text keys, enums and dataclasses of these; convert it, or mark the field NOT_IDENTITY"
    )


def canonical_json(value: object) -> str:
    """One text per value: keys sorted, no spaces, floats in their shortest round-trip form."""
    return _text(canonical(value))


def _text(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def fingerprint(value: object) -> str:
    """sha256 of the canonical JSON, 64 hexadecimal digits."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def fingerprint_of_canonical(value: object) -> str:
    """`fingerprint` of what is in canonical form already, in half the time."""
    return hashlib.sha256(_text(value).encode()).hexdigest()
