"""The critic: V(s_t) from the hidden state that predicts token t, by a linear head on a backbone of its own or shared.

own     a copy of the first policy's backbone with the head: a Hugging Face checkpoint that
        AutoModelForTokenClassification reads, with an optimiser of its own
shared  the head alone, on the policy's hidden states; its value loss is part of what the policy's update differentiates
"""

import copy
import math
import time
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
from tasks.core.layout import Layout, Sequences
from tasks.core.objective import token_weights
from tasks.core.value_loss import value_loss
from tasks.engines.attention import layout_attention
from tasks.engines.batch import Batch, flat, token_index
from tasks.engines.micro_batches import Arrangement
from tasks.engines.optimizer import Names, checked_step, load_optimizer, save_optimizer
from tasks.engines.passes import training_passes
from tasks.engines.policy import Policy
from tasks.engines.trainer import parent_states, token_states

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
        return sum(parameter.numel() for parameter in self.module.parameters())

    @property
    def module(self) -> torch.nn.Module:
        """All that is the critic's own."""
        module: torch.nn.Module = self.head if self.model is None else self.model
        return module

    def hidden(self, policy: Policy | None, layout: Layout, precision: str = "fp32") -> Tensor:
        """[N, H]: the state that predicts each completion token, of the head's backbone; a shared one is `policy`'s."""
        if self.model is None and policy is None:
            raise ValueError(
                "critic.backbone: the run's critic was made for a shared backbone, and now own is asked for; a critic "
                "keeps its backbone: train with another one in a run of its own (--set run=NAME)"
            )
        held = policy if self.model is None else Policy(self.model, None, "")
        assert held is not None
        with layout_attention(held.model, layout):
            return token_states(parent_states(held, layout, precision), layout)


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
    _start(_head_of(model), seed)
    model = model.to(policy.device).eval()
    return Critic(_head_of(model), model)


def _head_of(model: Any) -> torch.nn.Linear:
    head: torch.nn.Linear = model.score if hasattr(model, "score") else model.classifier  # the name in older models
    return head


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
    return Critic(_head_of(model), model)


@torch.no_grad()
def predict_values(
    critic: Critic,
    policy: Policy | None,
    prompts: Sequences,
    completions: Sequences,
    *,
    group_index_R: NDArray[np.int64] | None = None,
    layout: str = "padded",
    micro_batch_tokens: int = 2**62,
    precision: str = "fp32",
) -> Tensor:
    """V(s_t) [N] before each completion token; `policy` lends its backbone to a shared critic."""
    lengths_R = np.array([len(completion) for completion in completions], dtype=np.int64)
    groups_R = np.arange(lengths_R.size) if group_index_R is None else group_index_R
    model = critic.model if critic.model is not None or policy is None else policy.model
    weight = critic.head.weight
    values_N = torch.zeros(int(lengths_R.sum()), dtype=weight.dtype, device=weight.device)
    arrangement = Arrangement(layout, model, prompts, completions, groups_R)
    for micro_batch in arrangement.micro_batches(micro_batch_tokens):
        found_N = critic.head(critic.hidden(policy, micro_batch.layout, precision).to(weight.dtype))[:, 0]
        values_N[torch.from_numpy(token_index(lengths_R, micro_batch.rows)).to(weight.device)] = found_N
    return values_N


class ValueTerm:
    """The value loss of one mini-batch, a micro-batch at a time: what `policy_update` adds for a shared backbone.

    Every trained token weighs 1 / N, counted once over the whole mini-batch, so that micro-batches only add up.
    """

    def __init__(self, critic: Critic, batch: Batch, *, value_clip: float, coefficient: float = 1.0) -> None:
        assert batch.values is not None
        assert batch.returns is not None
        weight, lengths_R = critic.head.weight, torch.from_numpy(batch.lengths_R)
        mask_N = None if batch.loss_mask is None else flat(batch.loss_mask, torch.device("cpu"))
        groups_R = torch.from_numpy(batch.group_index_R)
        self.weights_N = token_weights(
            lengths_R, groups_R, "token_mean", max_tokens=1, loss_mask_N=mask_N, dtype=weight.dtype
        ).to(weight.device)
        self.stored_N, self.returns_N = (
            torch.from_numpy(np.concatenate(signal)).to(weight) for signal in (batch.values, batch.returns)
        )
        if not batch.num_trained_tokens:
            raise ValueError(
                f"expected at least one token to train the critic on, got none in the mini-batch's "
                f"{len(batch.completions)} completions: leave out the groups whose completions are all empty"
            )
        self.head, self.lengths_R = critic.head, batch.lengths_R
        self.value_clip, self.coefficient = value_clip, coefficient
        self.loss = 0.0
        self.values_N = torch.zeros_like(self.returns_N)
        self.is_clipped_N = torch.zeros_like(self.returns_N)

    def __call__(self, hidden_NH: Tensor, rows: NDArray[np.int64]) -> Tensor:
        """coefficient * value loss of the completions `rows`, whose tokens `hidden_NH` predicts, one after another."""
        index_n = torch.from_numpy(token_index(self.lengths_R, rows)).to(self.returns_N.device)
        values_n = self.head(hidden_NH.to(self.head.weight.dtype))[:, 0]
        signals = (self.stored_N[index_n], self.returns_N[index_n], self.weights_N[index_n])
        result = value_loss(values_n, *signals, value_clip=self.value_clip)
        self.loss += result.loss.item()
        self.values_N[index_n] = values_n.detach()
        self.is_clipped_N[index_n] = result.is_clipped_N.to(self.is_clipped_N)
        return self.coefficient * result.loss

    def figures(self) -> dict[str, float]:
        """Columns of the updates table, over the trained tokens."""
        is_trained_N = self.weights_N > 0
        values_N, returns_N, is_clipped_N = (
            tensor_N[is_trained_N].double().cpu() for tensor_N in (self.values_N, self.returns_N, self.is_clipped_N)
        )
        return {
            "value_loss": self.loss,
            "value_clip_fraction": float(is_clipped_N.mean()),
            "explained_variance": explained_variance(values_N.numpy(), returns_N.numpy()),
        }


@dataclass
class CriticTrainer:
    """A critic with its optimiser, updated on each mini-batch beside the policy."""

    critic: Critic
    optimizer: torch.optim.Optimizer
    names: Names
    value_clip: float
    value_coefficient: float
    max_grad_norm: float
    micro_batch_tokens: int
    layout: str = "padded"
    precision: str = "fp32"
    gradient_checkpointing: bool = False

    def load(self, folder: Path) -> None:
        """Go on with a stored optimiser; where the critic had none yet, with a new one."""
        if (folder / OPTIMIZER_FILE).exists():
            load_optimizer(self.optimizer, self.names, folder, OPTIMIZER_FILE)

    def save(self, folder: Path) -> None:
        save_optimizer(self.optimizer, self.names, folder, OPTIMIZER_FILE)

    def term(self, batch: Batch) -> ValueTerm:
        """The mini-batch's value loss for the policy's own backward pass; `step` then updates the head."""
        self.optimizer.zero_grad(set_to_none=True)
        return ValueTerm(self.critic, batch, value_clip=self.value_clip, coefficient=self.value_coefficient)

    def step(self, term: ValueTerm) -> dict[str, float]:
        """Clip and apply the critic's gradient; NonFiniteUpdate, and no change, when it is not finite."""
        losses = {"value loss": term.loss}
        norm = checked_step(self.critic.module.parameters(), self.optimizer, losses, self.max_grad_norm)
        return term.figures() | {"critic_grad_norm": norm}

    def update(self, policy: Policy, batch: Batch) -> dict[str, float]:
        """One update of the critic alone. The policy's weights, and a shared backbone with them, stay as they are."""
        self.optimizer.zero_grad(set_to_none=True)
        term = ValueTerm(self.critic, batch, value_clip=self.value_clip)
        model = policy.model if self.critic.is_shared else self.critic.model
        arrangement = Arrangement(self.layout, model, batch.prompts, batch.completions, batch.group_index_R)
        is_checkpointed = self.gradient_checkpointing and not self.critic.is_shared
        with training_passes(model, gradient_checkpointing=is_checkpointed):
            for micro_batch in arrangement.micro_batches(self.micro_batch_tokens):
                with layout_attention(model, micro_batch.layout):  # the backward pass may compute layers again
                    with torch.set_grad_enabled(not self.critic.is_shared):
                        hidden_NH = self.critic.hidden(policy, micro_batch.layout, self.precision)
                    term(hidden_NH, micro_batch.rows).backward()
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
            "num_tokens": batch.num_trained_tokens,
            "seconds": time.perf_counter() - started,
        }
