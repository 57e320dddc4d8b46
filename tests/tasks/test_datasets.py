"""Every set of the registry is loaded from its layout on the Hub; copies that are not it are refused, with the rows."""

import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows.run import find_sources
from tasks.config import Experiment, PromptsConfig
from tasks.core.verifiers import VERIFIERS
from tasks.datasets import (
    DATASETS,
    BadDataset,
    DatasetSource,
    Example,
    available_benchmarks,
    dataset_source,
    get_dataset,
    type_name,
)
from tasks.engines import hub
from tasks.experiment import experiment_names, load_experiment

Row = dict[str, Any]

MATH = [
    {
        "problem": " Find $1+1$.",
        "level": "Level 1",
        "type": "Algebra",
        "solution": r"$1+1=\boxed{1+1}$, which is $\boxed{2}$.",
    },
    {"problem": "Halve $1$.", "level": "Level 5", "type": "Prealgebra", "solution": r"It is $\boxed{\frac{1}{2}}$."},
]
MATH500 = [
    {
        "problem": "Find $2+2$.",
        "solution": r"It is $\boxed{4}$.",
        "answer": "4",
        "subject": "Algebra",
        "level": 3,
        "unique_id": "test/algebra/1.json",
    }
]
AMC23 = [{"id": i, "question": f"What is {i}?", "answer": a, "url": "u"} for i, a in enumerate(["27.0", "-4", "3.50"])]
MEDQA = [
    {
        "question": f"What helps against {disease}?",
        "answer": options[at],
        "options": dict(zip("ABCD", options, strict=True)),
        "meta_info": "step1",
        "answer_idx": "ABCD"[at],
        "metamap_phrases": ["help"],
    }
    for disease, options, at in [
        ("fever", ["Rest", "Aspirin", "Salt", "Sun"], 1),
        ("cold", ["Tea", "Ice", "x", "y"], 0),
    ]
]
MEDMCQA = [
    {
        "id": str(i),
        "question": f"Which is number {i}?",
        **{f"op{letter}": f"number {(i + j) % 4}" for j, letter in enumerate("abcd")},
        "cop": i % 4,
        "choice_type": "single",
        "exp": None,
        "subject_name": "Anatomy",
        "topic_name": None,
    }
    for i in range(24)
]
GSM_HARD = [{"input": "How many?", "code": "pass", "target": target} for target in (-9867630.0, 0.0001220703125, 9e12)]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def write(file: Path, rows: Sequence[Row]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(list(rows)), file)
    else:
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def mmlu(subject: str, answer: int = 3) -> list[Row]:
    return [{"question": f"Q of {subject}", "subject": subject, "choices": ["a", "b", "c", "d"], "answer": answer}]


LAYOUT: dict[str, dict[str, Sequence[Row]]] = {
    "math": {"data/train-00000-of-00001.parquet": MATH, "data/test-00000-of-00001.parquet": MATH[::-1]},
    "math500": {"test.jsonl": MATH500},
    "amc23": {"test-00000-of-00001.parquet": AMC23},
    "gsm_hard": {"data/train-00000-of-00001.parquet": GSM_HARD},
    "medqa": {"phrases_no_exclude_train.jsonl": MEDQA, "phrases_no_exclude_test.jsonl": MEDQA[1:]},
    "medmcqa": {"data/validation-00000-of-00001.parquet": MEDMCQA},
    "mmlu_medical": {f"{s}/test-00000-of-00001.parquet": mmlu(s) for s in DATASETS["mmlu_medical"].configs},
}
"""Files of each set, named as on the Hub."""


def mirror(root: Path, name: str, files: dict[str, Sequence[Row]] | None = None) -> Experiment:
    """A mirror of made-up rows, and an experiment that reads it."""
    dataset = DATASETS[name]
    folder = root / str(dataset.hub_id)
    for file, rows in (LAYOUT[name] if files is None else files).items():
        write(folder / file, rows)
    if dataset.configs:
        configs = "".join(
            f"- config_name: {config}\n  data_files:\n  - split: test\n    path: {config}/test-*\n"
            for config in dataset.configs
        )
        (folder / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    return Experiment(run="test", hub_root=str(root))


def load(experiment: Experiment, name: str, *, is_benchmark: bool = True) -> list[Example]:
    return dataset_source(experiment, name, is_benchmark=is_benchmark).examples()


def test_math_is_read_with_the_last_box_as_its_answer(tmp_path: Path) -> None:
    experiment = mirror(tmp_path, "math")
    first, second = load(experiment, "math", is_benchmark=False)
    assert first == Example(0, "Find $1+1$.", "2", (MATH[0]["solution"],), subject="Algebra", level="Level 1")
    assert (second.answer, second.level) == (r"\frac{1}{2}", "Level 5")
    assert [example.question for example in load(experiment, "math")] == ["Halve $1$.", "Find $1+1$."]


def test_math500_brings_its_answer_and_a_level_as_math_writes_it(tmp_path: Path) -> None:
    (example,) = load(mirror(tmp_path, "math500"), "math500")
    assert (example.answer, example.subject, example.level) == ("4", "Algebra", "Level 3")


@pytest.mark.parametrize("answers", [["27.0", "-4", "3.5"], [27.0, -4.0, 3.5]])
def test_amc23_s_answers_are_written_as_whole_numbers_where_they_are(tmp_path: Path, answers: list[Any]) -> None:
    rows = [row | {"answer": answer} for row, answer in zip(AMC23, answers, strict=True)]
    experiment = mirror(tmp_path, "amc23", {"test-00000-of-00001.parquet": rows})
    assert [example.answer for example in load(experiment, "amc23")] == ["27", "-4", "3.5"]


def test_gsm_hard_s_targets_are_plain_decimals(tmp_path: Path) -> None:
    answers = [example.answer for example in load(mirror(tmp_path, "gsm_hard"), "gsm_hard")]
    assert answers == ["-9867630", "0.0001220703125", "9000000000000"]


def test_medqa_is_read_for_training_and_as_a_benchmark(tmp_path: Path) -> None:
    experiment = mirror(tmp_path, "medqa")
    examples = load(experiment, "medqa", is_benchmark=False)
    assert [example.answer for example in examples] == ["B", "A"]
    assert examples[0].options == ("Rest", "Aspirin", "Salt", "Sun")
    assert [example.question for example in load(experiment, "medqa")] == ["What helps against cold?"]


def test_medmcqa_s_key_counts_from_0(tmp_path: Path) -> None:
    examples = load(mirror(tmp_path, "medmcqa"), "medmcqa")
    assert [example.answer for example in examples[:5]] == ["A", "B", "C", "D", "A"]
    assert examples[0].options == ("number 0", "number 1", "number 2", "number 3")
    assert examples[0].subject == "Anatomy"


def test_mmlu_s_rows_are_numbered_over_its_subjects_in_order(tmp_path: Path) -> None:
    examples = load(mirror(tmp_path, "mmlu_medical"), "mmlu_medical")
    assert [(e.row_index, e.subject, e.answer) for e in examples] == [
        (i, subject, "D") for i, subject in enumerate(DATASETS["mmlu_medical"].configs)
    ]


def math_rows(**changes: Any) -> dict[str, Sequence[Row]]:
    return {"data/test-00000-of-00001.parquet": [MATH[0], MATH[1] | changes]}


def medqa_rows(**changes: Any) -> dict[str, Sequence[Row]]:
    return {"phrases_no_exclude_test.jsonl": [MEDQA[0], MEDQA[1] | changes]}


def medmcqa_rows(rows: Sequence[Row]) -> dict[str, Sequence[Row]]:
    return {"data/validation-00000-of-00001.parquet": rows}


ANATOMY = "anatomy/test-00000-of-00001.parquet"
REFUSED: list[tuple[str, dict[str, Sequence[Row]], str]] = [
    ("math", math_rows(problem=" "), r"split test: 1 of 2 rows cannot be used: row 1: the column problem is empty"),
    ("math", math_rows(solution="no box"), r"1 of 2 rows cannot be used: row 1: .*no box"),
    ("math", math_rows(level=None), r"row 1: the column level is empty"),
    ("math500", {"test.jsonl": [MATH500[0] | {"answer": ""}]}, "row 0: the column answer is empty"),
    ("math500", {"test.jsonl": [MATH500[0] | {"level": "3"}]}, "the column level has the type string: expected int64"),
    ("amc23", {"test.jsonl": [AMC23[0], AMC23[1] | {"answer": None}]}, "row 1: the column answer is None"),
    (
        "gsm_hard",
        {"train.jsonl": [{"input": "How many?", "target": "7"}]},
        "target has the type string: expected float",
    ),
    ("medqa", medqa_rows(answer_idx="E"), "row 1: answer_idx is 'E': expected one of A, B, C, D"),
    ("medqa", medqa_rows(answer_idx="B"), "row 1: answer_idx is B, which is 'Ice', and answer is 'Tea'"),
    ("medqa", medqa_rows(options=MEDQA[1]["options"] | {"C": ""}), "row 1: the option C is empty"),
    ("medqa", {"test.jsonl": [{"question": "?"}]}, "expected the columns question, answer, options, answer_idx, got q"),
    ("medmcqa", medmcqa_rows([MEDMCQA[0] | {"cop": 4}]), "row 0: cop is 4: expected 0 to 3: this copy counts from 1"),
    ("medmcqa", medmcqa_rows([MEDMCQA[0] | {"cop": -1}]), r"row 0: cop is -1: expected 0 to 3\. "),
    (
        "medmcqa",
        medmcqa_rows([row | {"cop": 1 + i % 3} for i, row in enumerate(MEDMCQA[:20])]),
        "cop is never 0 in 20 rows: this copy counts from 1, as the original files do",
    ),
    ("mmlu_medical", {ANATOMY: mmlu("anatomy", 4)}, "row 0: answer is 4: expected 0 to 3"),
    ("mmlu_medical", {ANATOMY: mmlu("virology")}, "row 0: its subject is 'virology': expected .* 'anatomy'"),
    ("mmlu_medical", {ANATOMY: [mmlu("anatomy")[0] | {"choices": ["a", "b"]}]}, "row 0: the row has 2 options: expect"),
    ("mmlu_medical", {ANATOMY: mmlu("anatomy") * 136}, "anatomy/test has 136 rows: expected at most 135"),
]


@pytest.mark.parametrize(("name", "files", "reason"), REFUSED)
def test_a_copy_that_is_not_the_set_is_refused_with_its_rows_and_a_remedy(
    tmp_path: Path, name: str, files: dict[str, Sequence[Row]], reason: str
) -> None:
    kept = {file: rows for file, rows in LAYOUT[name].items() if name == "mmlu_medical"}
    with pytest.raises(BadDataset, match=f"^dataset {name}, .*{reason}") as error:
        load(mirror(tmp_path, name, kept | files), name)
    dataset = DATASETS[name]
    assert f"Correct the copy in {tmp_path}/{dataset.hub_id}, or mirror revision" in str(error.value)
    assert dataset.revision[:12] in str(error.value)


def test_a_few_keys_without_an_a_may_be_chance(tmp_path: Path) -> None:
    rows = [row | {"cop": 1 + i % 3} for i, row in enumerate(MEDMCQA[:19])]
    assert len(load(mirror(tmp_path, "medmcqa", medmcqa_rows(rows)), "medmcqa")) == 19


def test_five_bad_rows_are_named_and_the_others_counted(tmp_path: Path) -> None:
    rows = [MATH500[0] | {"answer": "" if i % 2 else "4"} for i in range(14)]
    with pytest.raises(BadDataset, match="7 of 14 rows cannot be used: row 1: ") as error:
        load(mirror(tmp_path, "math500", {"test.jsonl": rows}), "math500")
    assert re.findall(r"row (\d+)", str(error.value)) == ["1", "3", "5", "7", "9"]
    assert "and 2 more" in str(error.value)


def test_the_hub_must_have_all_rows_where_a_mirror_may_lack_some(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def rows(*identity: Any) -> Any:
        asked.append(identity)
        return datasets.Dataset.from_list(MATH500 * 499)

    monkeypatch.setattr(hub, "load_rows", rows)
    source = dataset_source(Experiment(run="test"), "math500", is_benchmark=True)
    with pytest.raises(
        BadDataset, match=r"test has 499 rows: expected 500\. The registry describes revision 6e4ed1a2"
    ) as e:
        source.examples()
    assert "--hub-root FOLDER" in str(e.value)
    assert asked == [("HuggingFaceH4/MATH-500", None, "test", DATASETS["math500"].revision, None)]
    assert len(dataclasses.replace(source, hub_root="/mirror").examples()) == 499


def test_labels_of_the_hub_are_the_numbers_they_are_stored_as() -> None:
    features = datasets.Features(
        {"cop": datasets.ClassLabel(names=["a", "b"]), "choices": datasets.List(datasets.Value("large_string"))}
    )
    assert [type_name(feature) for feature in features.values()] == ["int64", "list<string>"]
    assert type_name({"B": datasets.Value("string"), "A": datasets.Value("int64")}) == "struct<A: int64, B: string>"


def test_revisions_are_commits_and_every_split_that_is_used_has_a_number_of_rows() -> None:
    for dataset in DATASETS.values():
        if dataset.hub_id:
            assert re.fullmatch("[0-9a-f]{40}", dataset.revision)
            splits = {dataset.eval_split, dataset.train_split, dataset.few_shot_split} - {None}
            parts = {f"{config}/{split}" for config in dataset.configs for split in splits} or splits
            assert set(dataset.num_rows) == parts
            assert dataset.few_shot
            assert dataset.few_shot_split or DATASETS[dataset.few_shot].train_split


def test_every_verifier_of_the_registry_exists() -> None:
    assert {dataset.verifier for dataset in DATASETS.values()} <= set(VERIFIERS)


def test_a_benchmark_is_no_training_set() -> None:
    assert get_dataset("math500", "benchmarks").eval_split == "test"
    with pytest.raises(
        ValueError, match=r"dataset: 'math500' is a benchmark, without a split.* gsm8k, math, medqa; did"
    ):
        get_dataset("math500", "dataset")


@pytest.mark.parametrize("name", ["math-qwen3-1.7b-tempo", "medqa-qwen3-4b-grpo"])
def test_the_paper_s_experiments_find_their_sets_in_a_mirror(tmp_path: Path, name: str) -> None:
    for mirrored in LAYOUT:
        mirror(tmp_path, mirrored)
    overrides = ["policy=builtin/tiny-qwen3", "sampler.engine=transformers", "sampler.dtype=fp32"]
    experiment = load_experiment(name, [*overrides, f"hub_root={tmp_path}"])
    sources = find_sources(experiment)
    assert sources.prompts.dataset == experiment.dataset
    assert tuple(sources.benchmarks) == experiment.benchmarks


@pytest.mark.parametrize("name", experiment_names())
def test_every_experiment_names_sets_of_the_registry_and_their_verifier(name: str) -> None:
    experiment = load_experiment(name)
    dataset = get_dataset(experiment.dataset, "dataset")
    assert experiment.verifier in (None, dataset.verifier)
    assert all(get_dataset(benchmark, "benchmarks").name == benchmark for benchmark in experiment.benchmarks)
    assert experiment.benchmarks


def test_a_mirror_s_benchmarks_are_listed_and_what_it_lacks(tmp_path: Path) -> None:
    mirror(tmp_path, "math500")
    mirror(tmp_path, "math", {"data/train-00000-of-00001.parquet": MATH})  # its benchmark is the test split
    mirror(tmp_path, "mmlu_medical", {ANATOMY: mmlu("anatomy")})  # one of six configurations
    mirror(tmp_path, "medqa", {"phrases_no_exclude_test.jsonl": MEDQA})
    present, missing = available_benchmarks(str(tmp_path))
    assert present == ("math500", "medqa")
    assert missing == ("gsm8k", "math", "amc23", "gsm_hard", "medmcqa", "mmlu_medical")
    assert available_benchmarks(None) == (
        ("gsm8k", "math", "math500", "amc23", *missing[3:4], "medqa", *missing[4:]),
        (),
    )


@pytest.mark.parametrize("name", ["mmlu_medical", "medqa", "math500"])
def test_a_mirror_that_has_changed_is_read_anew(tmp_path: Path, name: str) -> None:
    (tmp_path / "elsewhere").mkdir()
    before = load(mirror(tmp_path, name), name)
    changed = {
        file: [row | {"problem" if name == "math500" else "question": "What else?"} for row in rows]
        for file, rows in LAYOUT[name].items()
    }
    for root in (tmp_path, tmp_path / "elsewhere"):
        assert {example.question for example in load(mirror(root, name, changed), name)} == {"What else?"}
    assert load(mirror(tmp_path, name), name) == before
    lacking = {file: [{"subject": "anatomy"} for _ in rows] for file, rows in LAYOUT[name].items()}
    with pytest.raises(BadDataset, match="the copy has another schema"):
        load(mirror(tmp_path, name, lacking), name)


def few_shot(experiment: Experiment) -> Experiment:
    return dataclasses.replace(experiment, prompts=PromptsConfig(few_shot=1))


def test_solved_examples_come_from_the_training_split_that_the_registry_names(tmp_path: Path) -> None:
    mirror(tmp_path, "math500")
    experiment = mirror(tmp_path, "math")
    plain = dataset_source(experiment, "math500", is_benchmark=True)
    source = dataset_source(few_shot(experiment), "math500", is_benchmark=True)
    assert plain.few_shot is None
    assert isinstance(source.few_shot, DatasetSource)
    assert (source.few_shot.dataset, source.few_shot.split) == ("math", "train")
    assert source == dataclasses.replace(plain, few_shot=source.few_shot)
    write(tmp_path / "DigitalLearningGmbH/MATH-lighteval/data/train-00000-of-00001.parquet", MATH * 2)
    changed = dataset_source(few_shot(experiment), "math500", is_benchmark=True)
    assert changed.revision == source.revision
    assert changed != source  # by the revision of the examples


def test_solved_choices_are_medqa_s_and_for_mmlu_those_of_its_split_for_them(tmp_path: Path) -> None:
    for name in ("medqa", "medmcqa", "mmlu_medical"):
        experiment = mirror(tmp_path, name)
    sources = {
        name: dataset_source(few_shot(experiment), name, is_benchmark=True).few_shot
        for name in ("medqa", "medmcqa", "mmlu_medical")
    }
    assert {name: (source.dataset, source.split) for name, source in sources.items() if source} == {
        "medqa": ("medqa", "train"),
        "medmcqa": ("medqa", "train"),
        "mmlu_medical": ("mmlu_medical", "dev"),
    }


def test_sets_without_solved_examples_and_mirrors_without_them_say_what_to_do(tmp_path: Path) -> None:
    mirror(tmp_path, "math500")
    experiment = few_shot(mirror(tmp_path, "medqa"))
    with pytest.raises(ValueError, match=r"prompts.few_shot: expected 0 for arithmetic.*gsm8k, math, math500.*got 1"):
        dataset_source(experiment, "arithmetic", is_benchmark=True)
    with pytest.raises(ValueError, match=r"prompts.few_shot: hub_root: .*MATH-lighteval.*or ask without.*few_shot=0"):
        dataset_source(experiment, "math500", is_benchmark=True)
