"""How forward and backward passes are computed: their precision, and which activations they keep."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from transformers.modeling_layers import GradientCheckpointingLayer


def precision_context(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """The context of forward passes: none for fp32; autocast to bf16, the weights staying fp32, for bf16."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


@contextmanager
def training_passes(model: Any, *, gradient_checkpointing: bool) -> Iterator[None]:
    """Passes in evaluation mode (dropout would make importance ratios noise), with or without kept activations.

    With `gradient_checkpointing` each layer keeps its input and computes the rest again in the backward pass; the
    numbers stay the same. transformers checkpoints layers in training mode only, so the layers are put into it, and
    what is inside them, where dropout would take part, is not.
    """
    if not gradient_checkpointing:
        yield
        return
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise ValueError(
            f"train.gradient_checkpointing: expected a model whose layers transformers can checkpoint, got "
            f"{type(model).__name__}; its activations are kept whatever is asked: lower train.micro_batch_tokens"
        )
    model.gradient_checkpointing_enable({"use_reentrant": False})
    for layer in layers:
        layer.training = True
    try:
        yield
    finally:
        model.gradient_checkpointing_disable()
        for layer in layers:
            layer.training = False
