"""The training objective: the clipped policy-gradient surrogate, token by token, under one global normalisation."""

from dataclasses import dataclass

import torch
from torch import Tensor

LOG_RATIO_CLAMP = 20.0
"""log(trainer/sampler) is clamped to +-20 before exp: e^20 = 4.9e8 is far beyond any clip and still finite."""

NORMALIZATIONS = ("token_mean", "sequence_mean", "prompt_mean", "constant")


@dataclass(frozen=True)
class PolicyLoss:
    """Loss of a set of tokens and what is needed to describe it (all [N], detached, but `loss`)."""

    loss: Tensor
    """Scalar: sum over the given tokens of weight * token loss. Micro-batches add up."""
    ratio_N: Tensor
    """Importance ratio exp(trainer_logprob - sampler_logprob)."""
    is_clipped_low_N: Tensor
    """A < 0 and the ratio is below 1 - clip_low: no gradient."""
    is_clipped_high_N: Tensor
    """A > 0 and the ratio is above 1 + clip_high: no gradient."""
    is_dual_clipped_N: Tensor
    """A < 0 and the loss was held at dual_clip * |A|: no gradient."""


def token_weights(
    lengths_R: Tensor, group_index_R: Tensor, normalization: str, *, max_tokens: int, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Weight [N] of every token's loss, counted once over the whole mini-batch, so that micro-batches only add up.

    With R completions of lengths T_i (N = sum of T_i) in P groups, N_p tokens in group p:

        token_mean      1 / N                  every token counts the same (DAPO, arXiv 2503.14476 eq. 8)
        sequence_mean   1 / (R * T_i)          every completion counts the same (GRPO, arXiv 2402.03300 eq. 3)
        prompt_mean     1 / (P * N_p)          every group counts the same, its tokens alike
        constant        1 / (R * max_tokens)   length does not matter (Dr.GRPO, arXiv 2503.20783)

    Empty completions have no tokens; under sequence_mean they still count in R. Raises ValueError for another name.
    """
    num_completions, num_tokens = lengths_R.numel(), int(lengths_R.sum())
    lengths_R = lengths_R.to(torch.int64)
    if normalization == "token_mean":
        weights_R = torch.full((num_completions,), 1 / max(num_tokens, 1), dtype=torch.float64)
    elif normalization == "sequence_mean":
        weights_R = 1 / (num_completions * lengths_R.clamp(min=1).double())
    elif normalization == "prompt_mean":
        groups, index_R = torch.unique(group_index_R, return_inverse=True)
        tokens_P = torch.zeros(groups.numel(), dtype=torch.float64).index_add_(0, index_R, lengths_R.double())
        weights_R = 1 / (groups.numel() * tokens_P[index_R].clamp(min=1))
    elif normalization == "constant":
        weights_R = torch.full((num_completions,), 1 / (num_completions * max_tokens), dtype=torch.float64)
    else:
        raise ValueError(f"normalization: expected one of {', '.join(NORMALIZATIONS)}, got {normalization!r}")
    return torch.repeat_interleave(weights_R, lengths_R).to(dtype)


def policy_loss(
    trainer_logprobs_N: Tensor,
    sampler_logprobs_N: Tensor,
    advantages_N: Tensor,
    weights_N: Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    dual_clip: float = 3.0,
) -> PolicyLoss:
    """Clipped surrogate (PPO, arXiv 1707.06347) with asymmetric clip (DAPO) and dual clip (arXiv 1912.09729).

        ratio = exp(clamp(trainer_logprob - sampler_logprob, -20, 20))
        l     = max(-A * ratio, -A * clamp(ratio, 1 - clip_low, 1 + clip_high))
        l     = min(l, dual_clip * |A|)          where A < 0
        loss  = sum over tokens of weight * l

    At ratio = 1 the gradient is that of -sum(weight * A * trainer_logprob). Tokens with A = 0 give no gradient.
    All arguments are [N], one entry per completion token; only trainer_logprobs_N carries a gradient.
    """
    log_ratio_N = (trainer_logprobs_N - sampler_logprobs_N).clamp(-LOG_RATIO_CLAMP, LOG_RATIO_CLAMP)
    ratio_N = log_ratio_N.exp()
    unclipped_N = -advantages_N * ratio_N
    clipped_N = -advantages_N * ratio_N.clamp(1 - clip_low, 1 + clip_high)
    surrogate_N = torch.maximum(unclipped_N, clipped_N)
    is_negative_N = advantages_N < 0
    ceiling_N = dual_clip * advantages_N.abs()
    token_loss_N = torch.where(is_negative_N, torch.minimum(surrogate_N, ceiling_N), surrogate_N)
    ratio_N = ratio_N.detach()
    return PolicyLoss(
        loss=(weights_N * token_loss_N).sum(),
        ratio_N=ratio_N,
        is_clipped_low_N=is_negative_N & (ratio_N < 1 - clip_low),
        is_clipped_high_N=(advantages_N > 0) & (ratio_N > 1 + clip_high),
        is_dual_clipped_N=is_negative_N & (surrogate_N.detach() > ceiling_N),
    )
