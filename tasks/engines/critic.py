"""The critic: V(s_t) from the hidden state that predicts token t, by a linear head on a backbone of its own or shared.

own     a copy of the first policy's backbone with the head: a Hugging Face checkpoint that
        AutoModelForTokenClassification reads, with an optimiser of its own
shared  the head alone, on the policy's hidden states; its value loss is part of what the policy's update differentiates
"""

import copy
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForTokenClassification

from tasks.core.gae import explained_variance
from tasks.core.value_loss import value_loss
from tasks.engines import policy as engine
from tasks.engines.padding import padded_hidden
from tasks.engines.policy import Policy
from tasks.engines.trainer import Batch, micro_batches

HEAD_FILE = "value_head.safetensors"
OPTIMIZER_FILE = "critic.safetensors"
"""The critic's optimiser state, beside the policy's."""
HEAD_SCALE = 0.1
"""A new head's weights are normal with deviation HEAD_SCALE / sqrt(H), its bias is 0: on normalised hidden states (norm
sqrt(H)) the first values are spread by 0.1 around 0, small beside rewards of 0 and 1."""


@dataclass
class Critic:
    """A value head (fp32, H -> 1) and the model it is the head of; no model: it reads the policy's hidden states."""

    head: torch.nn.Linear
    model: Any = None

    @property
    def is_shared(self) -> bool:
        return self.model is None

    @property
    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.names())

    def names(self) -> dict[torch.nn.Parameter, str]:
        """The critic's own parameters by name."""
        module = self.head if self.is_shared else self.model
        return {parameter: name for name, parameter in module.named_parameters()}

    def hidden(self, policy: Policy | None, prompts: Sequence[Any], completions: Sequence[Any]) -> Tensor:
        """[N, H] of the backbone that the head reads; a shared one is the `policy`'s."""
        if self.model is None and policy is None:
            raise ValueError(
                "critic.backbone: the run's critic was made for a shared backbone, and now own is asked for; a critic "
                "keeps its backbone: train with another one in a run of its own (--set run=NAME)"
            )
        model = self.model if self.model is not None else policy.model
        return padded_hidden(model.base_model, prompts, completions)[0]


def make_critic(policy: Policy, backbone: str, seed: int) -> Critic:
    """A new critic for `policy`: backbone "own" copies the policy's, "shared" only adds a head (see HEAD_SCALE).

    Raises ValueError for an own backbone of an architecture that transformers has no token classifier of.
    """
    if backbone == "shared":
        head = torch.nn.Linear(policy.model.config.hidden_size, 1, device=policy.device, dtype=torch.float32)
        return Critic(_start(head, seed))
    config = copy.deepcopy(policy.model.config)
    config.num_labels, config.classifier_dropout = 1, 0.0
    try:
        with torch.random.fork_rng(devices=[]):
            model = AutoModelForTokenClassification.from_config(config, dtype=torch.float32)
    except ValueError:
        raise ValueError(
            f"critic.backbone: expected an architecture that transformers has a token classifier of (Qwen3, Qwen2, "
            f"Llama, ...), got {type(policy.model).__name__}, whose copy could not be stored as a checkpoint with a "
            "value head: use --set critic.backbone=shared"
        ) from None
    model.base_model.load_state_dict(policy.model.base_model.state_dict())
    return Critic(_start(model.score, seed), model.to(policy.device).eval())


def _start(head: torch.nn.Linear, seed: int) -> torch.nn.Linear:
    random = torch.randn(head.weight.shape, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        head.weight.copy_(random * HEAD_SCALE / math.sqrt(head.in_features))
        head.bias.zero_()
    return head


def save_critic(critic: Critic, folder: Path) -> None:
    """Write a token-classification checkpoint with one label, or the shared backbone's head as one safetensors file."""
    if critic.is_shared:
        folder.mkdir()
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in critic.head.state_dict().items()}
        save_file(tensors, folder / HEAD_FILE)
    else:
        critic.model.config._name_or_path = ""
        critic.model.save_pretrained(folder)


def load_critic(folder: Path, device: torch.device) -> Critic:
    """What `save_critic` wrote, in fp32; always in evaluation mode, so that no dropout takes part."""
    if (folder / HEAD_FILE).exists():
        tensors = load_file(folder / HEAD_FILE)
        head = torch.nn.Linear(tensors["weight"].shape[1], 1, dtype=torch.float32)
        head.load_state_dict(tensors)
        return Critic(head.to(device))
    model = AutoModelForTokenClassification.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    for parameter in model.parameters():  # as read, they lie at any address, and products round otherwise there (MKL)
        parameter.data = parameter.data.clone()
    model = model.to(device).eval()
    return Critic(model.score, model)


@torch.no_grad()
def predict_values(
    critic: Critic,
    policy: Policy | None,
    prompts: Sequence[NDArray[np.int32]],
    completions: Sequence[NDArray[np.int32]],
) -> Tensor:
    """V(s_t) [N] before each completion token; `policy` lends its backbone to a shared critic."""
    hidden_NH = critic.hidden(policy, prompts, completions)
    values_N: Tensor = critic.head(hidden_NH.to(critic.head.weight.dtype))[:, 0]
    return values_N


class ValueTerm:
    """The value loss of one mini-batch, a micro-batch at a time: what `policy_update` adds for a shared backbone.

    The weights are counted over the whole mini-batch (1 / N), so that micro-batches only add up.
    """

    def __init__(self, critic: Critic, batch: Batch, *, value_clip: float, coefficient: float = 1.0) -> None:
        assert batch.values is not None
        assert batch.returns is not None
        self.head, self.values, self.returns = critic.head, batch.values, batch.returns
        self.num_tokens = sum(len(completion) for completion in batch.completions)
        self.value_clip, self.coefficient = value_clip, coefficient
        self.loss = 0.0
        self.seen: list[tuple[Tensor, Tensor, Tensor]] = []

    def __call__(self, hidden_NH: Tensor, rows: NDArray[np.int64]) -> Tensor:
        """coefficient * value loss of the completions `rows`, whose tokens `hidden_NH` predicts, one after another."""
        weight = self.head.weight
        values_N = self.head(hidden_NH.to(weight.dtype))[:, 0]
        stored_N, returns_N = (
            torch.from_numpy(np.concatenate([signal[i] for i in rows])).to(weight)
            for signal in (self.values, self.returns)
        )
        weights_N = torch.full_like(values_N, 1 / self.num_tokens)
        result = value_loss(values_N, stored_N, returns_N, weights_N, value_clip=self.value_clip)
        self.loss += result.loss.item()
        self.seen.append((values_N.detach(), returns_N, result.is_clipped_N))
        return self.coefficient * result.loss

    def figures(self) -> dict[str, float]:
        """Columns of the updates table, over the micro-batches seen so far."""
        values_N, returns_N, is_clipped_N = (torch.cat(parts).double().cpu() for parts in zip(*self.seen, strict=True))
        return {
            "value_loss": self.loss,
            "value_clip_fraction": float(is_clipped_N.mean()),
            "explained_variance": explained_variance(values_N.numpy(), returns_N.numpy()),
        }


@dataclass
class CriticTrainer:
    """A critic with its optimiser, updated on each mini-batch beside the policy."""

    critic: Critic
    optimizer: torch.optim.AdamW
    value_clip: float
    value_coefficient: float
    max_grad_norm: float
    micro_batch_tokens: int

    def load(self, folder: Path) -> None:
        """Go on with a stored optimiser; where the critic had none yet, with a new one."""
        if (folder / OPTIMIZER_FILE).exists():
            engine.load_optimizer(self.optimizer, self.critic.names(), folder, OPTIMIZER_FILE)

    def save(self, folder: Path) -> None:
        engine.save_optimizer(self.optimizer, self.critic.names(), folder, OPTIMIZER_FILE)

    def term(self, batch: Batch) -> ValueTerm:
        """The mini-batch's value loss for the policy's own backward pass; `step` then updates the head."""
        self.optimizer.zero_grad(set_to_none=True)
        return ValueTerm(self.critic, batch, value_clip=self.value_clip, coefficient=self.value_coefficient)

    def step(self, term: ValueTerm) -> dict[str, float]:
        """Clip and apply the critic's gradient; a FloatingPointError, and no change, when it is not finite."""
        norm = float(torch.nn.utils.clip_grad_norm_(list(self.critic.names()), self.max_grad_norm))
        if not (math.isfinite(term.loss) and math.isfinite(norm)):
            raise FloatingPointError(
                f"value loss {term.loss} with gradient norm {norm}: expected finite numbers; no weight was changed. "
                "Lower critic.learning_rate, or look for returns that are not finite in this step's advantages"
            )
        self.optimizer.step()
        return term.figures() | {"critic_grad_norm": norm}

    def update(self, policy: Policy, batch: Batch) -> dict[str, float]:
        """One update of the critic alone. The policy's weights, and a shared backbone with them, stay as they are."""
        self.optimizer.zero_grad(set_to_none=True)
        term = ValueTerm(self.critic, batch, value_clip=self.value_clip)
        for rows in micro_batches(batch.prompts, batch.completions, self.micro_batch_tokens):
            part = batch.take(rows)
            with torch.set_grad_enabled(not self.critic.is_shared):
                hidden_NH = self.critic.hidden(policy, part.prompts, part.completions)
            term(hidden_NH, rows).backward()
        return self.step(term)

    def warm_up(self, policy: Policy, batch: Batch) -> dict[str, Any]:
        """`update`, as a row of the updates table of its own."""
        started = time.perf_counter()
        figures = self.update(policy, batch)
        return figures | {
            "loss": figures["value_loss"],
            "grad_norm": figures["critic_grad_norm"],
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "num_completions": len(batch.completions),
            "num_tokens": sum(len(completion) for completion in batch.completions),
            "seconds": time.perf_counter() - started,
        }


def make_critic_optimizer(
    critic: Critic, *, learning_rate: float, weight_decay: float, betas: tuple[float, float]
) -> torch.optim.AdamW:
    """AdamW over the critic's own parameters."""
    return torch.optim.AdamW(
        list(critic.names()), lr=learning_rate, weight_decay=weight_decay, betas=betas, foreach=True
    )
