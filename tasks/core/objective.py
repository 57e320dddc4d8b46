"""The training objective: the clipped policy-gradient surrogate, token by token, under one global normalisation."""

from dataclasses import dataclass

import torch
from torch import Tensor

LOG_RATIO_CLAMP = 20.0
"""Log-ratios are clamped to +-20 before exp: e^20 = 4.9e8 is far beyond any clip and still finite."""

NORMALIZATIONS = ("token_mean", "sequence_mean", "prompt_mean", "constant")
KL_ESTIMATORS = ("k1", "k2", "k3")


@dataclass(frozen=True, kw_only=True)
class Objective:
    """Everything that decides a token's loss but the numbers of the token itself."""

    clip_low: float = 0.2
    """Ratios below 1 - clip_low give no gradient where A < 0."""
    clip_high: float = 0.28
    """Ratios above 1 + clip_high give no gradient where A > 0."""
    dual_clip: float = 3.0
    """Where A < 0 a token's loss is at most dual_clip * |A|."""
    normalization: str = "token_mean"
    """One of NORMALIZATIONS: see `token_weights`."""
    max_tokens: int = 1
    """Longest completion; the denominator of `constant`."""
    temperature: float = 1.0
    """Log-probabilities are those of softmax(logits / temperature)."""
    kl_coefficient: float = 0.0
    """Weight of the KL to the reference policy, 0 for none."""
    kl_estimator: str = "k3"
    """One of KL_ESTIMATORS: see `kl_estimate`."""
    entropy_coefficient: float = 0.0
    """Weight of the entropy bonus, 0 for none."""
    importance_sampling: str = "none"
    """Correction for a sampler that is not the trainer: 'none', 'token' or 'sequence': see `importance_weights`."""
    importance_mode: str = "truncate"
    """What happens to a weight above the cap: 'truncate' sets it to the cap, 'mask' to 0."""
    importance_cap: float = 2.0
    """Largest importance weight."""


@dataclass(frozen=True, kw_only=True)
class TokenSignals:
    """What the loss needs to know of N tokens, all [N] and without gradient; absent ones are not needed."""

    advantages_N: Tensor
    weights_N: Tensor
    """From `token_weights`: counted over the whole mini-batch, so that parts of it add up."""
    anchor_logprobs_N: Tensor
    """Denominator of the ratio: sampler_logprobs; trainer_logprobs before the step where importance_sampling is on."""
    importance_N: Tensor | None = None
    """From `importance_weights`; absent: 1."""
    reference_logprobs_N: Tensor | None = None
    """Of the reference policy; needed where kl_coefficient is not 0."""

    def take(self, index_n: Tensor) -> "TokenSignals":
        """The signals of some of the tokens."""
        return TokenSignals(
            advantages_N=self.advantages_N[index_n],
            weights_N=self.weights_N[index_n],
            anchor_logprobs_N=self.anchor_logprobs_N[index_n],
            importance_N=None if self.importance_N is None else self.importance_N[index_n],
            reference_logprobs_N=None if self.reference_logprobs_N is None else self.reference_logprobs_N[index_n],
        )


@dataclass(frozen=True)
class PolicyLoss:
    """Loss of a set of tokens and what is needed to describe it (all [N], detached, but `loss`)."""

    loss: Tensor
    """Scalar: sum over the given tokens of weight * token loss. Micro-batches add up."""
    ratio_N: Tensor
    """Importance ratio exp(trainer_logprob - anchor_logprob)."""
    is_clipped_low_N: Tensor
    """A < 0 and the ratio is below 1 - clip_low: no gradient."""
    is_clipped_high_N: Tensor
    """A > 0 and the ratio is above 1 + clip_high: no gradient."""
    is_dual_clipped_N: Tensor
    """A < 0 and the loss was held at dual_clip * |A|: no gradient."""
    reference_kl_N: Tensor | None
    """The KL estimate of each token, where there is a reference."""


def token_weights(
    lengths_R: Tensor,
    group_index_R: Tensor,
    normalization: str,
    *,
    max_tokens: int,
    loss_mask_N: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Weight [N] of every token's loss, counted once over the whole mini-batch, so that micro-batches only add up.

    With R completions of T_i trainable tokens (N = sum of T_i) in P groups, N_p tokens in group p:

        token_mean      1 / N                  every token counts the same (DAPO, arXiv 2503.14476 eq. 8)
        sequence_mean   1 / (R * T_i)          every completion counts the same (GRPO, arXiv 2402.03300 eq. 3)
        prompt_mean     1 / (P * N_p)          every group counts the same, its tokens alike
        constant        1 / (R * max_tokens)   length does not matter (Dr.GRPO, arXiv 2503.20783)

    lengths_R counts all tokens; T_i are those that loss_mask_N (bool [N], absent: all) marks, the others weigh 0.
    Empty completions have no tokens; under sequence_mean they still count in R. Raises ValueError for another name.
    """
    num_completions, all_lengths_R = lengths_R.numel(), lengths_R.to(torch.int64)
    lengths_R = all_lengths_R if loss_mask_N is None else _sums(loss_mask_N.to(torch.int64), all_lengths_R)
    num_tokens = int(lengths_R.sum())
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
    weights_N = torch.repeat_interleave(weights_R, all_lengths_R).to(dtype)
    return weights_N if loss_mask_N is None else weights_N * loss_mask_N


def policy_loss(
    trainer_logprobs_N: Tensor, entropy_N: Tensor | None, signals: TokenSignals, objective: Objective
) -> PolicyLoss:
    """Clipped surrogate (PPO, arXiv 1707.06347) with asymmetric clip (DAPO) and dual clip (arXiv 1912.09729).

        ratio = exp(clamp(trainer_logprob - anchor_logprob, -20, 20))
        l     = max(-A * ratio, -A * clamp(ratio, 1 - clip_low, 1 + clip_high))
        l     = min(l, dual_clip * |A|)          where A < 0
        loss  = sum over tokens of weight * (importance * l + kl_coefficient * KL - entropy_coefficient * entropy)

    At ratio = 1 the surrogate's gradient is that of -sum(weight * A * trainer_logprob). Tokens with A = 0 give none.
    All arguments are [N], one entry per completion token; trainer_logprobs_N and entropy_N carry the gradient.
    """
    advantages_N = signals.advantages_N
    log_ratio_N = trainer_logprobs_N - signals.anchor_logprobs_N
    ratio_N = log_ratio_N.clamp(-LOG_RATIO_CLAMP, LOG_RATIO_CLAMP).exp()
    clipped_N = -advantages_N * ratio_N.clamp(1 - objective.clip_low, 1 + objective.clip_high)
    surrogate_N = torch.maximum(-advantages_N * ratio_N, clipped_N)
    is_negative_N = advantages_N < 0
    ceiling_N = objective.dual_clip * advantages_N.abs()
    token_loss_N = torch.where(is_negative_N, torch.minimum(surrogate_N, ceiling_N), surrogate_N)
    if signals.importance_N is not None:
        token_loss_N = token_loss_N * signals.importance_N
    kl_N = None
    if signals.reference_logprobs_N is not None:
        kl_N = kl_estimate(trainer_logprobs_N, signals.reference_logprobs_N, objective.kl_estimator)
        token_loss_N = token_loss_N + objective.kl_coefficient * kl_N
    if objective.entropy_coefficient and entropy_N is not None:
        token_loss_N = token_loss_N - objective.entropy_coefficient * entropy_N
    ratio_N = ratio_N.detach()
    return PolicyLoss(
        loss=(signals.weights_N * token_loss_N).sum(),
        ratio_N=ratio_N,
        is_clipped_low_N=is_negative_N & (ratio_N < 1 - objective.clip_low),
        is_clipped_high_N=(advantages_N > 0) & (ratio_N > 1 + objective.clip_high),
        is_dual_clipped_N=is_negative_N & (surrogate_N.detach() > ceiling_N),
        reference_kl_N=None if kl_N is None else kl_N.detach(),
    )


def kl_estimate(trainer_logprobs_N: Tensor, reference_logprobs_N: Tensor, estimator: str) -> Tensor:
    """Estimate [N], in nats, of KL(trainer || reference) from tokens that the trainer's policy sampled.

    With d = trainer_logprob - reference_logprob (Schulman, "Approximating KL divergence", 2020):

        k1   d                   unbiased; as a loss its expected gradient on policy is 0, so it regularises nothing
        k2   d^2 / 2             biased value; its gradient on policy is that of the KL
        k3   exp(-d) - 1 + d     unbiased, never negative; GRPO's choice (arXiv 2402.03300 eq. 4)

    d is clamped to +-20 in the exponent. Raises ValueError for another name.
    """
    log_ratio_N = trainer_logprobs_N - reference_logprobs_N
    if estimator == "k1":
        return log_ratio_N
    if estimator == "k2":
        return log_ratio_N.square() / 2
    if estimator == "k3":
        return (-log_ratio_N).clamp(-LOG_RATIO_CLAMP, LOG_RATIO_CLAMP).exp() - 1 + log_ratio_N
    raise ValueError(f"kl_estimator: expected one of {', '.join(KL_ESTIMATORS)}, got {estimator!r}")


def importance_weights(
    trainer_logprobs_N: Tensor,
    sampler_logprobs_N: Tensor,
    lengths_R: Tensor,
    objective: Objective,
    loss_mask_N: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Weight [N] that corrects for a sampler whose probabilities are not the trainer's, and whether it met the cap.

        token      w_t = exp(trainer_logprob_t - sampler_logprob_t)
        sequence   w_t = exp(sum over the completion's tokens of the same difference), one weight a completion

    with the trainer's log-probabilities before the step's updates, so that w is a constant of the objective. Truncated
    importance sampling ('truncate': min(w, cap); Ionides 2008; Yao et al., "Your efficient RL framework secretly brings
    you off-policy RL training", 2025) keeps every token; 'mask' drops what lies above the cap.
    Differences are clamped to +-20; tokens outside loss_mask_N were not sampled and count as 0.
    Raises ValueError for another name.
    """
    log_weight_N = trainer_logprobs_N - sampler_logprobs_N
    if loss_mask_N is not None:
        log_weight_N = log_weight_N * loss_mask_N
    if objective.importance_sampling == "sequence":
        log_weight_N = torch.repeat_interleave(_sums(log_weight_N, lengths_R), lengths_R)
    elif objective.importance_sampling != "token":
        raise ValueError(f"importance_sampling: expected token or sequence, got {objective.importance_sampling!r}")
    weight_N = log_weight_N.clamp(-LOG_RATIO_CLAMP, LOG_RATIO_CLAMP).exp()
    is_capped_N = weight_N > objective.importance_cap
    if objective.importance_mode == "mask":
        return weight_N.masked_fill(is_capped_N, 0), is_capped_N
    if objective.importance_mode != "truncate":
        raise ValueError(f"importance_mode: expected truncate or mask, got {objective.importance_mode!r}")
    return weight_N.clamp(max=objective.importance_cap), is_capped_N


def _sums(values_N: Tensor, lengths_R: Tensor) -> Tensor:
    """Sum of each completion's values."""
    row_N = torch.repeat_interleave(torch.arange(lengths_R.numel(), device=lengths_R.device), lengths_R)
    return torch.zeros(lengths_R.numel(), dtype=values_N.dtype, device=values_N.device).index_add_(0, row_N, values_N)
