"""The output head: log-probability, entropy, loss and gradient of a chunk of rows in one pass over its logits.

Inside a chunk the logits give the log-probabilities, these the loss and its derivative by each of them, and that the
derivative by the logits, written over them; the products with the head's weight and with the hidden states follow at
once. Logits are neither kept nor made again: memory is one chunk of V, whatever the number of tokens. This is exact
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
from tasks.core.sampling import kept_mass

MAX_LOGITS = {"cpu": 2**25, "cuda": 2**28}
"""Logits held at once, by kind of device: 128 MB in fp32 on a CPU, where a chunk this size keeps matrix products at
their peak, and 1 GB on a GPU, where each chunk also costs a pass over the weight's gradient."""

BLOCK_LOGITS = 2**18
"""Logits that a CPU normalises at once: 1 MB in fp32 and as much of exponentials stay in its cache (0.6 of the time
that whole chunks take, at V = 32k and 152k)."""

SORTED_SHARE = 16
"""A chunk is sorted for its nuclei in this many parts: sorting takes seven times its memory, in int64 and fp64."""

Autocast = Callable[[], AbstractContextManager[Any]]
"""Makes the context that forward passes and products with the head's weight run in."""

TokenLoss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(log-probabilities, entropies, their indices among the N tokens) -> sum of the weighted losses of those tokens."""


@dataclass
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
    product = _Product(head, autocast, hidden_UH.device)
    result = HeadResult(0.0, cotangent_UH, logprob_N, entropy_N)
    for chunk in _chunks(layout, head.weight.shape[0], hidden_UH.device):
        result.loss += _chunk_pass(product, hidden_UH[chunk.rows], chunk, token_loss, temperature, result)
    return result


def _chunk_pass(
    product: "_Product", hidden_uH: Tensor, chunk: _Chunk, token_loss: TokenLoss, temperature: float, result: HeadResult
) -> float:
    """Put one chunk's figures and cotangent into the result; returns its loss."""
    logits_uV = product.logits(hidden_uH, temperature)
    log_total_u, entropy_u = _normalise(logits_uV)
    row_n, logprob_n = _token_logprobs(logits_uV, log_total_u, chunk)
    logprob_n, entropy_n = logprob_n.requires_grad_(), entropy_u[row_n].requires_grad_()
    with torch.enable_grad():
        part = token_loss(logprob_n, entropy_n, chunk.tokens_n)
        by_logprob_n, by_entropy_n = torch.autograd.grad(part, (logprob_n, entropy_n), allow_unused=True)
    result.logprob_N[chunk.tokens_n], result.entropy_N[chunk.tokens_n] = logprob_n.detach(), entropy_n.detach()
    if not any(by is not None and by.any() for by in (by_logprob_n, by_entropy_n)):
        result.cotangent_UH[chunk.rows] = 0
        return float(part.detach())
    by_row_u, by_entropy_u = (
        None if by is None else torch.zeros_like(log_total_u).index_add_(0, row_n, by)
        for by in (by_logprob_n, by_entropy_n)
    )
    _to_gradient(logits_uV, log_total_u, entropy_u, by_row_u, by_entropy_u)
    if by_logprob_n is not None:
        index = (row_n, chunk.edge_token_e[chunk.token_edge_n])
        logits_uV.index_put_(index, by_logprob_n, accumulate=True)
    if temperature != 1:
        logits_uV /= temperature
    result.cotangent_UH[chunk.rows] = product.backward(hidden_uH, logits_uV)
    return float(part.detach())


@torch.no_grad()
def head_logprobs(
    model: Any,
    hidden_UH: Tensor,
    layout: Layout,
    temperature: float,
    *,
    top_p: float = 1.0,
    autocast: Autocast = nullcontext,
) -> tuple[Tensor, ...]:
    """log p and entropy [N] alone, chunk by chunk; with top_p below 1 also the mass [N] that the nucleus keeps."""
    head = model.get_output_embeddings()
    kind = torch.promote_types(hidden_UH.dtype, torch.float32)
    found = torch.empty(3 if top_p < 1 else 2, layout.token_edge_N.size, dtype=kind, device=hidden_UH.device)
    logprob_N, entropy_N = found[:2]
    product = _Product(head, autocast, hidden_UH.device)
    for chunk in _chunks(layout, head.weight.shape[0], hidden_UH.device):
        logits_uV = product.logits(hidden_UH[chunk.rows], temperature)
        log_total_u, entropy_u = _normalise(logits_uV)
        row_n, logprob_N[chunk.tokens_n] = _token_logprobs(logits_uV, log_total_u, chunk)
        entropy_N[chunk.tokens_n] = entropy_u[row_n]
        if top_p < 1:
            found[2, chunk.tokens_n] = _kept_mass(logits_uV, log_total_u, top_p).to(kind)[row_n]
        del logits_uV  # before the next chunk's are made
    return tuple(found)


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


def _token_logprobs(z_uV: Tensor, log_total_u: Tensor, chunk: _Chunk) -> tuple[Tensor, Tensor]:
    """The parent's row and the log-probability of each of the chunk's tokens."""
    row_n = chunk.edge_row_e[chunk.token_edge_n]
    return row_n, z_uV[row_n, chunk.edge_token_e[chunk.token_edge_n]] - log_total_u[row_n]


def _blocks(logits_uV: Tensor) -> Iterator[slice]:
    """Rows that are normalised at once: those of the cache on a CPU, all of them elsewhere."""
    num_rows, vocabulary = logits_uV.shape
    size = max(BLOCK_LOGITS // vocabulary, 1) if logits_uV.device.type == "cpu" else num_rows
    for low in range(0, num_rows, size):
        yield slice(low, min(low + size, num_rows))


@torch.no_grad()
def _normalise(logits_uV: Tensor) -> tuple[Tensor, Tensor]:
    """log of the sum of exponentials, and entropy, of each row. The logits become z = logits - max.

    With s = sum(exp z): log p = z - log s, entropy = log s - sum(exp(z) z) / s.
    """
    log_total_u, entropy_u = logits_uV.new_empty(2, len(logits_uV))
    for rows in _blocks(logits_uV):
        z_bV = logits_uV[rows]
        z_bV -= z_bV.amax(dim=1, keepdim=True)
        exp_bV = z_bV.exp()
        total_b = exp_bV.sum(dim=1)
        log_total_u[rows] = total_b.log()
        entropy_u[rows] = log_total_u[rows] - torch.einsum("bv,bv->b", exp_bV, z_bV) / total_b
    return log_total_u, entropy_u


def _kept_mass(z_uV: Tensor, log_total_u: Tensor, top_p: float) -> Tensor:
    """Mass [u] of each row's nucleus, from z and log s of `_normalise`; a part of the rows is sorted at a time."""
    size = -(-len(z_uV) // SORTED_SHARE)
    parts = zip(z_uV.split(size), log_total_u.split(size), strict=True)
    return torch.cat([kept_mass(z_bV - log_total_b[:, None], top_p) for z_bV, log_total_b in parts])


@torch.no_grad()
def _to_gradient(
    z_uV: Tensor, log_total_u: Tensor, entropy_u: Tensor, by_row_u: Tensor | None, by_entropy_u: Tensor | None
) -> None:
    """Turn z into d loss / d logits but for the targets' own term: with g and h the derivatives of the loss by a row's
    log-probabilities, summed, and by its entropy H,

        d loss / d logits = g * (onehot - p) - h * p * (log p + H)
    """
    for rows in _blocks(z_uV):
        log_p_bV = z_uV[rows]
        log_p_bV -= log_total_u[rows, None]
        if by_entropy_u is None:
            assert by_row_u is not None
            log_p_bV.exp_().mul_(-by_row_u[rows, None])
            continue
        p_bV = log_p_bV.exp()
        log_p_bV.add_(entropy_u[rows, None]).mul_(-by_entropy_u[rows, None])
        if by_row_u is not None:
            log_p_bV -= by_row_u[rows, None]
        log_p_bV *= p_bV


class _Product:
    """Products with the head's weight, which is brought to the autocast type once for all chunks."""

    def __init__(self, head: Any, autocast: Autocast, device: torch.device) -> None:
        self.weight, self.bias = head.weight, getattr(head, "bias", None)
        with autocast():
            is_on = torch.is_autocast_enabled(device.type)
            self.kind = torch.get_autocast_dtype(device.type) if is_on else self.weight.dtype
        self.factor = self.weight.detach().to(self.kind)

    @torch.no_grad()
    def logits(self, hidden_uH: Tensor, temperature: float) -> Tensor:
        """Divided by the temperature, in fp32 at least."""
        bias = None if self.bias is None else self.bias.to(self.kind)
        logits_uV = torch.nn.functional.linear(hidden_uH.to(self.kind), self.factor, bias)
        logits_uV = logits_uV.to(torch.promote_types(hidden_uH.dtype, torch.float32))
        return logits_uV if temperature == 1 else logits_uV.div_(temperature)

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
