"""The registry of datasets: where each comes from, its splits, its verifier, and how a row becomes an example."""

import difflib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from storage.fingerprint import NOT_IDENTITY
from tasks.config import ArithmeticConfig, Experiment
from tasks.core import arithmetic
from tasks.core.seeds import derive_seed
from tasks.core.verifiers.gsm8k import gold_answer

MATHS_SUFFIX = "Let's think step by step and output the final answer within \\boxed{}."
TUTOR_COMPLETIONS = 10
"""Completions the arithmetic tutor writes per training problem."""


@dataclass(frozen=True)
class Example:
    """One row of a dataset, before any template."""

    row_index: int
    question: str
    answer: str
    """Gold answer in the verifier's canonical form."""
    solutions: tuple[str, ...] = ()
    """Completions to imitate in the warm start."""


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A dataset on the Hub (or, without hub_id, one made here)."""

    name: str
    verifier: str
    hub_id: str | None = None
    config: str | None = None
    revision: str
    """Commit of the Hub dataset, or the version of the generator."""
    train_split: str = "train"
    eval_split: str = "test"
    suffix: str = ""
    """Instruction after the question."""
    columns: tuple[str, ...] = ()
    """Columns that `example` reads; a dataset without them is refused."""
    example: Callable[[int, dict[str, Any]], Example] | None = field(default=None, compare=False)


def _gsm8k(index: int, row: dict[str, Any]) -> Example:
    return Example(index, row["question"], gold_answer(row["answer"]), (row["answer"],))


DATASETS = {
    dataset.name: dataset
    for dataset in (
        Dataset(name="arithmetic", verifier="arithmetic", revision="1"),
        Dataset(
            name="gsm8k",
            verifier="gsm8k",
            hub_id="openai/gsm8k",
            config="main",
            revision="740312add88f781978c0658806c59bc2815b9866",
            suffix=MATHS_SUFFIX,
            columns=("question", "answer"),
            example=_gsm8k,
        ),
    )
}
"""Training sets and benchmarks by name."""


@dataclass(frozen=True, kw_only=True)
class DatasetSource:
    """A dataset's split as the stages' identity sees it: its name, revision and split, and not where it is read."""

    dataset: str
    split: str
    revision: str
    arithmetic: ArithmeticConfig | None
    hub_root: str | None = field(default=None, metadata=NOT_IDENTITY)

    def examples(self, tutor_seed: int | None = None) -> Iterator[Example]:
        """The split's rows in order; with `tutor_seed`, arithmetic ones bring the tutor's completions."""
        if self.dataset == "arithmetic":
            assert self.arithmetic is not None
            return _arithmetic_examples(self.split, self.arithmetic, tutor_seed)
        return self._hub_examples()

    def _hub_examples(self) -> Iterator[Example]:
        from tasks.engines.hub import NotFound, load_rows

        dataset = DATASETS[self.dataset]
        assert dataset.hub_id
        assert dataset.example
        rows = load_rows(dataset.hub_id, dataset.config, self.split, dataset.revision, self.hub_root)
        missing = [column for column in dataset.columns if column not in rows.column_names]
        if missing:
            raise NotFound(
                f"dataset {dataset.name}: expected the columns {', '.join(dataset.columns)}, got "
                f"{', '.join(rows.column_names)}: the copy has another schema than revision {dataset.revision[:12]}"
            )
        for index, row in enumerate(rows):
            try:
                example = dataset.example(index, row)
            except ValueError as error:
                raise ValueError(f"dataset {dataset.name}, split {self.split}, row {index}: {error}") from None
            yield example


def _arithmetic_examples(split: str, config: ArithmeticConfig, tutor_seed: int | None) -> Iterator[Example]:
    import numpy as np

    problems = arithmetic.make_problems(
        config.num_train if split == "train" else config.num_test,
        split="train" if split == "train" else "test",
        min_terms=config.min_terms,
        max_terms=config.max_terms,
        seed=0,
    )
    tutor = arithmetic.Tutor(seed=0)
    rng = np.random.default_rng(tutor_seed)
    for index, problem in enumerate(problems):
        count = TUTOR_COMPLETIONS if tutor_seed is not None else 0
        solutions = tuple(tutor.completion(problem, rng) for _ in range(count))
        yield Example(index, problem.prompt, problem.answer, solutions)


def get_dataset(name: str, key: str) -> Dataset:
    """The dataset registered as `name`. Raises ValueError naming the experiment's `key` and the nearest valid name."""
    if name in DATASETS:
        return DATASETS[name]
    near = difflib.get_close_matches(name, DATASETS, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"{key}: no dataset {name!r} in this version: expected one of {', '.join(sorted(DATASETS))}{hint}")


def dataset_source(experiment: Experiment, name: str, *, is_benchmark: bool) -> DatasetSource:
    """Source of a training set or benchmark; a local mirror is identified by the contents of its files."""
    dataset = get_dataset(name, "benchmarks" if is_benchmark else "dataset")
    revision = dataset.revision
    if dataset.hub_id and experiment.hub_root:
        from tasks.engines.hub import mirror_revision

        revision = mirror_revision(dataset.hub_id, dataset.config, experiment.hub_root)
    return DatasetSource(
        dataset=name,
        split=dataset.eval_split if is_benchmark else dataset.train_split,
        revision=revision,
        arithmetic=experiment.arithmetic if name == "arithmetic" else None,
        hub_root=experiment.hub_root,
    )


def tutor_seed(experiment: Experiment) -> int:
    """Seed of the demonstrations."""
    return derive_seed(experiment.seed, "demonstrations")
