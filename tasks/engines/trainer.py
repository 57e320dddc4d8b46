"""Optimiser updates on completions: supervised (warm start) and policy gradient (training), in any layout."""

import time
from collections.abc import Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tasks.core.layout import Layout
from tasks.core.objective import Objective, policy_loss
from tasks.engines.attention import layout_attention, paths_on
from tasks.engines.batch import Batch, token_index, token_signals
from tasks.engines.figures import TokenFigures, mismatch
from tasks.engines.head import TokenLoss, head_logprobs, head_pass
from tasks.engines.micro_batches import Arrangement
from tasks.engines.optimizer import checked_step
from tasks.engines.passes import precision_context
from tasks.engines.policy import Policy


class ValueTerm(Protocol):
    """A loss on the policy's own hidden states: that of a critic which shares its backbone."""

    def __call__(self, hidden_NH: Tensor, rows: NDArray[np.int64]) -> Tensor:
        """Weighted loss of the completions `rows`, from the hidden state that predicts each of their tokens."""


def parent_states(policy: Policy, layout: Layout, precision: str = "fp32") -> Tensor:
    """Hidden states [U, H] that predict the layout's tokens; attached to the graph where gradients are on."""
    device = policy.device
    ids_BL = torch.from_numpy(np.ascontiguousarray(layout.token_ids_BL)).to(device)
    extra: dict[str, Any] = {}
    if layout.suffixes is not None:
        positions = torch.from_numpy(layout.position_ids_BL).to(device)
        extra = {"position_ids": positions, "paths": paths_on(device, layout.suffixes)}
    with precision_context(precision, device):
        hidden_BLH = policy.model.base_model(input_ids=ids_BL, use_cache=False, **extra).last_hidden_state
    parent_U = torch.from_numpy(layout.parent_U).to(device)
    return hidden_BLH.reshape(-1, hidden_BLH.shape[-1]).index_select(0, parent_U)


@torch.no_grad()
def completion_logprobs(
    policy: Policy,
    prompts: Sequence[NDArray[np.int32]],
    completions: Sequence[NDArray[np.int32]],
    temperature: float,
    *,
    group_index_R: NDArray[np.int64] | None = None,
    layout: str = "padded",
    micro_batch_tokens: int = 2**62,
    precision: str = "fp32",
    top_p: float = 1.0,
) -> tuple[Tensor, ...]:
    """log p [N] of every completion token at `temperature`, and the entropy [N] (nats) it was drawn at; no gradient.

    With top_p below 1 also the mass [N] of that distribution that its nucleus keeps (`tasks.core.sampling.kept_mass`).
    """
    lengths_R = np.array([len(completion) for completion in completions], dtype=np.int64)
    groups_R = np.arange(lengths_R.size) if group_index_R is None else group_index_R
    arrangement = Arrangement(layout, policy.model, prompts, completions, groups_R)
    autocast = partial(precision_context, precision, policy.device)
    kind_of_number = torch.promote_types(next(policy.model.parameters()).dtype, torch.float32)
    found_KN = torch.zeros(3 if top_p < 1 else 2, int(lengths_R.sum()), dtype=kind_of_number, device=policy.device)
    for micro_batch in arrangement.micro_batches(micro_batch_tokens):
        with layout_attention(policy.model, micro_batch.layout):
            hidden_UH = parent_states(policy, micro_batch.layout, precision)
        found = head_logprobs(policy.model, hidden_UH, micro_batch.layout, temperature, top_p=top_p, autocast=autocast)
        index = torch.from_numpy(token_index(lengths_R, micro_batch.rows)).to(policy.device)
        for values_N, part_n in zip(found_KN, found, strict=True):
            values_N[index] = part_n.to(kind_of_number)
    return tuple(found_KN)


def supervised_update(
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    prompts: Sequence[NDArray[np.int32]],
    completions: Sequence[NDArray[np.int32]],
    *,
    micro_batch_tokens: int,
    max_grad_norm: float,
) -> dict[str, Any]:
    """One update on the mean negative log-likelihood per completion token."""
    started = time.perf_counter()
    num_tokens = sum(len(completion) for completion in completions)
    loss = 0.0
    optimizer.zero_grad(set_to_none=True)
    arrangement = Arrangement("padded", policy.model, prompts, completions, np.arange(len(prompts)))
    for micro_batch in arrangement.micro_batches(micro_batch_tokens):
        hidden_UH = parent_states(policy, micro_batch.layout)
        result = head_pass(
            policy.model, hidden_UH, micro_batch.layout, lambda logprob_n, *_: -logprob_n.sum() / num_tokens, 1.0
        )
        hidden_UH.backward(result.cotangent_UH)
        loss += result.loss
    return {
        "loss": loss,
        "grad_norm": checked_step(policy.model.parameters(), optimizer, {"loss": loss}, max_grad_norm),
        "learning_rate": optimizer.param_groups[0]["lr"],
        "num_completions": len(completions),
        "num_tokens": num_tokens,
        "seconds": time.perf_counter() - started,
    }


def policy_update(
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    objective: Objective,
    *,
    micro_batch_tokens: int,
    max_grad_norm: float,
    layout: str = "padded",
    precision: str = "fp32",
    value_term: ValueTerm | None = None,
) -> dict[str, Any]:
    """One update on the objective over a mini-batch; returns the row of the updates table.

    Micro-batches and layout change the memory and the time, not the gradient: the denominators are counted once over
    the mini-batch. Raises NonFiniteUpdate, before any weight changes, when the loss or the gradient is not finite.
    """
    started = time.perf_counter()
    mask_N = None if batch.loss_mask is None else np.concatenate(batch.loss_mask)
    if not batch.num_trained_tokens:
        raise ValueError(
            f"expected at least one token to train on, got none in the mini-batch's {len(batch.completions)} "
            "completions: leave out the groups whose completions are all empty"
        )
    optimizer.zero_grad(set_to_none=True)
    figures = TokenFigures(int(batch.lengths_R.sum()))
    how = (layout, micro_batch_tokens, precision)
    loss, value_loss = _policy_gradient(policy, batch, objective, how, figures, value_term)
    row = figures.describe(None if mask_N is None else torch.from_numpy(mask_N))
    losses = {"loss": loss} | ({"value loss": value_loss} if value_term is not None else {})
    row |= mismatch(batch, figures.found["logprob"])
    return row | {
        "loss": loss,
        "grad_norm": checked_step(policy.model.parameters(), optimizer, losses, max_grad_norm),
        "learning_rate": optimizer.param_groups[0]["lr"],
        "num_completions": len(batch.completions),
        "num_tokens": batch.num_trained_tokens,
        "seconds": time.perf_counter() - started,
    }


def _policy_gradient(
    policy: Policy,
    batch: Batch,
    objective: Objective,
    how: tuple[str, int, str],
    figures: TokenFigures,
    value_term: ValueTerm | None,
) -> tuple[float, float]:
    """Add the gradient and the tokens' figures, micro-batch by micro-batch; returns the loss and the value loss."""
    (layout, micro_batch_tokens, precision), device = how, policy.device
    signals, is_capped_N = token_signals(batch, objective, device)
    if signals.importance_N is not None and is_capped_N is not None:
        figures.found |= {"importance": signals.importance_N, "capped": is_capped_N}
    arrangement = Arrangement(layout, policy.model, batch.prompts, batch.completions, batch.group_index_R)

    def token_loss(index_N: Tensor) -> TokenLoss:
        def of_chunk(logprob_n: Tensor, entropy_n: Tensor, tokens_n: Tensor) -> Tensor:
            index_n = index_N[tokens_n]
            result = policy_loss(logprob_n, entropy_n, signals.take(index_n), objective)
            figures.add(index_n, result, logprob_n, entropy_n)
            return result.loss

        return of_chunk

    loss, value_loss, autocast = 0.0, 0.0, partial(precision_context, precision, device)
    is_silent_R = _silent(batch, objective) if value_term is None else None
    for micro_batch in arrangement.micro_batches(micro_batch_tokens, is_silent_R=is_silent_R):
        rows, laid = micro_batch.rows, micro_batch.layout
        of_chunk = token_loss(torch.from_numpy(token_index(batch.lengths_R, rows)).to(device))
        with layout_attention(policy.model, laid), torch.set_grad_enabled(not micro_batch.is_silent):
            hidden_UH = parent_states(policy, laid, precision)
            result = head_pass(policy.model, hidden_UH, laid, of_chunk, objective.temperature, autocast=autocast)
            loss += result.loss
            if value_term is not None:
                part = value_term(token_states(hidden_UH, laid), rows)
                value_loss += float(part.detach())
                torch.autograd.backward([hidden_UH, part], [result.cotangent_UH, None])
            elif not micro_batch.is_silent:
                hidden_UH.backward(result.cotangent_UH)
    return loss, value_loss


def token_states(hidden_UH: Tensor, layout: Layout) -> Tensor:
    """The state that predicts each completion token, [N, H]; completions that share it share its gradient."""
    parent_N = torch.from_numpy(layout.edge_parent_E[layout.token_edge_N]).to(hidden_UH.device)
    return hidden_UH.index_select(0, parent_N)


def _silent(batch: Batch, objective: Objective) -> NDArray[np.bool_]:
    """Completions that give no gradient: every advantage is 0, and nothing but advantages gives any."""
    has_more = bool(objective.kl_coefficient or objective.entropy_coefficient)
    return np.array([not has_more and not advantages.any() for advantages in batch.advantages])
