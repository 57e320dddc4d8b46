"""Solved examples before a prompt: rows of another split with their solutions, or with their answers alone."""

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
    a seed of their own; for all of its subject where subjects are configurations, as is customary for MMLU. An example
    among them gets the next one drawn in place of itself.

    Raises ValueError for a split that is missing or too small.
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
    may_be_asked = (source.dataset, source.split) == (shown.dataset, shown.split)

    def subject(example: Example) -> str | None:
        return example.subject if dataset.subject_is_config else None

    of_subject: dict[str | None, list[Example]] = {}
    for example in rows:
        of_subject.setdefault(subject(example), []).append(example)
    drawn = {name: _drawn(shown, those, count, may_be_asked) for name, those in of_subject.items()}

    def before(own: Example) -> list[Solved]:
        others = [each for each in drawn[subject(own)] if not (may_be_asked and each.row_index == own.row_index)]
        return [Solved(asked(dataset, each), boxed(each)) for each in others[:count]]

    return before


def _drawn(shown: DatasetSource, rows: list[Example], count: int, may_be_asked: bool) -> list[Example]:
    """One example more than `count`, for that which is asked itself, in the order drawn."""
    import numpy as np

    if len(rows) < count + may_be_asked:
        bound = "less than" if may_be_asked else "at most"
        of = f" about {rows[0].subject}" if DATASETS[shown.dataset].subject_is_config else ""
        raise ValueError(
            f"prompts.few_shot: expected {bound} the {len(rows)} rows of {shown.dataset}, split {shown.split}{of}, got "
            f"{count}"
        )
    chosen = np.random.default_rng(derive_seed(0, "prompts", "few_shot")).permutation(len(rows))[: count + 1]
    return [rows[i] for i in chosen]


def boxed(example: Example) -> str:
    r"""The example's first solution; GSM8K's `#### 72` becomes the box that the instruction asks for.

    Where the row brings no solution, as in a multiple choice, its answer stands in the box alone.

    >>> boxed(Example(0, "48+24?", "72", ("48+24 = <<48+24=72>>72.\n#### 72",)))
    '48+24 = 72.\n\\boxed{72}'
    >>> boxed(Example(0, "Which?", "C", options=("this", "that", "another", "none")))
    '\\boxed{C}'
    """
    if not example.solutions:
        return f"\\boxed{{{example.answer}}}"
    solution, mark, _ = example.solutions[0].rpartition("####")
    return _CALCULATOR.sub("", solution) + f"\\boxed{{{example.answer}}}" if mark else example.solutions[0]
