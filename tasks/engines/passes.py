"""How forward and backward passes are computed: their precision, and which activations they keep."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch


def precision_context(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """The context of forward passes: none for fp32; autocast to bf16, the weights staying fp32, for bf16."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


@contextmanager
def training_passes(model: Any, *, gradient_checkpointing: bool) -> Iterator[None]:
    """Training without dropout (importance ratios would be noise), and with or without kept activations.

    With `gradient_checkpointing` each layer keeps its input and computes the rest again in the backward pass; the
    numbers stay the same.
    """
    before = {module: module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)}
    for module in before:
        module.p = 0.0
    if gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()  # transformers checkpoints in training mode only
    try:
        yield
    finally:
        if gradient_checkpointing:
            model.gradient_checkpointing_disable()
            model.eval()
        for module, p in before.items():
            module.p = p
