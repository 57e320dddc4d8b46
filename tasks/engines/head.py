"""The output head: log-probability, entropy, loss and gradient of a chunk of rows in one pass over its logits.

Inside a chunk the logits give the log-probabilities, these the loss and its derivative by each of them, and that the
derivative by the logits, written over them; the products with the head's weight and with the hidden states follow at
once. Logits are neither kept nor made again: memory is two chunks of V, whatever the number of tokens. This is exact
where the loss is a sum over tokens of functions of the token's log-probability and entropy, as ours is.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tasks.core.layout import Layout

MAX_LOGITS = {"cpu": 2**25, "cuda": 2**28}
"""Logits held at once, by kind of device: 128 MB in fp32 on a CPU, where a chunk this size keeps matrix products at
their peak, and 1 GB on a GPU, where each chunk also costs a pass over the weight's gradient. A gradient by the logits
takes as much again."""

Autocast = Callable[[], AbstractContextManager[Any]]
"""Makes the context that forward passes and products with the head's weight run in."""

TokenLoss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(log-probabilities, entropies, their indices among the N tokens) -> sum of the weighted losses of those tokens."""


@dataclass(frozen=True)
class HeadResult:
    """What the pass over the head gives, but for the weight's gradient, which is added to `weight.grad`."""

    loss: float
    cotangent_UH: Tensor
    """d loss / d hidden state of each parent, in the hidden states' type."""
    logprob_N: Tensor
    """log p of each completion token, at the temperature (detached)."""
    entropy_N: Tensor
    """Entropy of the distribution that each token was taken from, in nats (detached)."""


@dataclass(frozen=True)
class _Chunk:
    """Some of the parents, the edges that leave them and the tokens on those edges (edges and tokens are sorted so)."""

    rows: slice
    edge_row_e: Tensor
    edge_token_e: Tensor
    token_edge_n: Tensor
    tokens_n: Tensor


def head_pass(
    model: Any,
    hidden_UH: Tensor,
    layout: Layout,
    token_loss: TokenLoss,
    temperature: float,
    *,
    autocast: Autocast = nullcontext,
) -> HeadResult:
    """Loss and gradient at the hidden states (detached) of the layout's parents; adds to the head's own gradients.

    The distribution is softmax(logits / temperature). Products with the head's weight run under `autocast`; softmax,
    loss and their derivatives are at least fp32. Chunks whose tokens have no gradient cost their logits only.
    """
    hidden_UH = hidden_UH.detach()
    head = model.get_output_embeddings()
    num_tokens = layout.token_edge_N.size
    kind = torch.promote_types(hidden_UH.dtype, torch.float32)
    logprob_N, entropy_N = torch.empty(2, num_tokens, dtype=kind, device=hidden_UH.device)
    cotangent_UH = torch.empty_like(hidden_UH)
    loss, product = 0.0, _Product(head, autocast, hidden_UH.device)
    for chunk in _chunks(layout, head.weight.shape[0], hidden_UH.device):
        logits_uV = product.logits(hidden_UH[chunk.rows]).to(kind)
        if temperature != 1:
            logits_uV /= temperature
        logprob_e, entropy_e, exp_uV, total_u = _softmax(logits_uV, chunk)
        logprob_n = logprob_e[chunk.token_edge_n].requires_grad_()
        entropy_n = entropy_e[chunk.token_edge_n].requires_grad_()
        with torch.enable_grad():
            part = token_loss(logprob_n, entropy_n, chunk.tokens_n)
            by_logprob_n, by_entropy_n = torch.autograd.grad(part, (logprob_n, entropy_n), allow_unused=True)
        loss += float(part.detach())
        logprob_N[chunk.tokens_n], entropy_N[chunk.tokens_n] = logprob_n.detach(), entropy_n.detach()
        if not any(by is not None and by.any() for by in (by_logprob_n, by_entropy_n)):
            cotangent_UH[chunk.rows] = 0
            continue
        by_logits_uV = _by_logits(logits_uV, exp_uV, total_u, chunk, by_logprob_n, by_entropy_n)
        if temperature != 1:
            by_logits_uV /= temperature
        cotangent_UH[chunk.rows] = product.backward(hidden_UH[chunk.rows], by_logits_uV)
    return HeadResult(loss, cotangent_UH, logprob_N, entropy_N)


@torch.no_grad()
def head_logprobs(
    model: Any, hidden_UH: Tensor, layout: Layout, temperature: float, *, autocast: Autocast = nullcontext
) -> tuple[Tensor, Tensor]:
    """log p and entropy [N] alone, chunk by chunk."""
    head = model.get_output_embeddings()
    kind = torch.promote_types(hidden_UH.dtype, torch.float32)
    logprob_N, entropy_N = torch.empty(2, layout.token_edge_N.size, dtype=kind, device=hidden_UH.device)
    product = _Product(head, autocast, hidden_UH.device)
    for chunk in _chunks(layout, head.weight.shape[0], hidden_UH.device):
        logits_uV = product.logits(hidden_UH[chunk.rows]).to(kind)
        if temperature != 1:
            logits_uV /= temperature
        logprob_e, entropy_e, _, _ = _softmax(logits_uV, chunk)
        logprob_N[chunk.tokens_n] = logprob_e[chunk.token_edge_n]
        entropy_N[chunk.tokens_n] = entropy_e[chunk.token_edge_n]
    return logprob_N, entropy_N


def _chunks(layout: Layout, vocabulary: int, device: torch.device) -> Iterator[_Chunk]:
    """The parents in chunks of MAX_LOGITS / V, with their edges and tokens."""
    size = max(MAX_LOGITS.get(device.type, MAX_LOGITS["cuda"]) // vocabulary, 1)
    num_parents = layout.parent_U.size
    order_N = np.argsort(layout.token_edge_N, kind="stable")
    sorted_edge_N = layout.token_edge_N[order_N]
    for low in range(0, num_parents, size):
        high = min(low + size, num_parents)
        first, last = np.searchsorted(layout.edge_parent_E, (low, high))
        begin, end = np.searchsorted(sorted_edge_N, (first, last))
        arrays = (
            layout.edge_parent_E[first:last] - low,
            layout.edge_token_E[first:last],
            sorted_edge_N[begin:end] - first,
            order_N[begin:end],
        )
        yield _Chunk(slice(low, high), *(torch.from_numpy(array).to(device) for array in arrays))


@torch.no_grad()
def _softmax(logits_uV: Tensor, chunk: _Chunk) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Log-probability and entropy of each edge; exp(logits - max) and its sums. The logits become logits - max.

    With z = logits - max and s = sum(exp z): log p = z - log s, entropy = log s - sum(exp(z) z) / s.
    """
    logits_uV -= logits_uV.amax(dim=1, keepdim=True)
    exp_uV = logits_uV.exp()
    total_u = exp_uV.sum(dim=1)
    entropy_u = total_u.log() - torch.einsum("uv,uv->u", exp_uV, logits_uV) / total_u
    logprob_e = logits_uV[chunk.edge_row_e, chunk.edge_token_e] - total_u.log()[chunk.edge_row_e]
    return logprob_e, entropy_u[chunk.edge_row_e], exp_uV, total_u


@torch.no_grad()
def _by_logits(
    logits_uV: Tensor,
    exp_uV: Tensor,
    total_u: Tensor,
    chunk: _Chunk,
    by_logprob_n: Tensor | None,
    by_entropy_n: Tensor | None,
) -> Tensor:
    """d loss / d logits, written over exp_uV: with g and h the derivatives by log p and entropy H, summed over an edge

    d loss / d logits = g * (onehot - p) - h * p * (log p + H)
    """
    row_n = chunk.edge_row_e[chunk.token_edge_n]
    by_row_u = torch.zeros_like(total_u)
    if by_logprob_n is not None:
        by_row_u.index_add_(0, row_n, by_logprob_n)
    if by_entropy_n is not None:
        h_u = torch.zeros_like(total_u).index_add_(0, row_n, by_entropy_n)
        mean_u = torch.einsum("uv,uv->u", exp_uV, logits_uV) / total_u  # log p + H = z - sum(p z)
        logits_uV.sub_(mean_u[:, None]).mul_(h_u[:, None]).add_(by_row_u[:, None])
        exp_uV.mul_(logits_uV).mul_(-1 / total_u[:, None])
    else:
        exp_uV.mul_((-by_row_u / total_u)[:, None])
    if by_logprob_n is not None:
        index = (row_n, chunk.edge_token_e[chunk.token_edge_n])
        exp_uV.index_put_(index, by_logprob_n, accumulate=True)
    return exp_uV


class _Product:
    """Products with the head's weight, which is brought to the autocast type once for all chunks."""

    def __init__(self, head: Any, autocast: Autocast, device: torch.device) -> None:
        self.weight, self.bias = head.weight, getattr(head, "bias", None)
        with autocast():
            is_on = torch.is_autocast_enabled(device.type)
            self.kind = torch.get_autocast_dtype(device.type) if is_on else self.weight.dtype
        self.factor = self.weight.detach().to(self.kind)

    @torch.no_grad()
    def logits(self, hidden_uH: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(self.kind)
        return torch.nn.functional.linear(hidden_uH.to(self.kind), self.factor, bias)

    @torch.no_grad()
    def backward(self, hidden_uH: Tensor, by_logits_uV: Tensor) -> Tensor:
        """Add the gradients of the weight and the bias; return that of the hidden states."""
        by_logits_uV = by_logits_uV.to(self.kind)
        if self.weight.requires_grad:
            if self.weight.grad is None:
                self.weight.grad = torch.zeros_like(self.weight)
            if self.kind == self.weight.grad.dtype:
                self.weight.grad.addmm_(by_logits_uV.T, hidden_uH.to(self.kind))
            else:
                self.weight.grad += by_logits_uV.T @ hidden_uH.to(self.kind)
        if self.bias is not None and self.bias.requires_grad:
            summed_V = by_logits_uV.sum(dim=0).to(self.bias.dtype)
            self.bias.grad = summed_V if self.bias.grad is None else self.bias.grad + summed_V
        return by_logits_uV @ self.factor
