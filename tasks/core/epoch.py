"""Which prompts a step takes: a seeded sample without replacement within an epoch."""

import numpy as np
from numpy.typing import NDArray

from tasks.core.seeds import derive_seed


def prompts_of_step(num_prompts: int, prompts_per_step: int, step: int, seed: int) -> NDArray[np.int64]:
    """Indices [P] of the prompts of `step` (from 1), in training order.

    Each epoch is a permutation drawn from (seed, epoch); steps take consecutive slices of the endless row of epochs.
    Every prompt is taken exactly once per epoch, also by a step that spans the end of one; a step never holds a prompt
    twice: when the next epoch starts inside it, the prompts it already holds are moved back, to right after those it
    still needs.
    With fewer prompts than prompts_per_step a step takes all of them.

    The result depends on nothing but the arguments: step 40 can be drawn without drawing steps 1 to 39.
    """
    if num_prompts < 1:
        raise ValueError("expected at least one prompt, got an empty prompt set: a step has nothing to sample from")
    size = min(prompts_per_step, num_prompts)
    start = (step - 1) * size
    epoch, offset = divmod(start, num_prompts)
    taken = _order(num_prompts, size, epoch, seed)[offset : offset + size]
    if taken.size < size:
        taken = np.concatenate([taken, _order(num_prompts, size, epoch + 1, seed)[: size - taken.size]])
    return taken


def epochs_of_step(num_prompts: int, prompts_per_step: int, step: int) -> NDArray[np.int32]:
    """Epoch, from 0, of each prompt that `prompts_of_step` gives for the same arguments, int32 [P].

    The endless row of epochs is counted off: its place k belongs to epoch k // num_prompts.

    >>> epochs_of_step(5, 3, step=2).tolist()
    [0, 0, 1]
    """
    size = min(prompts_per_step, num_prompts)
    return ((np.arange(size) + (step - 1) * size) // num_prompts).astype(np.int32)


def _order(num_prompts: int, size: int, epoch: int, seed: int) -> NDArray[np.int64]:
    """The epoch's permutation; prompts held by the step that spans its start come after those the step still needs."""
    order = _permutation(num_prompts, 0, seed)
    for current in range(1, epoch + 1):
        before, order = order, _permutation(num_prompts, current, seed)
        spill = (current * num_prompts) % size
        if spill:
            is_held = np.isin(order, before[num_prompts - spill :])
            free = np.flatnonzero(~is_held)[: size - spill]
            rest = np.setdiff1d(np.arange(num_prompts), free, assume_unique=True)
            order = order[np.concatenate([free, rest])]
    return order


def _permutation(num_prompts: int, epoch: int, seed: int) -> NDArray[np.int64]:
    return np.random.default_rng(derive_seed(seed, "epoch", epoch)).permutation(num_prompts)
