"""The check of loaded weights: the log-probabilities of a fixed probe under the sampler's engine and the trainer's.

Loading weights into a running engine can fail without an error (a head that stays tied to old embeddings, a shard that
is not found, a server that was restarted with other weights). The samples then come from a policy that nobody has, and
importance ratios are wrong from the first update on.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor

from tasks.engines.policy import Policy

PROBE_SEQUENCES, PROBE_TOKENS, PROBE_SEED = 4, 24, 20250918
TOLERANCES = {"fp32": 2e-3, "bf16": 2.0}
"""Largest difference of a probe token's log-probability, in nats, by the engine's dtype. Equal weights differ by 1e-6
(the tiny policy) and 5e-5 (SmolLM2-135M) in fp32, and by 0.6 in bf16: random tokens are unlikely ones, whose logits are
coarse there. So wide a tolerance finds weights that were never loaded or are another model's; weights that are a small
step old it cannot tell from rounding."""
MEAN_SHARE = 1 / 8
"""The mean may be this share of it. Equal weights: 1e-5 in fp32, 0.09 in bf16 (SmolLM2-135M)."""


REMEDY = (
    "What to do: run the same command again, which starts a new engine with all weights. If it fails again, the engine "
    "computes this model otherwise (its dtype or attention kernels; a server with another model, or one without "
    "--hf-overrides '{\"tie_word_embeddings\": false}'): try sampler.dtype=fp32, or sampler.engine=transformers. A "
    "difference that is known and accepted is allowed with sampler.vllm.max_sync_difference"
)


class StaleWeights(RuntimeError):
    """The engine does not hold the weights that it was told to load."""


@dataclass(frozen=True, kw_only=True)
class WeightSync:
    """How the weights got into the engine, and what the check found: a row of the table weight_syncs."""

    policy: str
    engine: str
    dtype: str
    num_tokens: int
    max_difference: float
    mean_difference: float
    tolerance: float
    is_new: bool
    num_starts: int
    export_seconds: float
    start_seconds: float
    reload_seconds: float
    check_seconds: float


def probe_batch(vocabulary_size: int, context_length: int) -> list[NDArray[np.int32]]:
    """The same token ids each time, drawn evenly from the vocabulary: every row of the embedding may take part."""
    length = min(PROBE_TOKENS, context_length - 1)
    rows = np.random.default_rng(PROBE_SEED).integers(0, vocabulary_size, (PROBE_SEQUENCES, length), dtype=np.int32)
    return list(rows)


@torch.no_grad()
def trainer_logprobs(
    policy: Policy, probes: Sequence[NDArray[np.int32]], head_VH: Tensor | None = None
) -> list[NDArray[np.float32]]:
    """log p [T-1] of every token but the first under the trainer's policy; with another output head if one is given."""
    ids_BT = torch.from_numpy(np.stack(probes).astype(np.int64)).to(policy.device)
    hidden_BTH = policy.model.base_model(input_ids=ids_BT, use_cache=False).last_hidden_state[:, :-1]
    output = policy.model.get_output_embeddings()
    logits_BTV = torch.nn.functional.linear(hidden_BTH, output.weight if head_VH is None else head_VH, output.bias)
    logprobs_BTV = torch.log_softmax(logits_BTV.float(), dim=-1)
    return list(logprobs_BTV.gather(-1, ids_BT[:, 1:, None])[..., 0].cpu().numpy())


def differences(ours: Sequence[NDArray[np.float32]], theirs: Sequence[NDArray[np.float32]]) -> NDArray[np.float64]:
    """|trainer - engine| of every probe token; a log-probability that is not finite differs infinitely."""
    gap = np.abs(np.concatenate(ours).astype(np.float64) - np.concatenate(theirs).astype(np.float64))
    return np.where(np.isfinite(gap), gap, np.inf)


def refuse_stale(
    policy: Policy,
    probes: Sequence[NDArray[np.int32]],
    said: Mapping[str, Sequence[NDArray[np.float32]]],
    *,
    tolerance: float,
    earlier: Path | None,
) -> NDArray[np.float64]:
    """The differences of what each engine, by name, said; raises StaleWeights when one is over the tolerance.

    The error names the layers that explain it best: `earlier` is the checkpoint that the engines held before, if any.
    """
    ours = trainer_logprobs(policy, probes)
    gaps = []
    for engine, theirs in said.items():
        gap = differences(ours, theirs)
        gaps.append(gap)
        if gap.max() > tolerance or gap.mean() > MEAN_SHARE * tolerance:
            worst, width = int(gap.argmax()), len(probes[0]) - 1
            raise StaleWeights(
                f"{engine} does not sample from the policy {policy.digest[:16]} that it was told to load: expected the "
                f"log-probabilities of {gap.size} probe tokens within {tolerance:g} nats of the trainer's "
                f"({MEAN_SHARE * tolerance:g} on average), got a difference of {gap.max():.3g} (probe "
                f"{worst // width}, token {worst % width + 1}; mean "
                f"{gap.mean():.3g}). {_suspects(policy, probes, theirs, earlier)}. Nothing was sampled. {REMEDY}"
            )
    return np.concatenate(gaps)


def _suspects(
    policy: Policy, probes: Sequence[NDArray[np.int32]], theirs: Sequence[NDArray[np.float32]], earlier: Path | None
) -> str:
    """Which layers, if they were still those of the weights before, would explain what the engine says."""
    if earlier is None or not any(earlier.glob("*.safetensors")):
        return "Layer suspects: unknown, there are no earlier weights to compare with"
    found = []
    for name, ours in _with_earlier_layers(policy, probes, earlier):
        found.append((float(differences(ours, theirs).max()), name))
    found.sort(key=lambda pair: pair[0])
    return "Layer suspects (largest difference if it still were the one loaded before): " + ", ".join(
        f"{name} {difference:.3g}" for difference, name in found[:3]
    )


def _with_earlier_layers(
    policy: Policy, probes: Sequence[NDArray[np.int32]], earlier: Path
) -> Iterator[tuple[str, list[NDArray[np.float32]]]]:
    """(layer, log-probabilities with that layer's weights from `earlier`), layer by layer."""
    old = {}
    for file in earlier.glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            old |= {name: (file, name) for name in tensors.keys()}  # noqa: SIM118
    read = _reader(old)
    model = policy.model
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    embedding = names[id(model.get_input_embeddings().weight)]
    is_tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    head_VH = model.get_output_embeddings().weight
    old_head = read(embedding if is_tied else names[id(head_VH)]).to(head_VH)
    yield "the output head", trainer_logprobs(policy, probes, old_head)
    kept_head = head_VH.detach().clone()
    parameters = dict(model.named_parameters())
    groups: dict[str, list[str]] = {}
    for name in parameters:
        if name == embedding or (name in old and parameters[name] is not head_VH):
            groups.setdefault(_layer(name), []).append(name)
    for layer, members in groups.items():
        with _swapped([parameters[name] for name in members], [read(name) for name in members]):
            yield layer, trainer_logprobs(policy, probes, kept_head)


def _reader(where: dict[str, tuple[Path, str]]) -> Callable[[str], Tensor]:
    def read(name: str) -> Tensor:
        file, key = where[name]
        with safe_open(file, "pt") as tensors:
            tensor: Tensor = tensors.get_tensor(key)
        return tensor

    return read


def _layer(name: str) -> str:
    """'model.layers.3.mlp.up_proj.weight' -> 'model.layers.3'; a parameter outside the layers is its own layer."""
    parts = name.split(".")
    number = next((i for i, part in enumerate(parts) if part.isdigit()), None)
    return name.removesuffix(".weight") if number is None else ".".join(parts[: number + 1])


@contextmanager
def _swapped(parameters: Sequence[Tensor], values: Sequence[Tensor]) -> Iterator[None]:
    kept = [parameter.detach().clone() for parameter in parameters]
    with torch.no_grad():
        for parameter, value in zip(parameters, values, strict=True):
            parameter.copy_(value)
        try:
            yield
        finally:
            for parameter, value in zip(parameters, kept, strict=True):
                parameter.copy_(value)
