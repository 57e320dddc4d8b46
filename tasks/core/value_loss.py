"""The critic's objective: the clipped value loss, token by token."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ValueLoss:
    """Loss of a set of tokens and what is needed to describe it."""

    loss: Tensor
    """Scalar: sum over the given tokens of weight * token loss. Micro-batches add up."""
    is_clipped_N: Tensor
    """The clipped term is the larger one, so that the token gives no gradient (detached)."""


def value_loss(
    values_N: Tensor, stored_values_N: Tensor, returns_N: Tensor, weights_N: Tensor, *, value_clip: float
) -> ValueLoss:
    """Clipped value loss (PPO2 of OpenAI baselines; verl and TRL use the same).

        clipped = V_old + clamp(V - V_old, -value_clip, value_clip)
        l       = 1/2 max((V - R)^2, (clipped - R)^2)
        loss    = sum over tokens of weight * l

    V are the critic's values now, V_old (`stored_values_N`) those that the returns R were made with; all [N], in units
    of reward, one per completion token. With weights 1 / N counted over the whole mini-batch, micro-batches add up to
    its mean. Only values_N carries a gradient: weight * (V - R); or 0 where V has moved more than value_clip towards
    R, and the clipped term is the larger one. Where V has moved that far away from R, the plain term is the larger one
    and pulls it back. At V = V_old the loss is 1/2 (V - R)^2.
    Without tokens the loss is 0.
    """
    moved_N = (values_N - stored_values_N).clamp(-value_clip, value_clip)
    plain_N = (values_N - returns_N) ** 2
    clipped_N = (stored_values_N + moved_N - returns_N) ** 2
    return ValueLoss(
        loss=0.5 * (weights_N * torch.maximum(plain_N, clipped_N)).sum(),
        is_clipped_N=(clipped_N > plain_N).detach(),
    )
