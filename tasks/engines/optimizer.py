"""The optimiser: AdamW with decay groups, its state on disk, and the checked step."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

Names = dict[torch.nn.Parameter, str]
FILE = "optimizer.safetensors"
"""The policy's state in a folder of optimisers."""


class NonFiniteUpdate(FloatingPointError):
    """A loss or gradient that is not finite; the update was not applied."""


def make_optimizer(
    model: Any, *, learning_rate: float, weight_decay: float, betas: tuple[float, float], decays: str = "matrices"
) -> tuple[torch.optim.AdamW, Names]:
    """AdamW over the trainable parameters, and the parameters' names (shared ones once).

    `decays`: the parameters that decay, 'matrices' (two dimensions or more: no norms, no biases) or 'all'.
    """
    names = {parameter: name for name, parameter in model.named_parameters() if parameter.requires_grad}
    groups = [
        {"params": [p for p in names if (p.ndim >= 2) == is_matrix], "weight_decay": decay}
        for is_matrix, decay in ((True, weight_decay), (False, weight_decay if decays == "all" else 0.0))
    ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, foreach=True), names


def updates_done(optimizer: torch.optim.Optimizer) -> int:
    """Updates the optimiser has made, those of earlier steps included."""
    return max((int(state["step"]) for state in optimizer.state.values()), default=0)


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Of every group, for the next update."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


REMEDIES = {
    "loss": "lower train.learning_rate, or look for non-finite sampler_logprobs in this step's rollouts",
    "value loss": "lower critic.learning_rate, or look for non-finite token_returns in this step's advantages",
}
"""What to do, by the loss that was differentiated."""


def checked_step(
    parameters: Iterable[torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    losses: Mapping[str, float],
    max_grad_norm: float,
) -> float:
    """Clip and apply the gradient of the losses (by name); returns its norm before clipping. A gradient that is absent
    is 0, and is applied: momentum and decay go on where no completion of a mini-batch gave a gradient.

    Raises NonFiniteUpdate, and changes nothing, when a loss or the norm is not finite.
    """
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    for parameter in trainable:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    norm = float(torch.nn.utils.clip_grad_norm_(trainable, max_grad_norm))
    if not all(map(math.isfinite, (*losses.values(), norm))):
        figures = " and ".join(f"{name} {loss}" for name, loss in losses.items())
        raise NonFiniteUpdate(
            f"{figures} with gradient norm {norm}: expected finite numbers; the update was not applied. To go on: "
            + "; or ".join(REMEDIES[name] for name in losses)
        )
    optimizer.step()
    return norm


def save_optimizer(optimizer: torch.optim.Optimizer, names: Names, folder: Path, file: str = FILE) -> None:
    """Write AdamW's moments by parameter name, and torch's random state, as one safetensors file."""
    tensors = {
        f"{names[parameter]}:{key}": value.detach().cpu().contiguous()
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }
    tensors["rng_state"] = torch.get_rng_state()
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / file)


def load_optimizer(optimizer: torch.optim.Optimizer, names: Names, folder: Path, file: str = FILE) -> None:
    """Restore what `save_optimizer` wrote; the optimiser then continues to the bit on the same machine."""
    tensors = load_file(folder / file)
    torch.set_rng_state(tensors.pop("rng_state"))
    for parameter, name in names.items():
        if f"{name}:step" not in tensors:
            continue  # a parameter that no update has reached yet
        state = {key: tensors[f"{name}:{key}"] for key in ("step", "exp_avg", "exp_avg_sq")}
        optimizer.state[parameter] = {k: v if k == "step" else v.to(parameter.device) for k, v in state.items()}
