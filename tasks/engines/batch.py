"""Batches of completions, and what the loss needs to know of their tokens."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tasks.core.layout import Sequences
from tasks.core.objective import Objective, TokenSignals, importance_weights, token_weights
from tasks.core.ragged import within

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
    kept_mass: Floats | None = None
    """Mass that this policy's nucleus keeps, where the sampler drew from a nucleus."""
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
    return np.repeat(begin_R[rows], lengths_R[rows]) + within(lengths_R[rows])
