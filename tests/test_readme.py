"""README's promises, executed: its SQL on a run's real tables, its commands and folders as they are."""

import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import duckdb
import numpy as np
import pytest

from flows.cli import _parser
from flows.loop import train_experiment
from storage.catalog import open_catalog, run_query
from tasks.core.advantage import compute_advantages
from tasks.core.prefix_tree import edge_token_ids
from tasks.core.verifiers import VERIFIERS
from tasks.experiment import experiment_names, load_experiment
from tests.tasks.core.verifier_cases import CASES, load_cases

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"(?:^    .*\n|^\n(?=    ))+", README, re.MULTILINE)
QUESTION = re.compile(r'^    \$ tempo sql "([^"]*)"\n((?:    [^\n]*\n)+)', re.MULTILINE)
QUESTIONS = QUESTION.findall(README)


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Iterator[duckdb.DuckDBPyConnection]:
    """A quickstart, reduced so that it takes seconds; the README's figures come from the whole one."""
    data = tmp_path_factory.mktemp("readme") / "data"
    reduced = [
        "steps=2", "prompts_per_step=8", "group_size=8", "warm_start.updates=30", "arithmetic.num_train=256",
        "arithmetic.num_test=8", "arithmetic.min_terms=2", "arithmetic.max_terms=3",
    ]  # fmt: skip
    train_experiment(load_experiment("quickstart", reduced), data, uses_prefect=False)
    with open_catalog(data) as connection:
        yield connection


def test_the_readme_asks_at_least_five_questions_in_sql():
    assert len(QUESTIONS) >= 5


@pytest.mark.parametrize(("statement", "shown"), QUESTIONS, ids=[f"question {i + 1}" for i in range(len(QUESTIONS))])
def test_each_question_is_answered_with_the_columns_that_the_readme_shows(catalog, statement, shown):
    step = re.search(r"step = (\d+)", statement)  # the reduced run ends at step 2
    if step:
        statement = statement.replace(step.group(), "step = 1")
    statement = re.sub(r"rollout_id = '[^']*'", "rollout_id = (SELECT min(rollout_id) FROM advantages)", statement)
    answer = run_query(catalog, statement)
    columns = [column[0] for column in answer.description]
    assert shown.splitlines()[0].split() == columns
    assert len(answer.fetchall()) > 0 or "quickstart-vllm" in statement  # a run that needs vLLM


def test_the_picture_of_one_prefix_tree_has_the_values_that_the_product_computes():
    completions = ["3+5=8;8*2=6#6"] * 4 + ["3+5=8;8*2=5#5"] + ["3+5=7;7*2=4#4"] * 2 + ["3+5=7;7*2=6#6"]
    rewards = np.array([1, 1, 1, 1, 0, 0, 0, 1], dtype=np.float64)
    tokens = np.frombuffer("".join(completions).encode(), dtype=np.uint8).astype(np.int32)
    offsets, groups = 13 * np.arange(9), np.array([0, 8])
    result = compute_advantages("tempo", tokens, offsets, groups, rewards)
    tree = result.tree
    edges, begin = edge_token_ids(tree, tokens)
    computed = {}
    for node in range(1, len(begin) - 1):  # the root has no edge
        parent = tree.node_parent_M[node]
        edge = bytes(edges[begin[node] : begin[node + 1]].astype(np.uint8)).decode()
        change = result.value_M[node] - result.value_M[parent]
        computed[edge, int(tree.node_num_completions_M[node])] = (result.value_M[node], change)
    shown = re.findall(r"([^ │├└─]+) +(\d) completions  V = ([\d.]+)(?:  δ = ([-+\d.]+))?", README)
    assert len(shown) == len(computed) == 7
    for edge, count, value, change in shown:
        assert computed[edge, int(count)] == pytest.approx((float(value), float(change or 0)), abs=5e-4)
    dense = result.advantages.reshape(8, 13)
    assert dense[7, [0, 4, 10]] == pytest.approx([0.72, 0.16, 2.01], abs=0.005)  # any token, the 7, the lucky 6
    assert dense[0, 4] == pytest.approx(1.06, abs=0.005)


def test_every_tempo_command_of_the_readme_is_one_that_the_parser_accepts():
    text = README.replace("\\\n", " ")
    commands = re.findall(r"^    (?:\$ )?(?:\.venv/bin/)?tempo ((?:train|evaluate|runs).*)$", text, re.MULTILINE)
    assert len(commands) >= 2
    for command in commands:
        options = _parser().parse_args(shlex.split(command))
        if hasattr(options, "experiment"):
            load_experiment(options.experiment, options.set)


def test_every_experiment_and_folder_that_the_readme_names_exists():
    for name in ("quickstart", "gsm8k", "math-qwen3-1.7b-tempo"):
        assert f"`{name}`" in README
        assert name in experiment_names()
    for folder in re.findall(r"^    (\w+)/ ", README, re.MULTILINE):
        assert (ROOT / folder).is_dir() or (ROOT / "tasks" / folder).is_dir()


def test_the_python_program_of_the_readme_compiles():
    (program,) = re.findall(r"<<'PY'\n(.*?)\n    PY", README, re.DOTALL)
    compile("\n".join(line[4:] for line in program.splitlines()), "README.md", "exec")
    assert sys.version_info >= (3, 11)


def test_the_readme_s_numbers_of_cases_and_completions_are_those_of_the_files():
    cases = [case for name in VERIFIERS if (CASES / f"{name}.json").exists() for case in load_cases(name)]
    num_adversarial = sum(case.get("adversarial", False) for case in cases)
    assert f"{len(cases):,} cases with provenance, {num_adversarial} of them adversarial" in README
    compared = ROOT / "tests" / "comparability"
    num_scorers = len(json.loads((compared / "disagreements.json").read_text(encoding="utf-8"))["table"])
    num_completions = len((compared / "completions.jsonl").read_text(encoding="utf-8").splitlines())
    assert f"{num_scorers} scorers of lm-eval, verl and math-verify say otherwise on {num_completions}" in README
