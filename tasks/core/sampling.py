"""Drawing tokens from logits, with the log-probability of each under the distribution it was drawn from; nuclei."""

import torch
from torch import Tensor


def draw_tokens(logits_BV: Tensor, uniforms_B: Tensor, *, temperature: float, top_p: float) -> tuple[Tensor, Tensor]:
    """Draw one token per row by inverting the cumulative distribution at a given uniform number.

    Args:
        logits_BV: [B, V] logits of the next token.
        uniforms_B: [B] float64 numbers in [0, 1), one a row: the row's own random stream, so that a draw does not
            depend on which rows share the batch.
        temperature: divides the logits; 0 takes the most likely token.
        top_p: keeps the smallest set of most likely tokens whose mass reaches top_p (the token that crosses it
            included) and renormalises (nucleus sampling, arXiv 1904.09751).

    Returns:
        tokens [B] int64 and sampler_logprobs [B] float32: log p(token) under the distribution drawn from, temperature
        and top_p applied. At temperature 0 it is the log-probability at temperature 1: the draw itself is certain.
    """
    if temperature == 0:
        logprobs_BV = torch.log_softmax(logits_BV.float(), dim=-1)
        tokens_B = logprobs_BV.argmax(dim=-1)
        return tokens_B, logprobs_BV.gather(1, tokens_B[:, None])[:, 0]
    logprobs_BV = torch.log_softmax(logits_BV.float() / temperature, dim=-1)
    if top_p < 1:
        logprobs_BV = _nucleus(logprobs_BV, top_p)
    cumulative_BV = logprobs_BV.double().exp().cumsum(dim=-1)
    targets_B1 = uniforms_B[:, None] * cumulative_BV[:, -1:]
    tokens_B1 = torch.searchsorted(cumulative_BV, targets_B1, right=True).clamp_(max=logits_BV.shape[-1] - 1)
    return tokens_B1[:, 0], logprobs_BV.gather(1, tokens_B1)[:, 0]


def _nucleus(logprobs_BV: Tensor, top_p: float) -> Tensor:
    """Log-probabilities renormalised over the nucleus; -inf outside it. Ties go to the lower token id."""
    ordered_BV, order_BV = logprobs_BV.sort(dim=-1, descending=True, stable=True)
    ordered_BV = ordered_BV.masked_fill(_is_outside(ordered_BV.double().exp(), top_p), -torch.inf)
    kept_BV = torch.empty_like(logprobs_BV).scatter_(1, order_BV, ordered_BV)
    return kept_BV - torch.logsumexp(kept_BV, dim=-1, keepdim=True)


def kept_mass(logprobs_BV: Tensor, top_p: float) -> Tensor:
    """Mass [B], float64, of the nucleus that `draw_tokens` draws from: at least top_p, since the token that crosses it
    is kept. log p of a kept token is its plain log-probability minus the log of this mass.

    Ties do not matter here: whichever of equally likely tokens is kept, the mass is the same.
    """
    mass_BV = logprobs_BV.sort(dim=-1, descending=True).values.double().exp()
    return mass_BV.masked_fill_(_is_outside(mass_BV, top_p), 0).sum(dim=-1)


def _is_outside(mass_BV: Tensor, top_p: float) -> Tensor:
    """Which tokens, in order of falling mass, come after those whose mass reaches top_p."""
    return mass_BV.cumsum(dim=-1) - mass_BV >= top_p
