"""Optimiser updates on completions laid out as padded rows: supervised (warm start) and policy gradient (training)."""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from tasks.core.objective import policy_loss, token_weights
from tasks.engines.padding import padded_hidden
from tasks.engines.policy import Policy

if TYPE_CHECKING:
    from tasks.engines.critic import ValueTerm

MAX_LOGITS = 2**25
"""Logits held at once by the output head: 128 MB in fp32."""


@dataclass(frozen=True)
class Batch:
    """R completions with their prompts, and one number per completion token for each signal (flat, [N])."""

    prompts: Sequence[NDArray[np.int32]]
    completions: Sequence[NDArray[np.int32]]
    group_index_R: NDArray[np.int64]
    sampler_logprobs: Sequence[NDArray[np.float32]]
    advantages: Sequence[NDArray[np.float32]]
    values: Sequence[NDArray[np.float32]] | None = None
    """V(s_t) of the critic that the advantages were made with."""
    returns: Sequence[NDArray[np.float32]] | None = None
    """What the critic learns to predict."""

    def take(self, rows: NDArray[np.int64]) -> "Batch":
        def pick(values: Sequence[Any]) -> list[Any]:
            return [values[i] for i in rows]

        return Batch(
            pick(self.prompts),
            pick(self.completions),
            self.group_index_R[rows],
            pick(self.sampler_logprobs),
            pick(self.advantages),
            pick(self.values) if self.values is not None else None,
            pick(self.returns) if self.returns is not None else None,
        )


@dataclass(frozen=True, kw_only=True)
class Objective:
    """The keyword arguments of `policy_loss` and `token_weights`, and the sampling temperature."""

    clip_low: float
    clip_high: float
    dual_clip: float
    normalization: str
    max_tokens: int
    temperature: float


def make_optimizer(
    policy: Policy, *, learning_rate: float, weight_decay: float, betas: tuple[float, float]
) -> tuple[torch.optim.AdamW, dict[torch.nn.Parameter, str]]:
    """AdamW over every parameter, and the parameters' names (shared ones once)."""
    names = {parameter: name for name, parameter in policy.model.named_parameters()}
    optimizer = torch.optim.AdamW(list(names), lr=learning_rate, weight_decay=weight_decay, betas=betas, foreach=True)
    return optimizer, names


def completion_logprobs(
    policy: Policy, prompts: Sequence[NDArray[np.int32]], completions: Sequence[NDArray[np.int32]], temperature: float
) -> tuple[Tensor, Tensor]:
    """log p [N] of every completion token at `temperature`, and the entropy [N] (nats, detached) it was drawn at.

    The output head runs on the positions that predict completion tokens only.
    """
    hidden_NH, targets_N = padded_hidden(policy.model.base_model, prompts, completions)
    return _head_logprobs(policy, hidden_NH, targets_N, temperature)


def _head_logprobs(policy: Policy, hidden_NH: Tensor, targets_N: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """log p and entropy [N] at each hidden state; large ones in chunks whose logits are made again for the gradient.

    Memory then grows with the chunk times V, not with N times V, for one more product with the output head.
    """
    head = policy.model.get_output_embeddings()

    def logprobs(hidden_nH: Tensor, targets_n: Tensor) -> tuple[Tensor, Tensor]:
        logprobs_nV = torch.log_softmax(head(hidden_nH).float() / temperature, dim=-1)
        with torch.no_grad():
            entropy_n = -(logprobs_nV.exp() * logprobs_nV).sum(dim=-1)
        return logprobs_nV.gather(1, targets_n[:, None])[:, 0], entropy_n

    chunk = max(MAX_LOGITS // head.weight.shape[0], 1)
    if targets_N.numel() <= chunk:
        return logprobs(hidden_NH, targets_N)
    parts = [
        checkpoint(logprobs, hidden_nH, targets_n, use_reentrant=False)
        for hidden_nH, targets_n in zip(hidden_NH.split(chunk), targets_N.split(chunk), strict=True)
    ]
    return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])


def micro_batches(
    prompts: Sequence[NDArray[np.int32]], completions: Sequence[NDArray[np.int32]], micro_batch_tokens: int
) -> Iterator[NDArray[np.int64]]:
    """Row indices by length, cut so that rows * longest row stays within the budget; empty completions are left out."""
    widths = np.array([len(p) + len(c) for p, c in zip(prompts, completions, strict=True)])
    batch: list[int] = []
    for index in np.argsort(-widths, kind="stable"):
        if len(completions[index]) == 0:
            continue
        if batch and (len(batch) + 1) * widths[batch[0]] > micro_batch_tokens:
            yield np.array(batch)
            batch = []
        batch.append(int(index))
    if batch:
        yield np.array(batch)


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
    for rows in micro_batches(prompts, completions, micro_batch_tokens):
        logprobs_N, _ = completion_logprobs(policy, [prompts[i] for i in rows], [completions[i] for i in rows], 1.0)
        part = -logprobs_N.sum() / num_tokens
        part.backward()
        loss += part.item()
    return {
        "loss": loss,
        "grad_norm": _step(policy, optimizer, loss, max_grad_norm),
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
    value_term: "ValueTerm | None" = None,
) -> dict[str, Any]:
    """One update on the clipped surrogate over a mini-batch; returns the row of the updates table.

    `value_term` adds the value loss of a critic that shares the backbone (tasks/engines/critic.py) to what is
    differentiated; `loss` stays that of the policy, `grad_norm` is that of both.
    """
    started = time.perf_counter()
    lengths_R = torch.tensor([len(completion) for completion in batch.completions], dtype=torch.int64)
    if not lengths_R.sum():
        raise ValueError(
            f"expected at least one token to train on, got none in the mini-batch's {len(batch.completions)} "
            "completions: leave out the groups whose completions are all empty"
        )
    weights_N = token_weights(
        lengths_R, torch.from_numpy(batch.group_index_R), objective.normalization, max_tokens=objective.max_tokens
    )
    optimizer.zero_grad(set_to_none=True)
    loss, row = _policy_gradient(policy, batch, weights_N, objective, micro_batch_tokens, value_term)
    return row | {
        "loss": loss,
        "grad_norm": _step(policy, optimizer, loss, max_grad_norm),
        "learning_rate": optimizer.param_groups[0]["lr"],
        "num_completions": len(batch.completions),
        "num_tokens": int(lengths_R.sum()),
        "seconds": time.perf_counter() - started,
    }


def _policy_gradient(
    policy: Policy,
    batch: Batch,
    weights_N: Tensor,
    objective: Objective,
    micro_batch_tokens: int,
    value_term: "ValueTerm | None",
) -> tuple[float, dict[str, float]]:
    """Add the loss's gradient to the parameters, micro-batch by micro-batch; returns the loss and its description."""
    ends = np.cumsum([len(completion) for completion in batch.completions])
    device, loss = policy.device, 0.0
    figures: dict[str, list[Tensor]] = {name: [] for name in ("ratio", "entropy", "low", "high", "dual")}
    for rows in micro_batches(batch.prompts, batch.completions, micro_batch_tokens):
        part = batch.take(rows)
        weights = torch.cat([weights_N[ends[i] - len(batch.completions[i]) : ends[i]] for i in rows])
        hidden_NH, targets_N = padded_hidden(policy.model.base_model, part.prompts, part.completions)
        logprobs_N, entropy_N = _head_logprobs(policy, hidden_NH, targets_N, objective.temperature)
        result = policy_loss(
            logprobs_N,
            torch.from_numpy(np.concatenate(part.sampler_logprobs)).to(device),
            torch.from_numpy(np.concatenate(part.advantages)).to(device),
            weights.to(device),
            clip_low=objective.clip_low,
            clip_high=objective.clip_high,
            dual_clip=objective.dual_clip,
        )
        (result.loss if value_term is None else result.loss + value_term(hidden_NH, rows)).backward()
        loss += result.loss.item()
        values = (
            result.ratio_N,
            entropy_N,
            result.is_clipped_low_N,
            result.is_clipped_high_N,
            result.is_dual_clipped_N,
        )
        for name, value in zip(figures, values, strict=True):
            figures[name].append(value)
    return loss, _describe({name: torch.cat(values).double().cpu() for name, values in figures.items()})


def _step(policy: Policy, optimizer: torch.optim.Optimizer, loss: float, max_grad_norm: float) -> float:
    """Clip and apply the gradient; refuse one that is not finite, before any weight changes."""
    norm = float(torch.nn.utils.clip_grad_norm_(policy.model.parameters(), max_grad_norm))
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise FloatingPointError(
            f"loss {loss} with gradient norm {norm}: expected finite numbers; no weight was changed. Lower the "
            "learning rate, or look for completions with non-finite sampler_logprobs in this step's rollouts"
        )
    optimizer.step()
    return norm


def _describe(figures: dict[str, Tensor]) -> dict[str, float]:
    """Means, quantiles and the k3 estimate of KL(sampler || trainer) = mean(ratio - 1 - log ratio)."""
    ratio_N = figures["ratio"]
    quantiles = np.quantile(ratio_N.numpy(), [0, 0.05, 0.5, 0.95, 1])
    names = ("ratio_min", "ratio_p05", "ratio_p50", "ratio_p95", "ratio_max")
    return {
        "entropy": float(figures["entropy"].mean()),
        "kl": float((ratio_N - 1 - ratio_N.log()).mean()),
        "clip_fraction_low": float(figures["low"].mean()),
        "clip_fraction_high": float(figures["high"].mean()),
        "clip_fraction_dual": float(figures["dual"].mean()),
    } | dict(zip(names, map(float, quantiles), strict=True))


def warmup_cosine(update: int, updates: int, warmup_updates: int) -> float:
    """Factor of the peak learning rate: half a cosine from 1 to 0 over `updates`, times a linear rise at its start."""
    return 0.5 * (1 + math.cos(math.pi * update / updates)) * min(1.0, (update + 1) / max(warmup_updates, 1))
