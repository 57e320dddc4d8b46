"""Solved examples before a prompt: rows of a training split with their solutions."""

import re
from collections.abc import Callable

from tasks.core.seeds import derive_seed
from tasks.datasets import DatasetSource, no_solved_examples
from tasks.registry import DATASETS
from tasks.rows import Example
from tasks.templates import Solved, asked

_CALCULATOR = re.compile(r"<<[^<>\n]*>>")
"""GSM8K's calls of a calculator, as in `48/2 = <<48/2=24>>24`."""


def draw(source: DatasetSource, count: int) -> Callable[[Example], list[Solved]]:
    """Which solved examples stand before an example of `source`: the same `count` for all, drawn without replacement by
    a seed of their own. An example among them gets the next one drawn in place of itself.

    Raises ValueError for a split that is missing or too small, and for rows without solutions.
    """
    import numpy as np

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
    if len(rows) <= count:
        raise ValueError(
            f"prompts.few_shot: expected less than the {len(rows)} rows of {shown.dataset}, split {shown.split}, got "
            f"{count}"
        )
    chosen = np.random.default_rng(derive_seed(0, "prompts", "few_shot")).permutation(len(rows))[: count + 1]
    drawn = [rows[i] for i in chosen]
    if not all(example.solutions for example in drawn):
        raise ValueError(f"prompts.few_shot: expected 0, for the rows of {shown.dataset} bring no solutions")
    dataset = DATASETS[shown.dataset]
    solved = {example.row_index: Solved(asked(dataset, example), boxed(example)) for example in drawn}
    is_same = (source.dataset, source.split) == (shown.dataset, shown.split)
    return lambda own: [each for row, each in solved.items() if not (is_same and row == own.row_index)][:count]


def boxed(example: Example) -> str:
    r"""The example's first solution; GSM8K's `#### 72` becomes the box that the instruction asks for.

    >>> boxed(Example(0, "48+24?", "72", ("48+24 = <<48+24=72>>72.\n#### 72",)))
    '48+24 = 72.\n\\boxed{72}'
    """
    solution, mark, _ = example.solutions[0].rpartition("####")
    return _CALCULATOR.sub("", solution) + f"\\boxed{{{example.answer}}}" if mark else example.solutions[0]
