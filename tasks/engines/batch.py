"""Batches of completions, and the micro-batches that one forward pass takes of them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tasks.core.layout import Layout, Sequences, build_layout, group_tree, suffix_lengths
from tasks.core.objective import Objective, TokenSignals, importance_weights, token_weights
from tasks.engines.attention import refusal

MIN_SHARING = 1.02
"""Linear tokens per tree token from which `auto` takes the tree; below it there is nothing to gain."""

Floats = Sequence[NDArray[np.float32]]


@dataclass(frozen=True)
class Batch:
    """R completions with their prompts, and one number per completion token for each signal (one array a completion).

    Completions of a group share its index and its prompt; they need not be adjacent.
    """

    prompts: Sequences
    completions: Sequences
    group_index_R: NDArray[np.int64]
    sampler_logprobs: Floats
    advantages: Floats
    trainer_logprobs: Floats | None = None
    """Of the policy before the step's updates; needed by importance sampling."""
    reference_logprobs: Floats | None = None
    """Of the reference policy; needed by the KL."""
    values: Floats | None = None
    """The critic's values before the step's updates; needed to train it."""
    returns: Floats | None = None
    """Targets of the critic."""
    loss_mask: Sequence[NDArray[np.bool_]] | None = None
    """Which tokens the policy sampled and is trained on; absent: all."""

    def take(self, rows: NDArray[np.int64]) -> "Batch":
        """Some of the completions."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        arrays = {"group_index_R": self.group_index_R[rows]}
        lists = {name: [value[i] for i in rows] for name, value in values.items() if isinstance(value, list | tuple)}
        return Batch(**(values | lists | arrays))

    @property
    def num_trained_tokens(self) -> int:
        return int(self.lengths_R.sum() if self.loss_mask is None else sum(int(mask.sum()) for mask in self.loss_mask))

    @property
    def lengths_R(self) -> NDArray[np.int64]:
        return np.array([len(completion) for completion in self.completions], dtype=np.int64)


@dataclass(frozen=True)
class MicroBatch:
    """Completions that go through the model together."""

    rows: NDArray[np.int64]
    """Their indices in the batch."""
    layout: Layout


def flat(values: Sequence[NDArray[Any]], device: torch.device) -> Tensor:
    """One array a completion as one tensor [N]."""
    return torch.from_numpy(np.concatenate([*values, np.zeros(0, values[0].dtype)])).to(device)


def token_signals(batch: Batch, objective: Objective, device: torch.device) -> tuple[TokenSignals, Tensor | None]:
    """What the loss needs of every token of a mini-batch, and which tokens met the cap of the importance weights.

    ValueError where the objective needs log-probabilities that the batch does not have.
    """
    lengths_R = torch.from_numpy(batch.lengths_R)
    mask_N = None if batch.loss_mask is None else flat(batch.loss_mask, torch.device("cpu"))
    sampler_N = flat(batch.sampler_logprobs, device)
    if mask_N is not None:  # whatever stands beside a tool's tokens, they weigh 0
        sampler_N = sampler_N.where(mask_N.to(device), 0)
    weights_N = token_weights(
        lengths_R,
        torch.from_numpy(batch.group_index_R),
        objective.normalization,
        max_tokens=objective.max_tokens,
        loss_mask_N=mask_N,
        dtype=sampler_N.dtype,
    )
    anchor_N, importance_N, is_capped_N = sampler_N, None, None
    if objective.importance_sampling != "none":
        anchor_N = flat(_needed(batch.trainer_logprobs, "trainer_logprobs", "importance sampling"), device)
        on_device = None if mask_N is None else mask_N.to(device)
        weights = importance_weights(anchor_N, sampler_N, lengths_R.to(device), objective, on_device)
        importance_N, is_capped_N = weights
    reference_N = None
    if objective.kl_coefficient:
        reference_N = flat(_needed(batch.reference_logprobs, "reference_logprobs", "the KL to a reference"), device)
    signals = TokenSignals(
        advantages_N=flat(batch.advantages, device),
        weights_N=weights_N.to(device),
        anchor_logprobs_N=anchor_N,
        importance_N=importance_N,
        reference_logprobs_N=reference_N,
    )
    return signals, is_capped_N


def _needed(values: Floats | None, name: str, what: str) -> Floats:
    if values is None:
        raise ValueError(
            f"{name}: expected one array a completion, got none; {what} needs them: compute them with "
            "completion_logprobs of that policy before the step's first update"
        )
    return values


def token_index(lengths_R: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Indices among the batch's N tokens of those of some completions, completion after completion."""
    begin_R = np.cumsum(lengths_R) - lengths_R
    lengths = lengths_R[rows]
    within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return np.repeat(begin_R[rows], lengths) + within


def choose_layout(layout: str, model: Any, prompts: Sequences, completions: Sequences, group_index_R: Any) -> str:
    """`auto`: the tree where the model allows it and prefixes are shared; packed where they are not; else padded.

    Raises ValueError when the layout asked for is not `auto` and the model's attention does not allow it.
    """
    if layout == "padded":
        return layout
    if layout != "auto":
        refuse_layout(model, layout)
        return layout
    if refusal(model):
        return "padded"
    linear = sum(len(p) + len(c) for p, c in zip(prompts, completions, strict=True))
    _, sizes = tree_sizes(prompts, completions, group_index_R, np.arange(len(prompts)))
    return "tree" if linear >= MIN_SHARING * sizes.sum() else "packed"


def refuse_layout(model: Any, layout: str) -> None:
    """Raise ValueError when the model's attention does not allow packed rows or trees."""
    reason = refusal(model)
    if reason:
        raise ValueError(
            f"train.layout: {layout!r} needs plain causal attention in every layer, but {reason}; its gradients would "
            "be wrong: use train.layout = padded"
        )


def micro_batches(
    kind: str,
    prompts: Sequences,
    completions: Sequences,
    group_index_R: NDArray[np.int64],
    micro_batch_tokens: int,
    *,
    is_silent_R: NDArray[np.bool_] | None = None,
) -> Iterator[MicroBatch]:
    """Cut completions into micro-batches of at most `micro_batch_tokens` places; empty completions are left out.

    padded: by length. packed: as they come. tree: whole groups; a larger tree is cut, and each part holds the prompt
    and what else it shares once more. One completion over the budget is a micro-batch of its own. Completions marked
    as silent (no gradient comes from them) are kept apart from the others, so that their backward pass can be skipped.
    """
    lengths_R = np.array([len(completion) for completion in completions])
    silent_R = np.zeros(len(completions), np.bool_) if is_silent_R is None else is_silent_R
    for part in (np.flatnonzero(~silent_R & (lengths_R > 0)), np.flatnonzero(silent_R & (lengths_R > 0))):
        for rows in _cut(kind, prompts, completions, group_index_R, part, micro_batch_tokens):
            chosen = [prompts[i] for i in rows], [completions[i] for i in rows]
            yield MicroBatch(rows, build_layout(kind, *chosen, group_index_R[rows]))


def _cut(
    kind: str, prompts: Sequences, completions: Sequences, group_index_R: Any, part: NDArray[np.int64], budget: int
) -> Iterator[NDArray[np.int64]]:
    if not part.size:
        return
    widths = np.array([len(p) + len(c) for p, c in zip(prompts, completions, strict=True)])
    if kind == "tree":
        order, sizes = tree_sizes(prompts, completions, group_index_R, part)
        yield from _cut_trees(order, group_index_R[order], sizes, widths[order], budget)
        return
    order = part[np.argsort(-widths[part], kind="stable")] if kind == "padded" else part
    begin, total = 0, 0
    for i, width in enumerate(widths[order].tolist()):
        total = (i + 1 - begin) * widths[order[begin]] if kind == "padded" else total + width
        if i > begin and total > budget:
            yield order[begin:i]
            begin, total = i, width
    yield order[begin:]


def _cut_trees(order: Any, group_A: Any, sizes_A: Any, widths_A: Any, budget: int) -> Iterator[NDArray[np.int64]]:
    """Whole groups up to the budget; within a group that is larger, cuts where the next completion would not fit."""
    bounds = np.append(np.flatnonzero(np.diff(group_A, prepend=group_A[0] - 1)), order.size)
    begin, total = 0, 0
    for low, high in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        size = int(sizes_A[low:high].sum())
        if low > begin and total + size > budget:
            yield order[begin:low]
            begin, total = low, 0
        if size <= budget:
            total += size
            continue
        for i in range(low, high):
            if i > begin and total + sizes_A[i] > budget:
                yield order[begin:i]
                begin, total = i, int(widths_A[i])
            else:
                total += int(sizes_A[i])
    yield order[begin:]


def tree_sizes(
    prompts: Sequences, completions: Sequences, group_index_R: Any, part: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The completions of `part`, groups together and lexicographic in each, and the places each adds to its tree.

    The first of a group brings the prompt.
    """
    if not part.size:
        return part, part
    order = part[np.argsort(np.asarray(group_index_R)[part], kind="stable")]
    tree = group_tree([completions[i] for i in order], np.asarray(group_index_R)[order])
    order, sizes = order[tree.sorted_rollout_R], suffix_lengths(tree)
    first = tree.group_offsets[:-1]
    sizes[first] += [len(prompts[i]) for i in order[first]]
    return order, sizes
