"""What the updates table says of an update: figures of every token, gathered micro-batch by micro-batch."""

import numpy as np
import torch
from torch import Tensor

from tasks.core.objective import PolicyLoss, kl_estimate
from tasks.engines.batch import Batch, flat

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

QUANTILES = {"min": 0.0, "p05": 0.05, "p50": 0.5, "p95": 0.95, "max": 1.0}
"""End of a column's name to the quantile that it holds."""


class TokenFigures:
    """Figures [N] of a mini-batch's tokens, put where the tokens stand in it."""

    def __init__(self, num_tokens: int) -> None:
        self.num_tokens = num_tokens
        self.found: dict[str, Tensor] = {}

    def add(self, index_n: Tensor, result: PolicyLoss, logprob_n: Tensor, entropy_n: Tensor) -> None:
        """The figures of some of the tokens."""
        values = {
            "logprob": logprob_n.detach(),
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
        row = {"kl": float((ratio_N - 1 - ratio_N.log()).mean())} | _quantiles("ratio", ratio_N)
        return row | {column: float(found[name].mean()) for name, column in MEANS.items() if name in found}


def mismatch(batch: Batch, logprob_N: Tensor) -> dict[str, float]:
    """How far trainer and sampler are apart on the trainable tokens: two engines that should give the same numbers.

        d = trainer_logprob - log(kept mass) - sampler_logprob

    The trainer is the policy before the step's first update where the batch says what that one gave, else the one that
    the update starts from, with its `logprob_N`. Where the sampler drew from a nucleus, the log of the mass that the
    trainer's own keeps is taken off (else it is 0), so that d says nothing of top-p. The KL is k3's mean(e^d - 1 - d).
    """
    cpu = torch.device("cpu")
    trainer_N = logprob_N.cpu() if batch.trainer_logprobs is None else flat(batch.trainer_logprobs, cpu)
    trainer_N, sampler_N = trainer_N.double(), flat(batch.sampler_logprobs, cpu).double()
    kept_N = None if batch.kept_mass is None else flat(batch.kept_mass, cpu).double()
    if kept_N is not None:
        trainer_N = trainer_N - kept_N.log()
    if batch.loss_mask is not None:
        mask_N = flat(batch.loss_mask, cpu)
        trainer_N, sampler_N = trainer_N[mask_N], sampler_N[mask_N]
        kept_N = None if kept_N is None else kept_N[mask_N]
    row = _quantiles("mismatch", trainer_N - sampler_N)
    row["mismatch_kl"] = float(kl_estimate(sampler_N, trainer_N, "k3").mean())
    return row if kept_N is None else row | {"kept_mass": float(kept_N.mean())}


def _quantiles(name: str, values_N: Tensor) -> dict[str, float]:
    found = np.quantile(values_N.numpy(), list(QUANTILES.values()))
    return {f"{name}_{end}": float(value) for end, value in zip(QUANTILES, found, strict=True)}
