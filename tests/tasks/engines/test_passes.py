"""Checkpointed activations, bf16 and adapters: what they change, and what they leave as it was."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tasks.core.objective import Objective
from tasks.engines.batch import Batch
from tasks.engines.lora import add_adapters, merge_adapters, save_adapters
from tasks.engines.optimizer import make_optimizer
from tasks.engines.passes import training_passes
from tasks.engines.policy import Policy
from tasks.engines.trainer import completion_logprobs, policy_update

OBJECTIVE = Objective(max_tokens=24)


def gradient(policy: Policy, batch: Batch, **how: str) -> torch.Tensor:
    optimizer = torch.optim.SGD(policy.model.parameters(), lr=0.0)
    policy_update(policy, optimizer, batch, OBJECTIVE, micro_batch_tokens=100, max_grad_norm=1e9, **how)
    return torch.cat([p.grad.flatten() for p in policy.model.parameters() if p.grad is not None])


def test_checkpointed_activations_give_the_same_gradient_to_the_bit_in_every_layout(
    policy: Policy, random_batch: Callable[..., Batch]
) -> None:
    for layout in ("padded", "tree"):
        with training_passes(policy.model, gradient_checkpointing=False):
            kept = gradient(policy, random_batch(), layout=layout)
        forwards: list[int] = []
        hook = policy.model.base_model.layers[0].self_attn.register_forward_hook(
            lambda *_, forwards=forwards: forwards.append(1)
        )
        with training_passes(policy.model, gradient_checkpointing=True):
            again = gradient(policy, random_batch(), layout=layout)
        num_checkpointed = len(forwards)
        forwards.clear()
        gradient(policy, random_batch(), layout=layout)
        hook.remove()
        assert torch.equal(kept, again)
        assert num_checkpointed == 2 * len(forwards)  # each layer once more
        assert not policy.model.training


def test_dropout_takes_no_part_with_or_without_checkpointed_activations(random_batch: Callable[..., Batch]) -> None:
    config = AutoConfig.for_model(
        "llama", vocab_size=19, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        attention_dropout=0.5,
    )  # fmt: skip
    torch.manual_seed(0)
    policy = Policy(model=AutoModelForCausalLM.from_config(config).eval(), tokenizer=None, digest="")
    gradients = []
    for is_on in (False, True, True):
        with training_passes(policy.model, gradient_checkpointing=is_on):
            gradients.append(gradient(policy, random_batch(), layout="auto"))
    assert torch.equal(gradients[0], gradients[1])
    assert torch.equal(gradients[0], gradients[2])


def test_bf16_passes_leave_weights_and_gradients_in_fp32_and_agree_to_bf16s_digits(
    policy: Policy, random_batch: Callable[..., Batch]
) -> None:
    exact = gradient(policy, random_batch())
    for layout in ("padded", "tree"):
        rounded = gradient(policy, random_batch(), layout=layout, precision="bf16")
        assert rounded.dtype == torch.float32
        cosine = torch.dot(exact, rounded) / (exact.norm() * rounded.norm())
        assert 0.9 < cosine.item() < 1 - 1e-7  # 8 bits of mantissa: some ratios fall on the other side of a clip


def test_adapters_start_as_the_policy_move_alone_resume_to_the_bit_and_merge(
    make_policy: Callable[..., Policy], random_batch: Callable[..., Batch], tmp_path: Path
) -> None:
    batch = random_batch()

    def logprobs(policy: Policy) -> torch.Tensor:
        return completion_logprobs(policy, batch.prompts, batch.completions, 1.0)[0]

    def train(policy: Policy, num_updates: int, folder: Path | None):
        torch.manual_seed(5)
        adapted = add_adapters(policy, rank=2, alpha=4.0, folder=folder)
        trained = Policy(model=adapted.get_base_model(), tokenizer=policy.tokenizer, digest="")
        optimizer, names = make_optimizer(trained.model, learning_rate=1e-2, weight_decay=0.0, betas=(0.0, 0.0))
        assert names
        assert all("lora_" in name for name in names.values())
        for _ in range(num_updates):
            policy_update(trained, optimizer, batch, OBJECTIVE, micro_batch_tokens=10**6, max_grad_norm=1.0)
        return adapted, trained

    start = logprobs(make_policy())
    _, untouched = train(make_policy(), 0, None)
    assert torch.equal(logprobs(untouched), start)

    adapted, trained = train(make_policy(), 2, None)
    moved = logprobs(trained)
    assert (moved - start).abs().max() > 1e-3
    save_adapters(adapted, tmp_path / "adapter")
    _, resumed = train(make_policy(), 0, tmp_path / "adapter")
    assert torch.equal(logprobs(resumed), moved)

    with pytest.raises(ValueError, match=r"expected 2 and 4, those of the stored adapters.*got 3 and 4"):
        add_adapters(make_policy(), rank=3, alpha=4.0, folder=tmp_path / "adapter")

    merged = Policy(model=merge_adapters(adapted), tokenizer=None, digest="")
    assert not [name for name, _ in merged.model.named_parameters() if "lora_" in name]
    torch.testing.assert_close(logprobs(merged), moved, rtol=0, atol=1e-5)
    names = {name for name, _ in make_policy().model.named_parameters()}
    assert {name for name, _ in merged.model.named_parameters()} == names
