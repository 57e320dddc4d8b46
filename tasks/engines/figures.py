"""What the updates table says of an update: figures of every token, gathered micro-batch by micro-batch."""

import numpy as np
import torch
from torch import Tensor

from tasks.core.objective import PolicyLoss

MEANS = {
    "entropy": "entropy",
    "low": "clip_fraction_low",
    "high": "clip_fraction_high",
    "dual": "clip_fraction_dual",
    "reference_kl": "reference_kl",
    "importance": "importance_weight",
    "capped": "importance_capped",
}
"""Figure to column of the updates table, for those whose mean is stored."""


class TokenFigures:
    """Figures [N] of a mini-batch's tokens, put where the tokens stand in it."""

    def __init__(self, num_tokens: int) -> None:
        self.num_tokens = num_tokens
        self.found: dict[str, Tensor] = {}

    def add(self, index_n: Tensor, result: PolicyLoss, entropy_n: Tensor) -> None:
        """The figures of some of the tokens."""
        values = {
            "ratio": result.ratio_N,
            "entropy": entropy_n.detach(),
            "low": result.is_clipped_low_N,
            "high": result.is_clipped_high_N,
            "dual": result.is_dual_clipped_N,
            "reference_kl": result.reference_kl_N,
        }
        for name, value_n in values.items():
            if value_n is not None:
                if name not in self.found:
                    self.found[name] = torch.zeros(self.num_tokens, dtype=value_n.dtype, device=value_n.device)
                self.found[name][index_n] = value_n

    def describe(self, mask_N: Tensor | None) -> dict[str, float]:
        """Means and quantiles over the trainable tokens, and the k3 estimate mean(ratio - 1 - log ratio) of
        KL(anchor || trainer): the anchor is the sampler, or the trainer before the step under importance sampling."""
        found = {name: value_N.double().cpu() for name, value_N in self.found.items()}
        if mask_N is not None:
            found = {name: value_N[mask_N] for name, value_N in found.items()}
        ratio_N = found["ratio"]
        quantiles = np.quantile(ratio_N.numpy(), [0, 0.05, 0.5, 0.95, 1])
        names = ("ratio_min", "ratio_p05", "ratio_p50", "ratio_p95", "ratio_max")
        row = {"kl": float((ratio_N - 1 - ratio_N.log()).mean())} | dict(zip(names, map(float, quantiles), strict=True))
        return row | {column: float(found[name].mean()) for name, column in MEANS.items() if name in found}
