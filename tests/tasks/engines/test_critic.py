"""Critics of both kinds: what they start from, what they are stored as, how they learn, and how they go on."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForTokenClassification

from tasks.core.layout import build_layout
from tasks.core.objective import Objective
from tasks.engines.batch import Batch
from tasks.engines.critic import Critic, CriticTrainer, load_critic, make_critic, predict_values, save_critic
from tasks.engines.optimizer import NonFiniteUpdate, make_optimizer
from tasks.engines.policy import Policy
from tasks.engines.trainer import policy_update

OBJECTIVE = Objective(max_tokens=24)
BOTH = pytest.mark.parametrize("backbone", ["own", "shared"])
LAYOUTS = pytest.mark.parametrize("layout", ["padded", "packed", "tree"])
SIZES = pytest.mark.parametrize("micro_batch_tokens", [1, 60, 10_000])


@pytest.fixture
def batch(random_batch: Callable[..., Batch]) -> Batch:
    return with_returns(random_batch())


def with_returns(batch: Batch, seed: int = 5) -> Batch:
    """Returns that the critic can learn: 1 after an even token, 0 after an odd one; stored values of 0.4 to 0.6."""
    rng = np.random.default_rng(seed)
    values = [rng.uniform(0.4, 0.6, size=len(c)).astype(np.float32) for c in batch.completions]
    before = [np.append(p[-1], c[:-1]) for p, c in zip(batch.prompts, batch.completions, strict=True)]
    return replace(batch, values=values, returns=[(tokens % 2 == 0).astype(np.float32) for tokens in before])


def trainer_of(
    critic: Critic, *, micro_batch_tokens: int = 100, learning_rate: float = 1e-2, layout: str = "padded"
) -> CriticTrainer:
    adam, names = make_optimizer(critic.module, learning_rate=learning_rate, weight_decay=0.0, betas=(0.9, 0.999))
    return CriticTrainer(critic, adam, names, 0.5, 0.25, 1e9, micro_batch_tokens, layout)


def hidden_of(critic: Critic, policy: Policy, batch: Batch) -> torch.Tensor:
    return critic.hidden(policy, build_layout("padded", batch.prompts, batch.completions, batch.group_index_R))


def weights_of(critic: Critic) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in critic.module.parameters()])


def values_of(critic: Critic, policy: Policy, batch: Batch) -> torch.Tensor:
    return predict_values(critic, policy, batch.prompts, batch.completions)


@BOTH
def test_a_new_critic_reads_the_policy_s_hidden_states_with_a_small_head(policy: Policy, batch: Batch, backbone: str):
    critic = make_critic(policy, backbone, seed=1)
    with torch.no_grad():
        policys_own = Critic(critic.head)
        expected = (hidden_of(policys_own, policy, batch) @ critic.head.weight.T)[:, 0]
    values = values_of(critic, policy, batch)
    torch.testing.assert_close(values, expected)
    # H = 32: the head's norm is about 0.1 and a normalised state's sqrt(32), its projection on the head a normal of 0.1
    assert 0.01 < values.std() < 0.3
    assert torch.equal(make_critic(policy, backbone, seed=1).head.weight, critic.head.weight)
    assert not torch.equal(make_critic(policy, backbone, seed=2).head.weight, critic.head.weight)


def test_an_own_critic_is_a_token_classifier_of_transformers_without_dropout(
    policy: Policy, batch: Batch, tmp_path: Path
) -> None:
    critic = make_critic(policy, "own", seed=1)
    save_critic(critic, tmp_path / "critic")
    stored = AutoModelForTokenClassification.from_pretrained(tmp_path / "critic").train()  # dropout would show
    row = np.concatenate([batch.prompts[4], batch.completions[4]]).astype(np.int64)
    with torch.no_grad():
        logits = stored(input_ids=torch.from_numpy(row)[None]).logits[0, :, 0]
    begin, length = len(batch.prompts[4]), len(batch.completions[4])
    values = predict_values(critic, None, [batch.prompts[4]], [batch.completions[4]])
    torch.testing.assert_close(values, logits[begin - 1 : begin - 1 + length])  # the state before each token


@BOTH
def test_a_stored_critic_comes_back_to_the_bit(policy: Policy, tmp_path: Path, backbone: str) -> None:
    critic = make_critic(policy, backbone, seed=1)
    save_critic(critic, tmp_path / "critic")
    again = load_critic(tmp_path / "critic", torch.device("cpu"))
    assert again.is_shared == (backbone == "shared")
    assert torch.equal(weights_of(again), weights_of(critic))


@BOTH
def test_it_learns_and_the_policy_stays_as_it_is(make_policy: Callable[..., Policy], batch: Batch, backbone: str):
    policy = make_policy()
    before = [parameter.detach().clone() for parameter in policy.model.parameters()]
    trainer = trainer_of(make_critic(policy, backbone, seed=1))
    rows = [trainer.warm_up(policy, replace(batch, values=stored(trainer.critic, policy, batch))) for _ in range(20)]
    assert rows[-1]["value_loss"] < 0.7 * rows[0]["value_loss"]
    assert rows[-1]["explained_variance"] > max(rows[0]["explained_variance"], 0.2)
    assert rows[0]["loss"] == rows[0]["value_loss"]
    assert all(torch.equal(old, new) for old, new in zip(before, policy.model.parameters(), strict=True))
    assert all(parameter.grad is None for parameter in policy.model.parameters())


def stored(critic: Critic, policy: Policy, batch: Batch) -> list[np.ndarray]:
    ends = np.cumsum([len(completion) for completion in batch.completions])[:-1]
    return np.split(values_of(critic, policy, batch).numpy(), ends)


@SIZES
@LAYOUTS
@BOTH
def test_neither_loss_nor_gradient_depends_on_micro_batches_or_layout(
    make_policy: Callable[..., Policy], batch: Batch, backbone: str, layout: str, micro_batch_tokens: int
) -> None:
    """In fp64, to 1e-10, against the mean over all tokens written down in one expression.

    Qwen3's normalisations are in fp32 whatever its weights: where a tree adds up in another order, to 1e-7 of the norm.
    """
    policy = make_policy(dtype=torch.float64)
    critic = make_critic(make_policy(), backbone, seed=1)
    critic = Critic(critic.head.double(), critic.model.double() if critic.model is not None else None)
    trainer = trainer_of(critic, micro_batch_tokens=micro_batch_tokens, learning_rate=1e-30, layout=layout)
    row = trainer.update(policy, batch)
    found = {name: parameter.grad.clone() for name, parameter in critic.module.named_parameters()}
    trainer.gradient_checkpointing = True
    trainer.update(policy, batch)
    assert all(torch.equal(found[name], parameter.grad) for name, parameter in critic.module.named_parameters())
    critic.module.zero_grad()
    values_N = critic.head(hidden_of(critic, policy, batch))[:, 0]
    old_N, returns_N = (torch.from_numpy(np.concatenate(signal)).double() for signal in (batch.values, batch.returns))
    clipped_N = old_N + (values_N - old_N).clamp(-0.5, 0.5)
    loss = 0.5 * torch.maximum((values_N - returns_N) ** 2, (clipped_N - returns_N) ** 2).mean()
    loss.backward()
    assert abs(row["value_loss"] - loss.item()) < 1e-10
    errors = [(found[name] - p.grad).norm() for name, p in critic.module.named_parameters()]
    norm = max(p.grad.norm() for p in critic.module.parameters())
    assert max(errors) < (1e-7 * norm if layout == "tree" else 1e-10)


@LAYOUTS
def test_a_shared_backbone_gets_the_policy_s_gradient_plus_the_coefficient_times_the_critic_s(
    make_policy: Callable[..., Policy], batch: Batch, layout: str
) -> None:
    def gradient(joint: bool) -> tuple[torch.Tensor, CriticTrainer]:
        policy = make_policy()
        trainer = trainer_of(make_critic(policy, "shared", seed=1))
        optimizer, _ = make_optimizer(policy.model, learning_rate=1e-9, weight_decay=0.0, betas=(0.9, 0.999))
        limits = {"micro_batch_tokens": 60, "max_grad_norm": 1e9, "layout": layout}
        term = trainer.term(batch) if joint else None
        policy_update(policy, optimizer, batch, OBJECTIVE, **limits, value_term=term)
        return torch.cat([p.grad.flatten() for p in policy.model.parameters()]), trainer

    difference = gradient(joint=True)[0] - gradient(joint=False)[0]
    policy = make_policy()
    trainer = trainer_of(make_critic(policy, "shared", seed=1))
    trainer.term(batch)(hidden_of(trainer.critic, policy, batch), np.arange(12)).backward()
    expected = torch.cat(
        [(p.grad if p.grad is not None else torch.zeros_like(p)).flatten() for p in policy.model.parameters()]
    )
    assert expected.norm() > 0.01
    assert (difference - expected).norm() < 1e-4 * expected.norm()
    head_gradient = gradient(joint=True)[1].critic.head.weight.grad
    torch.testing.assert_close(head_gradient, trainer.critic.head.weight.grad, rtol=1e-4, atol=1e-6)


@BOTH
def test_two_updates_a_save_a_load_and_two_more_equal_four_to_the_bit(
    make_policy: Callable[..., Policy], random_batch: Callable[..., Batch], tmp_path: Path, backbone: str
) -> None:
    policy = make_policy()
    batches = [with_returns(random_batch(seed), seed) for seed in range(4)]
    straight = trainer_of(make_critic(policy, backbone, seed=1))
    for batch in batches:
        straight.update(policy, batch)
    first = trainer_of(make_critic(policy, backbone, seed=1))
    for batch in batches[:2]:
        first.update(policy, batch)
    save_critic(first.critic, tmp_path / "critic")
    first.save(tmp_path)
    second = trainer_of(load_critic(tmp_path / "critic", torch.device("cpu")))
    second.load(tmp_path)
    for batch in batches[2:]:
        second.update(policy, batch)
    assert torch.equal(weights_of(second.critic), weights_of(straight.critic))
    assert not torch.equal(weights_of(second.critic), weights_of(first.critic))


def test_returns_that_are_not_finite_are_refused_before_a_weight_changes(
    make_policy: Callable[..., Policy], batch: Batch
) -> None:
    policy = make_policy()
    trainer = trainer_of(make_critic(policy, "own", seed=1))
    before = weights_of(trainer.critic)
    batch.returns[3][0] = np.inf
    with pytest.raises(
        NonFiniteUpdate, match=r"value loss inf with gradient norm .*the update was not applied.*token_returns"
    ):
        trainer.update(policy, batch)
    assert torch.equal(weights_of(trainer.critic), before)


def test_a_classifier_of_another_name_is_found(tmp_path: Path, batch: Batch) -> None:
    config = AutoConfig.for_model("gpt2", vocab_size=24, n_embd=8, n_layer=1, n_head=2, n_positions=64)
    critic = make_critic(Policy(AutoModelForCausalLM.from_config(config), None, ""), "own", seed=1)
    save_critic(critic, tmp_path / "critic")
    again = load_critic(tmp_path / "critic", torch.device("cpu"))
    found, expected = (predict_values(each, None, batch.prompts, batch.completions) for each in (again, critic))
    assert torch.equal(found, expected)


def test_an_architecture_without_a_token_classifier_is_told_to_share_its_backbone(batch: Batch) -> None:
    config = AutoConfig.for_model(  # a real architecture that has none
        "olmo", vocab_size=24, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2
    )
    other = Policy(AutoModelForCausalLM.from_config(config), None, "")
    with pytest.raises(ValueError, match=r"got OlmoForCausalLM.*--set critic\.backbone=shared"):
        make_critic(other, "own", seed=1)
    assert values_of(make_critic(other, "shared", seed=1), other, batch).isfinite().all()


def test_tokens_that_are_not_trained_on_have_no_part_in_the_loss(
    make_policy: Callable[..., Policy], batch: Batch
) -> None:
    """Their values and returns may be anything: the loss is the mean over the others."""
    policy = make_policy()
    rng = np.random.default_rng(3)
    masked = replace(batch, loss_mask=[rng.random(len(c)) < 0.5 for c in batch.completions])
    strange = replace(masked, returns=[
        np.where(mask, r, 1e3).astype(np.float32) for mask, r in zip(masked.loss_mask, batch.returns, strict=True)
    ])  # fmt: skip
    rows = [trainer_of(make_critic(policy, "own", seed=1)).update(policy, each) for each in (masked, strange, batch)]
    assert rows[0] == rows[1]
    assert rows[0]["value_loss"] != rows[2]["value_loss"]
    mask_N, returns_N = np.concatenate(masked.loss_mask), np.concatenate(batch.returns)
    values_N, stored_N = (
        values_of(make_critic(policy, "own", seed=1), policy, batch).numpy(),
        np.concatenate(batch.values),
    )
    clipped_N = stored_N + np.clip(values_N - stored_N, -0.5, 0.5)
    errors_N = np.maximum((values_N - returns_N) ** 2, (clipped_N - returns_N) ** 2)
    assert rows[0]["value_loss"] == pytest.approx(0.5 * errors_N[mask_N].mean(), rel=1e-5)


def test_a_critic_keeps_its_backbone(make_policy: Callable[..., Policy], batch: Batch) -> None:
    policy = make_policy()
    with pytest.raises(ValueError, match=r"made for a shared backbone, and now own is asked for.*a run of its own"):
        predict_values(make_critic(policy, "shared", seed=1), None, batch.prompts, batch.completions)
