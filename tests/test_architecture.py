"""Imports point one way, heavy libraries load late, files and functions stay short."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LAYERS = ("storage", "tasks", "flows", "deployments")
FILES = sorted(path for layer in LAYERS for path in (ROOT / layer).rglob("*.py"))
STANDARD = set(sys.stdlib_module_names)
OURS = set(LAYERS)

MAY_IMPORT = {
    "storage": ({"numpy", "pyarrow", "duckdb"}, ["storage*"]),
    "tasks/core": ({"numpy", "torch"}, ["tasks.core*"]),
}
"""Layers that are closed: what they may import beside the standard library, from outside and from here."""

MUST_NOT_IMPORT = {
    "tasks/engines": ["prefect*", "storage*", "flows*", "deployments*"],
    "tasks": ["flows*", "deployments*"],
    "flows": ["deployments*"],
}


def imports(source: str) -> set[str]:
    """Every imported module, dotted, wherever in the file the import stands (also under `if TYPE_CHECKING`)."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import; this project imports by full names"
            assert node.module is not None
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def files_of(layer: str) -> list[Path]:
    return [path for path in FILES if path.is_relative_to(ROOT / layer)]


def matches(module: str, patterns: list[str]) -> bool:
    return any(fnmatch(module, pattern) for pattern in patterns)


def test_imports_are_found_in_every_form_and_at_every_depth():
    source = "import a.b as c\nfrom d import e, f\ndef g():\n    if True:\n        from h.i import j\n"
    assert imports(source) == {"a.b", "d.e", "d.f", "h.i.j"}


@pytest.mark.parametrize("layer", MAY_IMPORT)
def test_a_closed_layer_imports_only_the_standard_library_itself_and_what_it_is_granted(layer: str):
    outside, inside = MAY_IMPORT[layer]
    granted = STANDARD | outside
    modules = {(path.relative_to(ROOT), m) for path in files_of(layer) for m in imports(path.read_text())}
    assert modules
    assert [
        f"{path}: {m}" for path, m in sorted(modules) if m.split(".")[0] not in granted and not matches(m, inside)
    ] == []


@pytest.mark.parametrize("layer", MUST_NOT_IMPORT)
def test_a_layer_imports_nothing_of_the_layers_above_it(layer: str):
    modules = {(path.relative_to(ROOT), m) for path in files_of(layer) for m in imports(path.read_text())}
    assert modules
    assert [f"{path}: {m}" for path, m in sorted(modules) if matches(m, MUST_NOT_IMPORT[layer])] == []


def test_every_file_of_the_project_belongs_to_a_layer_that_has_a_rule():
    ruled = {path for layer in (*MAY_IMPORT, *MUST_NOT_IMPORT) for path in files_of(layer)}
    assert sorted(set(FILES) - ruled) == []
    assert len(ruled) > 30


def names_in(*layers: str) -> list[str]:
    """Every module of the layers, dotted."""
    paths = [path.relative_to(ROOT).with_suffix("") for layer in layers for path in files_of(layer)]
    return [".".join(path.parts).removesuffix(".__init__") for path in paths]


HEAVY = {"torch", "transformers", "prefect", "vllm", "pyarrow", "duckdb", "datasets"}


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        (f"import {', '.join(names_in('tasks/core'))}", HEAVY - {"torch"}),
        (f"import {', '.join(names_in('storage'))}", HEAVY - {"pyarrow", "duckdb"}),
        ("import flows.cli; flows.cli._parser().format_help()", HEAVY),
        ("import tasks.config, tasks.experiment; tasks.experiment.load_experiment('quickstart')", HEAVY),
    ],
    ids=["core", "storage", "the command's parser", "experiments"],
)
def test_in_a_process_of_its_own_this_loads_none_of_the_heavy_libraries_it_does_not_need(code: str, absent: set[str]):
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; import sys; print(*sys.modules)"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split())
    assert loaded & OURS
    assert sorted(loaded & absent) == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_has_fewer_than_300_lines_and_its_functions_fewer_than_50(path: Path):
    source = path.read_text()
    assert len(source.splitlines()) < 300
    assert [f"{name}: {length} lines" for name, length in functions(source) if length >= 50] == []


def functions(source: str) -> Iterator[tuple[str, int]]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            yield node.name, node.end_lineno - node.lineno + 1
