"""Solved examples before a prompt: rows of a training split with their solutions."""

import re
from collections.abc import Callable

from tasks.core.seeds import derive_seed
from tasks.datasets import DatasetSource, no_solved_examples
from tasks.registry import DATASETS, Dataset
from tasks.rows import Example
from tasks.templates import Solved, asked

_CALCULATOR = re.compile(r"<<[^<>\n]*>>")
"""GSM8K's calls of a calculator, as in `48/2 = <<48/2=24>>24`."""


def draw(source: DatasetSource, count: int) -> Callable[[Example], list[Solved]]:
    """Which solved examples stand before an example of `source`: the same `count` for all, drawn without replacement by
    a seed of their own; for all of its subject where subjects are configurations, as is customary for MMLU. An example
    among them gets the next one drawn in place of itself.

    Raises ValueError for a split that is missing or too small, and for rows without solutions.
    """
    from tasks.engines.hub import NotFound

    if not count:
        return lambda example: []
    if source.few_shot is None:
        raise no_solved_examples(source.dataset, count)
    shown = source.few_shot
    try:
        rows = shown.examples()
    except NotFound as error:
        raise NotFound(f"prompts.few_shot: {error}, or ask without solved examples: prompts.few_shot=0") from None
    dataset = DATASETS[shown.dataset]
    is_same = (source.dataset, source.split) == (shown.dataset, shown.split)

    def subject(example: Example) -> str | None:
        return example.subject if dataset.subject_is_config else None

    of_subject: dict[str | None, list[Example]] = {}
    for example in rows:
        of_subject.setdefault(subject(example), []).append(example)
    solved = {name: _drawn(shown, dataset, those, count, is_same) for name, those in of_subject.items()}
    return lambda own: [each for row, each in solved[subject(own)].items() if not (is_same and row == own.row_index)][
        :count
    ]


def _drawn(shown: DatasetSource, dataset: Dataset, rows: list[Example], count: int, is_same: bool) -> dict[int, Solved]:
    """Solved examples by row, in the order drawn: one more than `count` where they may be asked themselves."""
    import numpy as np

    if len(rows) < count + is_same:
        bound = "less than" if is_same else "at most"
        of = f" about {rows[0].subject}" if dataset.subject_is_config else ""
        raise ValueError(
            f"prompts.few_shot: expected {bound} the {len(rows)} rows of {shown.dataset}, split {shown.split}{of}, got "
            f"{count}"
        )
    chosen = np.random.default_rng(derive_seed(0, "prompts", "few_shot")).permutation(len(rows))[: count + 1]
    drawn = [rows[i] for i in chosen]
    if not all(example.solutions or example.options for example in drawn):
        raise ValueError(f"prompts.few_shot: expected 0, for the rows of {shown.dataset} bring no solutions")
    return {example.row_index: Solved(asked(dataset, example), boxed(example)) for example in drawn}


def boxed(example: Example) -> str:
    r"""The example's first solution; GSM8K's `#### 72` becomes the box that the instruction asks for.

    The rows of a multiple choice say no more than the letter: that, in its box.

    >>> boxed(Example(0, "48+24?", "72", ("48+24 = <<48+24=72>>72.\n#### 72",)))
    '48+24 = 72.\n\\boxed{72}'
    >>> boxed(Example(0, "Which?", "C", options=("this", "that", "another", "none")))
    '\\boxed{C}'
    """
    if not example.solutions:
        return f"\\boxed{{{example.answer}}}"
    solution, mark, _ = example.solutions[0].rpartition("####")
    return _CALCULATOR.sub("", solution) + f"\\boxed{{{example.answer}}}" if mark else example.solutions[0]
