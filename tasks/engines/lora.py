"""Low-rank adapters (LoRA, arXiv 2106.09685) by peft: training moves them alone; checkpoints hold them merged."""

from pathlib import Path
from typing import Any

from tasks.engines.policy import Policy


def add_adapters(policy: Policy, *, rank: int, alpha: float, folder: Path | None) -> Any:
    """Freeze the policy's weights and put adapters on every projection but the output head; returns peft's model.

    Without a `folder` of stored ones the adapters are new: A random (from torch's random state), B zero, so that the
    policy stays what it was. Raises ModuleNotFoundError, with the remedy, where peft is not installed, and ValueError
    where the stored adapters are of another rank or alpha.
    """
    try:
        from peft import LoraConfig, PeftModel, get_peft_model
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "train.lora_rank: expected the package peft, which is not installed; install the extra: "
            "pip install -c constraints.txt -e '.[lora]'"
        ) from None
    if folder is not None:
        adapted = PeftModel.from_pretrained(policy.model, str(folder), is_trainable=True)
        stored = adapted.peft_config["default"]
        if (stored.r, stored.lora_alpha) != (rank, alpha):
            raise ValueError(
                f"train.lora_rank, train.lora_alpha: expected {stored.r} and {stored.lora_alpha:g}, those of the "
                f"stored adapters that training goes on with, got {rank} and {alpha:g}; adapters keep their shape: "
                "train with others from the first step (tempo rerun RUN --from training --step 1) or in a run of its "
                "own (--set run=NAME)"
            )
        return adapted
    config = LoraConfig(
        r=rank, lora_alpha=alpha, target_modules="all-linear", lora_dropout=0.0, bias="none", task_type="CAUSAL_LM"
    )
    return get_peft_model(policy.model, config)


def save_adapters(adapted: Any, folder: Path) -> None:
    """In peft's own format, without the place the base model came from."""
    for config in adapted.peft_config.values():
        config.base_model_name_or_path = ""
    adapted.save_pretrained(str(folder))
    (folder / "README.md").unlink(missing_ok=True)  # a model card to fill in


def merge_adapters(adapted: Any) -> Any:
    """The plain model with the adapters added to its weights: W + alpha / rank * B A. `adapted` is used up."""
    return adapted.merge_and_unload()
