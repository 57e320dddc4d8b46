"""Datasets by name: finding them, identifying them, and loading their rows with every check before a row is used."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from storage.fingerprint import NOT_IDENTITY
from tasks.config import ArithmeticConfig, Experiment
from tasks.core import arithmetic
from tasks.core.seeds import derive_seed
from tasks.registry import DATASETS, Dataset
from tasks.rows import Example

__all__ = ["DATASETS", "Dataset", "DatasetSource", "Example", "available_benchmarks", "dataset_source", "get_dataset"]

TUTOR_COMPLETIONS = 10
"""Completions the arithmetic tutor writes per training problem."""
SHOWN_ROWS = 5
"""Bad rows that an error names."""


class BadDataset(ValueError):
    """The rows are not those of the registry's dataset."""


@dataclass(frozen=True, kw_only=True)
class DatasetSource:
    """A dataset's split as the stages' identity sees it: its name, revision and split, and not where it is read."""

    dataset: str
    split: str
    revision: str
    arithmetic: ArithmeticConfig | None
    few_shot: "DatasetSource | None" = None
    """Where solved examples before its prompts come from; None: there are none before them."""
    hub_root: str | None = field(default=None, metadata=NOT_IDENTITY)

    def examples(self, tutor_seed: int | None = None) -> list[Example]:
        """The split's rows in order; with `tutor_seed`, arithmetic ones bring the tutor's completions.

        Raises BadDataset for a copy with other columns, too many rows, or rows that cannot be used.
        """
        if self.dataset == "arithmetic":
            assert self.arithmetic is not None
            return _arithmetic_examples(self.split, self.arithmetic, tutor_seed)
        return self._hub_examples()

    def _hub_examples(self) -> list[Example]:
        from tasks.engines.hub import load_rows

        dataset = DATASETS[self.dataset]
        assert dataset.hub_id
        examples: list[Example] = []
        bad: list[str] = []
        num_rows = 0
        for config in dataset.configs or (None,):
            rows = load_rows(dataset.hub_id, config, self.split, self.revision, self.hub_root)
            self._check_columns(dataset, rows.features)
            self._check_count(dataset, config, len(rows))
            for number, row in enumerate(rows, start=num_rows):
                try:
                    examples.append(_example(dataset, config, number, row))
                except ValueError as error:
                    bad.append(f"row {number}: {error}")
            num_rows += len(rows)
        if bad:
            more = f"; and {len(bad) - SHOWN_ROWS} more" if len(bad) > SHOWN_ROWS else ""
            shown = "; ".join(bad[:SHOWN_ROWS])
            raise self._refused(f"{len(bad)} of {num_rows} rows cannot be used: {shown}{more}")
        if dataset.check is not None:
            try:
                dataset.check(examples)
            except ValueError as error:
                raise self._refused(str(error)) from None
        return examples

    def _check_columns(self, dataset: Dataset, features: Any) -> None:
        missing = [column for column in dataset.columns if column not in features]
        if missing:
            raise self._refused(
                f"expected the columns {', '.join(dataset.columns)}, got {', '.join(features)}: the copy has another "
                "schema"
            )
        for column, expected in dataset.columns.items():
            found = type_name(features[column])
            if found not in expected.split(" | "):
                raise self._refused(f"the column {column} has the type {found}: expected {expected}")

    def _check_count(self, dataset: Dataset, config: str | None, found: int) -> None:
        """The Hub has all rows, and a mirror may hold some of them; more are of another set."""
        part = f"{config}/{self.split}" if config else self.split
        expected = dataset.num_rows.get(part)
        if expected is not None and (found > expected or (found < expected and self.hub_root is None)):
            bound = "at most " if self.hub_root else ""
            raise self._refused(f"{part} has {found} rows: expected {bound}{expected}")

    def _refused(self, what: str) -> BadDataset:
        dataset = DATASETS[self.dataset]
        revision = f"revision {dataset.revision[:12]} of {dataset.hub_id}"
        remedy = (
            f"Correct the copy in {self.hub_root}/{dataset.hub_id}, or mirror {revision} there"
            if self.hub_root
            else f"The registry describes {revision}: clear a damaged cache (HF_HOME), or mirror that revision, "
            "correct it, and name its root with --hub-root FOLDER"
        )
        return BadDataset(f"dataset {self.dataset}, split {self.split}: {what}. {remedy}")


def _example(dataset: Dataset, config: str | None, number: int, row: dict[str, Any]) -> Example:
    assert dataset.example
    example = dataset.example(number, row)
    if dataset.subject_is_config and example.subject != config:
        raise ValueError(f"its subject is {example.subject!r}: expected that of its configuration, {config!r}")
    return example


def type_name(feature: Any) -> str:
    """The type of a column of `datasets`, in one word: string, int64, list<string>, struct<A: string>.

    Labels are the integers that they are stored as, and large strings are strings.
    """
    if isinstance(feature, dict):
        return "struct<" + ", ".join(f"{name}: {type_name(feature[name])}" for name in sorted(feature)) + ">"
    if hasattr(feature, "feature"):
        return f"list<{type_name(feature.feature)}>"
    return str(feature.dtype).removeprefix("large_")


def _arithmetic_examples(split: str, config: ArithmeticConfig, tutor_seed: int | None) -> list[Example]:
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
    examples = []
    for index, problem in enumerate(problems):
        count = TUTOR_COMPLETIONS if tutor_seed is not None else 0
        solutions = tuple(tutor.completion(problem, rng) for _ in range(count))
        examples.append(Example(index, problem.prompt, problem.answer, solutions))
    return examples


def get_dataset(name: str, key: str) -> Dataset:
    """The dataset registered as `name`. Raises ValueError naming the experiment's `key` and the nearest valid name.

    For the key `dataset` it must have a split to train on.
    """
    known = sorted(known for known, entry in DATASETS.items() if key != "dataset" or entry.train_split)
    if name in known:
        return DATASETS[name]
    near = difflib.get_close_matches(name, known, n=1)
    problem = f"{name!r} is a benchmark, without a split to train on" if name in DATASETS else f"no dataset {name!r}"
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"{key}: {problem} in this version: expected one of {', '.join(known)}{hint}")


def dataset_source(experiment: Experiment, name: str, *, is_benchmark: bool) -> DatasetSource:
    """Source of a training set or benchmark; a local mirror is identified by the contents of its files.

    Raises ValueError for what is not registered or not in the mirror, and for a benchmark that is to be asked with
    solved examples and has none; a training set's are needed only by a run that trains, whose stage `prompts` says so.
    """
    dataset = get_dataset(name, "benchmarks" if is_benchmark else "dataset")
    split = dataset.eval_split if is_benchmark else dataset.train_split
    assert split is not None
    few_shot = None
    if experiment.prompts.few_shot and (dataset.few_shot or is_benchmark):
        few_shot = _few_shot(experiment, dataset)
    return _source(experiment, dataset, split, few_shot)


def _source(experiment: Experiment, dataset: Dataset, split: str, few_shot: DatasetSource | None) -> DatasetSource:
    revision = dataset.revision
    if dataset.hub_id and experiment.hub_root:
        from tasks.engines.hub import mirror_revision

        revision = mirror_revision(dataset.hub_id, dataset.configs, experiment.hub_root)
    return DatasetSource(
        dataset=dataset.name,
        split=split,
        revision=revision,
        arithmetic=experiment.arithmetic if dataset.name == "arithmetic" else None,
        few_shot=few_shot,
        hub_root=experiment.hub_root,
    )


def _few_shot(experiment: Experiment, dataset: Dataset) -> DatasetSource:
    """Source of the solved examples before a dataset's prompts."""
    if dataset.few_shot is None:
        raise no_solved_examples(dataset.name, experiment.prompts.few_shot)
    solved = DATASETS[dataset.few_shot]
    split = dataset.few_shot_split or solved.train_split
    assert split is not None
    try:
        return _source(experiment, solved, split, None)
    except ValueError as error:
        raise ValueError(f"prompts.few_shot: {error}; or ask without solved examples: prompts.few_shot=0") from None


def no_solved_examples(name: str, count: int) -> ValueError:
    having = ", ".join(known for known, entry in DATASETS.items() if entry.few_shot)
    return ValueError(
        f"prompts.few_shot: expected 0 for {name}, for which the registry knows no solved examples (it does for "
        f"{having}), got {count}"
    )


def available_benchmarks(hub_root: str | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the Hub's benchmarks that a mirror holds, and of those it lacks; the Hub itself (None) has them all."""
    from tasks.engines.hub import has_split

    benchmarks = [dataset for dataset in DATASETS.values() if dataset.hub_id]
    if hub_root is None:
        return tuple(dataset.name for dataset in benchmarks), ()

    def is_there(dataset: Dataset) -> bool:
        assert dataset.hub_id
        configs: Sequence[str | None] = dataset.configs or (None,)
        return all(has_split(dataset.hub_id, config, dataset.eval_split, hub_root) for config in configs)

    present = tuple(dataset.name for dataset in benchmarks if is_there(dataset))
    return present, tuple(dataset.name for dataset in benchmarks if dataset.name not in present)


def tutor_seed(experiment: Experiment) -> int:
    """Seed of the demonstrations."""
    return derive_seed(experiment.seed, "demonstrations")
