"""Micro-batches: which completions go through the model together, and how they lie there."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.core.layout import Layout, Sequences, TreeOrder, build_layout, lay_out_trees, tree_order
from tasks.engines.attention import refusal

MIN_SHARING = 1.02
"""Linear tokens per tree token from which `auto` takes the tree; below it there is nothing to gain."""

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class MicroBatch:
    """Completions that go through the model together."""

    rows: Rows
    """Their indices in the batch."""
    layout: Layout
    is_silent: bool
    """No gradient comes from them."""


def refuse_layout(model: Any, layout: str) -> None:
    """Raise ValueError when the model's attention does not allow packed rows or trees."""
    reason = refusal(model)
    if reason:
        raise ValueError(
            f"train.layout: {layout!r} needs plain causal attention in every layer, but {reason}; its gradients would "
            "be wrong: use train.layout = padded"
        )


class Arrangement:
    """A batch under one layout. Its prefix trees are built once, and serve the choice, the cuts and the rows.

    `auto` takes the tree where the model allows it and prefixes are shared; packed rows where they are not; padded ones
    where the model allows no other. Raises ValueError when the layout asked for is not `auto` and the model's attention
    does not allow it.
    """

    def __init__(
        self, layout: str, model: Any, prompts: Sequences, completions: Sequences, group_index_R: NDArray[np.int64]
    ) -> None:
        if layout in ("packed", "tree"):
            refuse_layout(model, layout)
        self.prompts, self.completions, self.group_index_R = prompts, completions, np.asarray(group_index_R)
        self.widths_R = np.array([len(p) + len(c) for p, c in zip(prompts, completions, strict=True)], dtype=np.int64)
        self.filled = np.flatnonzero([len(completion) for completion in completions])
        self.kind = layout
        if layout == "tree" or (layout == "auto" and refusal(model) is None):
            self.order = tree_order([completions[i] for i in self.filled], self.group_index_R[self.filled])
            self.sizes_A = self.order.sizes([prompts[i] for i in self.filled])
            is_shared = self.widths_R[self.filled].sum() >= MIN_SHARING * self.sizes_A.sum()
            self.kind = "tree" if layout == "tree" or is_shared else "packed"
        elif layout == "auto":
            self.kind = "padded"

    def micro_batches(self, budget: int, *, is_silent_R: NDArray[np.bool_] | None = None) -> Iterator[MicroBatch]:
        """The completions in micro-batches of at most `budget` places; empty ones are left out.

        padded: by length. packed: as they come. tree: whole groups; a larger tree is cut, and each part holds the
        prompt and what else it shares once more. One completion over the budget is a micro-batch of its own. Groups of
        which no completion gives a gradient (`is_silent_R`) are kept apart from the others, so that their backward pass
        can be skipped.
        """
        if is_silent_R is None:
            is_silent_R = np.zeros(len(self.completions), np.bool_)
        in_silent_group_R = ~np.isin(self.group_index_R, self.group_index_R[~is_silent_R])
        for is_silent in (False, True):
            part = self.filled[in_silent_group_R[self.filled] == is_silent]
            cuts = self._trees(part, budget) if self.kind == "tree" else self._rows(part, budget)
            for rows, layout in cuts:
                yield MicroBatch(rows, layout, is_silent)

    def _of(self, rows: Rows) -> tuple[Sequences, Sequences]:
        return [self.prompts[i] for i in rows], [self.completions[i] for i in rows]

    def _rows(self, part: Rows, budget: int) -> Iterator[tuple[Rows, Layout]]:
        """Padded or packed rows."""
        for rows in self._cut_rows(part, budget):
            yield rows, build_layout(self.kind, *self._of(rows), rows)

    def _cut_rows(self, part: Rows, budget: int) -> Iterator[Rows]:
        """By length or as they come, cut where the next one would not fit."""
        is_padded = self.kind == "padded"
        order = part[np.argsort(-self.widths_R[part], kind="stable")] if is_padded else part
        begin, total = 0, 0
        for i, width in enumerate(self.widths_R[order].tolist()):
            total = (i + 1 - begin) * self.widths_R[order[begin]] if is_padded else total + width
            if i > begin and total > budget:
                yield order[begin:i]
                begin, total = i, width
        if order.size:
            yield order[begin:]

    def _trees(self, part: Rows, budget: int) -> Iterator[tuple[Rows, Layout]]:
        """The trees of the groups in `part`."""
        chosen_A = np.isin(self.filled[self.order.rows_A], part)
        order = self.order.where(chosen_A)
        rows = self.filled[order.rows_A]
        for begin, end in cut_trees(order, self.sizes_A[chosen_A], self.widths_R[rows], budget):
            prompts, completions = self._of(rows[begin:end])
            cut = order.cut(begin, end, len(completions[0]))
            yield rows[begin:end], lay_out_trees(prompts, completions, cut)


def cut_trees(
    order: TreeOrder, sizes_A: NDArray[np.int64], widths_A: NDArray[np.int64], budget: int
) -> Iterator[tuple[int, int]]:
    """Begin and end of each part: whole groups; within a group that is larger, cut where the next would not fit."""
    bounds = np.append(np.flatnonzero(order.is_first_A), order.rows_A.size).tolist()
    begin, total = 0, 0
    for low, high in pairwise(bounds):
        size = int(sizes_A[low:high].sum())
        if low > begin and total + size > budget:
            yield begin, low
            begin, total = low, 0
        if size <= budget:
            total += size
            continue
        for i in range(low, high):
            if i > begin and total + sizes_A[i] > budget:
                yield begin, i
                begin, total = i, int(widths_A[i])
            else:
                total += int(sizes_A[i])
    if order.rows_A.size:
        yield begin, order.rows_A.size
