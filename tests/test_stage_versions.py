"""A stage's version must change with its code: otherwise artifacts of the old code would answer for the new one.

`stage_digests.json` holds, for each stage, its version and a digest of the code that decides its result: its own module
and every module of tasks/ that this one imports, directly or not. Comments, docstrings and line breaks do not count.
"""

import ast
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
DIGESTS = Path(__file__).parent / "stage_digests.json"
ACCEPT = "TEMPO_ACCEPT_STAGES"
COMMAND = f"{ACCEPT}=1 pytest tests/test_stage_versions.py"
NOT_CODE = {
    f"tasks.{name}" for name in ("stage", "call", "place", "prefect_task", "rebuilding", "config", "experiment")
}
"""How stages are run and configured: what of it decides a result is in the stage's key."""


def file_of(module: str) -> Path | None:
    """The file of a module of tasks/, or None for a name that is no module."""
    path = ROOT.joinpath(*module.split("."))
    for file in (path.with_suffix(".py"), path / "__init__.py"):
        if file.is_file():
            return file
    return None


def imported(module: str) -> set[str]:
    """Modules of tasks/ that a module imports, wherever in the file."""
    file = file_of(module)
    assert file is not None
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {name for name in names if name.startswith("tasks.") and file_of(name)} - NOT_CODE


def modules_of(module: str) -> set[str]:
    """A module and all it imports from tasks/, directly or not."""
    found, waiting = set(), {module}
    while waiting:
        found |= waiting
        waiting = {name for known in waiting for name in imported(known)} - found
    return found


def shape(node: Any) -> Any:
    """A syntax tree as nested lists: no positions, no docstrings, no absent fields (they differ between Pythons)."""
    if isinstance(node, list):
        return [shape(item) for item in node if not is_docstring(item)]
    if isinstance(node, ast.AST):
        fields = [(name, shape(value)) for name, value in ast.iter_fields(node)]
        return [type(node).__name__, *([name, value] for name, value in fields if value not in (None, []))]
    return repr(node) if node is not None else None


def is_docstring(node: Any) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def digest_of(sources: dict[str, str]) -> str:
    """Digest of modules, by name."""
    shapes = {name: shape(ast.parse(source)) for name, source in sources.items()}
    return hashlib.sha256(json.dumps(shapes, sort_keys=True).encode()).hexdigest()[:16]


def stages_in(source: str) -> Iterator[tuple[str, int]]:
    """(name, version) of every function decorated with @stage(name, version=...); a version may be a constant."""
    tree = ast.parse(source)
    constants = {
        target.id: node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for function in tree.body:
        for decorator in getattr(function, "decorator_list", []):
            if isinstance(decorator, ast.Call) and getattr(decorator.func, "id", None) == "stage":
                (name,) = decorator.args
                (version,) = (keyword.value for keyword in decorator.keywords if keyword.arg == "version")
                assert isinstance(name, ast.Constant)
                number = constants[version.id] if isinstance(version, ast.Name) else getattr(version, "value", None)
                assert isinstance(number, int), f"stage {name.value}: expected a whole number as its version"
                yield str(name.value), number


def stages() -> dict[str, dict[str, Any]]:
    """Every stage of the project as stage_digests.json holds it."""
    found = {}
    for file in sorted((ROOT / "tasks").glob("*.py")):
        for name, version in stages_in(file.read_text()):
            modules = sorted(modules_of(f"tasks.{file.stem}"))
            sources = {module: path.read_text() for module in modules if (path := file_of(module))}
            found[name] = {"file": f"tasks/{file.name}", "version": version, "digest": digest_of(sources)}
    return found


def complaints(stored: dict[str, dict[str, Any]], now: dict[str, dict[str, Any]]) -> list[str]:
    said = [f"stage {name}: it is gone; accept with {COMMAND}" for name in sorted(set(stored) - set(now))]
    for name, current in now.items():
        known = stored.get(name, {})
        if known.get("version") != current["version"]:
            said.append(f"stage {name}: version {current['version']} is not recorded yet; accept with {COMMAND}")
        elif known.get("digest") != current["digest"]:
            said.append(
                f"stage {name}: its code changed; bump its version in {current['file']}, or accept with {COMMAND}"
            )
    return said


def test_no_stage_has_changed_its_code_without_changing_its_version():
    now = stages()
    if os.environ.get(ACCEPT):
        DIGESTS.write_text(json.dumps(now, indent=1, sort_keys=True) + "\n")
    said = complaints(json.loads(DIGESTS.read_text()), now)
    assert not said, "\n" + "\n".join(said)


def test_the_stages_of_the_loop_are_found_with_the_modules_they_compute_with():
    assert {"prompts", "policy", "generation", "verification", "credit", "training", "evaluation"} <= set(stages())
    assert {"tasks.core.prefix_tree", "tasks.core.advantage"} <= modules_of("tasks.credit")
    assert "tasks.core.objective" in modules_of("tasks.training")  # by way of tasks.engines.trainer
    assert "tasks.core.verifiers.gsm8k" in modules_of("tasks.verification")  # by way of the package's __init__
    assert "tasks.core.prefix_tree" not in modules_of("tasks.verification")


SOURCE = '"""Doc."""\nX = 1\ndef f(a):\n    """Doc."""\n    return a + X\n'


@pytest.mark.parametrize(
    "same",
    [
        SOURCE.replace("Doc", "Other words"),
        SOURCE.replace("X = 1\n", 'X = 1\n"""What X is."""\n'),
        SOURCE.replace("X = 1", "X = (\n    1  # one\n)"),
    ],
)
def test_comments_docstrings_and_line_breaks_do_not_change_the_digest(same: str):
    assert same != SOURCE
    assert digest_of({"m": same}) == digest_of({"m": SOURCE})


@pytest.mark.parametrize("other", [SOURCE.replace("1", "2"), SOURCE.replace("1", "1.0"), SOURCE.replace("+", "-")])
def test_another_constant_type_or_operation_changes_the_digest(other: str):
    assert digest_of({"m": other}) != digest_of({"m": SOURCE})


def test_a_version_is_read_from_the_decorator_also_when_it_is_a_constant():
    source = 'V = 3\n@stage("a", version=V)\ndef f(): ...\n@stage("b", version=2)\ndef g(): ...\n@other\ndef h(): ...\n'
    assert list(stages_in(source)) == [("a", 3), ("b", 2)]


def test_a_change_of_code_asks_for_a_version_and_a_new_version_to_be_recorded():
    now = {"credit": {"file": "tasks/credit.py", "version": 2, "digest": "new"}}
    assert complaints(now, now) == []
    assert complaints({"credit": now["credit"] | {"digest": "old"}}, now) == [
        "stage credit: its code changed; bump its version in tasks/credit.py, or accept with "
        "TEMPO_ACCEPT_STAGES=1 pytest tests/test_stage_versions.py"
    ]
    (unrecorded,) = complaints({"credit": now["credit"] | {"version": 1, "digest": "old"}}, now)
    assert unrecorded.startswith("stage credit: version 2 is not recorded yet")
    (gone,) = complaints(now, {})
    assert gone.startswith("stage credit: it is gone")
