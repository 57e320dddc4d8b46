"""`tempo evaluate`: every benchmark on its own, resumed, refused, printed; on two small sets in the Hub's layout."""

import re
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows import scoring
from storage.catalog import open_catalog
from tasks.core.verdict import Judgement, Status
from tasks.core.verifiers import VERIFIERS
from tasks.core.verifiers.arithmetic import ArithmeticVerifier
from tasks.registry import DATASETS, Dataset
from tasks.rows import Example

Tempo = Callable[..., tuple[int, str, str]]


def example(index: int, row: dict[str, Any]) -> Example:
    return Example(index, row["question"], row["answer"], subject=row["subject"])


COLUMNS = {"question": "string", "answer": "string", "subject": "string"}
SUMS = Dataset(
    name="sums", verifier="arithmetic", hub_id="me/sums", revision="r", columns=COLUMNS, example=example, k=3
)
PRODUCTS = replace(SUMS, name="products", hub_id="me/products", k=2, temperature=0.5)
QUESTIONS = {
    "sums": [("3+5=", "8", "small"), ("9+9=", "8", "large"), ("7+8=", "5", "large"), ("1+1=", "2", "small")],
    "products": [("3*5=", "5", "odd"), ("9*8=", "2", "even"), ("7*7=", "9", "odd")],
}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A mirror of a registry that has these two sets and arithmetic."""
    for name in set(DATASETS) - {"arithmetic"}:
        monkeypatch.delitem(DATASETS, name)
    for dataset in (SUMS, PRODUCTS):
        monkeypatch.setitem(DATASETS, dataset.name, dataset)
        folder = tmp_path / "hub" / str(dataset.hub_id)
        folder.mkdir(parents=True)
        rows = [dict(zip(COLUMNS, row, strict=True)) for row in QUESTIONS[dataset.name]]
        pq.write_table(pa.Table.from_pylist(rows), folder / "test-00000-of-00001.parquet")
    return tmp_path / "hub"


@pytest.fixture(scope="module")
def checkpoint(stored: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained policy as a checkpoint that no data root knows."""
    files = open_catalog(stored).execute(
        "SELECT file FROM links WHERE (part = 'checkpoint' AND step = 4 AND stage = 'training') OR part = 'tokenizer'"
    )
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    for (file,) in files.fetchall():
        shutil.copytree(file, folder, dirs_exist_ok=True)
    return folder


@pytest.fixture
def evaluate(tempo: Tempo, checkpoint: Path, hub: Path, tmp_path: Path) -> Tempo:
    """`tempo evaluate` of the checkpoint with the mirror."""

    def call(*arguments: str) -> tuple[int, str, str]:
        common = ["--hub-root", hub, "--no-server", "--set", "sampler.max_tokens=12", "--data-root", tmp_path / "data"]
        return tempo("evaluate", checkpoint, *arguments, *common)

    return call


def ask(tmp_path: Path, statement: str) -> list[tuple[Any, ...]]:
    return open_catalog(tmp_path / "data").execute(statement).fetchall()


def outcomes(tmp_path: Path, benchmark: str, after_line: int = 0) -> Counter[str]:
    rows = ask(
        tmp_path,
        f"SELECT outcome FROM stage_runs WHERE purpose = 'eval' AND starts_with(label, '{benchmark}') "
        f"AND line > {after_line}",
    )
    return Counter(outcome for (outcome,) in rows)


def test_all_benchmarks_are_scored_with_their_own_k_and_temperature(evaluate, tmp_path):
    code, _, err = evaluate("--benchmarks", "all")
    assert code == 0, err
    rows = ask(tmp_path, "SELECT benchmark, decoding, n, k, temperature, max_tokens, top_p, sampler FROM scores")
    assert sorted(rows) == [
        ("products", "greedy", 3, 1, 0.0, 12, 1.0, "transformers"),
        ("products", "sampled", 3, 2, 0.5, 12, 1.0, "transformers"),
        ("sums", "greedy", 4, 1, 0.0, 12, 1.0, "transformers"),
        ("sums", "sampled", 4, 3, 1.0, 12, 1.0, "transformers"),
    ]  # arithmetic is not among them


def test_the_experiment_sets_k_and_temperature_for_all_and_the_limit_the_prompts(evaluate, tmp_path):
    keys = ["--set", "evaluation.num_samples=5", "--set", "evaluation.temperature=0.7", "--limit", "2"]
    code, _, err = evaluate("--benchmarks", "sums,arithmetic", *keys)
    assert code == 0, err
    rows = ask(tmp_path, "SELECT benchmark, n, k, temperature FROM scores WHERE decoding = 'sampled' ORDER BY ALL")
    assert rows == [("arithmetic", 2, 5, 0.7), ("sums", 2, 5, 0.7)]


def test_the_built_in_policy_is_scored_untrained(tempo, tmp_path):
    """It needs no folder and no Hub: the floor that any trained policy is compared with."""
    arguments = ["--benchmarks", "arithmetic", "--limit", "4", "--no-server", "--data-root", tmp_path / "data"]
    code, _, err = tempo("evaluate", "builtin/tiny-qwen3", *arguments)
    assert code == 0, err
    assert ask(tmp_path, "SELECT DISTINCT run, step, n FROM scores") == [("evaluate-tiny-qwen3", 0, 4)]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError("the engine is gone"), ValueError("bad rows")])
def test_stopped_between_two_benchmarks_the_same_command_does_what_is_missing_and_nothing_else(
    evaluate, tmp_path, monkeypatch, error
):
    """Prompts and, for each of 2 decodings, generation, verification and evaluation: 7 stages a benchmark."""
    generate = scoring.generation

    def stopped(place: Any, **identity: Any) -> Any:
        if place.label == "products sampled":
            raise error
        return generate(place, **identity)

    with monkeypatch.context() as patch:
        patch.setattr(scoring, "generation", stopped)
        code, _, err = evaluate("--benchmarks", "sums,products")
    assert code == (130 if error is KeyboardInterrupt else 1)
    if error is KeyboardInterrupt:
        assert "Every finished stage is stored" in err
    else:
        assert "The scores of sums are stored" in err
        assert str(error) in err
    (last,) = ask(tmp_path, "SELECT max(line) FROM stage_runs")
    assert outcomes(tmp_path, "sums") == {"ran": 7}
    assert outcomes(tmp_path, "products") == {"ran": 1}  # its prompts
    scores = "SELECT benchmark, decoding, n, k, mean FROM scores ORDER BY ALL"
    before = ask(tmp_path, scores)
    assert len(before) == 2
    code, _, err = evaluate("--benchmarks", "sums,products")
    assert code == 0, err
    assert outcomes(tmp_path, "sums", *last) == {"cached": 7}
    assert outcomes(tmp_path, "products", *last) == {"cached": 1, "ran": 6}
    after = ask(tmp_path, scores)
    assert [row for row in after if row[0] == "sums"] == before
    assert len(after) == 4


def test_a_benchmark_whose_rows_are_bad_does_not_keep_the_others_from_being_scored(evaluate, hub, tmp_path):
    rows = [{"question": "3+5=", "answer": "eight", "subject": "small"}]
    pq.write_table(pa.Table.from_pylist(rows), hub / "me" / "sums" / "test-00000-of-00001.parquet")
    code, out, err = evaluate("--benchmarks", "sums,products")
    assert code == 1
    assert "sums could not be scored; on to the next benchmark" in err
    assert "tempo: 1 of 2 benchmarks could not be scored. The scores of products are stored" in err
    assert "'eight'" in err  # the reason
    assert re.search(r"products +│ sampled +│ +3 │ +2 │", out)
    assert ask(tmp_path, "SELECT DISTINCT benchmark FROM scores") == [("products",)]
    assert ask(tmp_path, "SELECT state FROM runs") == [("failed",)]
    code, _, err = evaluate("--benchmarks", "sums")
    assert code == 2  # alone, it is the one error that there is
    assert err.splitlines()[-1].startswith("tempo: dataset sums")


def test_all_with_a_mirror_that_lacks_some_is_refused_before_any_work_with_the_command_that_works(
    evaluate, hub, tmp_path
):
    shutil.rmtree(hub / "me" / "sums")
    code, _, err = evaluate("--benchmarks", "all")
    assert code == 2
    assert f"'all' is 2 benchmarks, and {hub} lacks 1 of them: sums (me/sums)" in err
    assert "--benchmarks products." in err
    assert not (tmp_path / "data").exists()
    shutil.rmtree(hub / "me")
    _, _, err = evaluate("--benchmarks", "all")
    assert "lacks 2 of them: sums (me/sums), products (me/products). Mirror them" in err
    _, _, err = evaluate("--benchmarks", "all,arithmetic")
    assert "expected 'all' alone or names" in err


class HalfBroken(ArithmeticVerifier):
    """Right on sums of small numbers, wrong, unparseable, and broken on the others."""

    name = "half_broken"

    def judge(self, completion: str, answer: str, *, is_truncated: bool, options: Any = ()) -> Judgement:
        if answer == "5":
            raise RuntimeError("on purpose")
        status = Status.CORRECT if answer == "2" else Status.UNPARSEABLE
        return Judgement(status=status, extracted_answer="2" if answer == "2" else None)


def test_the_table_shows_every_figure_and_the_queries_where_it_comes_from(evaluate, tempo, tmp_path, monkeypatch):
    """sums, greedy: of 4 prompts one is correct, two are unparseable, one is not judged: mean 1/3 with the error
    sqrt((4/9 + 1/9 + 1/9) / 2 / 3) = 1/3; small: 1/2, large: 0 of the one that is judged; macro (1/2 + 0) / 2 = 1/4."""
    monkeypatch.setitem(VERIFIERS, "half_broken", HalfBroken())
    monkeypatch.setitem(DATASETS, "sums", replace(SUMS, verifier="half_broken"))
    code, out, err = evaluate(
        "--benchmarks", "sums", "--set", "evaluation.num_samples=0", "--set", "contracts.max_null_verdicts=1.0"
    )
    assert code == 0, err
    titles = ["benchmark", "decoding", "n", "k", "mean", "macro", "pass@k", "maj@k"]
    lines = [re.split(r" *[┃│] *", line)[1:-1] for line in out.splitlines() if line[:1] in ("┃", "│")]
    assert lines[0] == [*titles, "truncated", "unparseable", "unassigned"]
    truncated = ask(tmp_path, "SELECT truncation_rate FROM scores")[0][0]
    figures = ["4", "1", "0.333 ± 0.333", "0.250", "0.333", "0.333", f"{truncated:.1%}", "50.0%", "1"]
    assert lines[1] == ["sums", "greedy", *figures]
    queries = re.findall(r"^  \S*tempo sql --query (\w+) --run (\S+)", out, re.MULTILINE)
    assert [name for name, _ in queries] == ["score_parts", "scores"]
    (run,) = {run for _, run in queries}
    _, parts, _ = tempo(
        "sql", "--query", "score_parts", "--run", run, "--data-root", tmp_path / "data", "--format", "csv"
    )
    shown = [line.split(",")[1:7] for line in parts.splitlines()[1:]]
    assert shown == [
        ["sums", "greedy", "all", "", "4", str(1 / 3)],
        ["sums", "greedy", "subject", "large", "2", "0.0"],
        ["sums", "greedy", "subject", "small", "2", "0.5"],
    ]
    _, scores, _ = tempo("sql", "--query", "scores", "--run", run, "--data-root", tmp_path / "data", "--format", "csv")
    names, values = (line.split(",") for line in scores.splitlines())
    row = dict(zip(names, values, strict=True))
    assert (row["scorer"], row["n"], row["k"], row["temperature"], row["sampler"]) == (
        "half_broken@1", "4", "1", "0.0", "transformers",
    )  # fmt: skip
    assert row["revision"].startswith("local:")
    assert (row["macro"], row["unassigned"]) == ("0.25", "1")
