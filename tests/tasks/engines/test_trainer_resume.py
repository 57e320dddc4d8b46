"""Saving and loading between updates: training goes on to the bit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tasks.core.objective import Objective
from tasks.engines.batch import Batch
from tasks.engines.optimizer import load_optimizer, make_optimizer, save_optimizer
from tasks.engines.policy import Policy, load_policy, save_policy
from tasks.engines.trainer import policy_update

OBJECTIVE = Objective(clip_low=0.2, clip_high=0.28, dual_clip=3.0, max_tokens=24)


def optimizer_of(policy: Policy) -> tuple[torch.optim.AdamW, dict[Any, str]]:
    return make_optimizer(policy.model, learning_rate=1e-3, weight_decay=0.01, betas=(0.9, 0.999))


def update(policy: Policy, optimizer: torch.optim.Optimizer, batch: Batch) -> None:
    policy_update(policy, optimizer, batch, OBJECTIVE, micro_batch_tokens=100, max_grad_norm=1.0)


def weights_of(policy: Policy) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in policy.model.parameters()])


def test_two_updates_a_save_a_load_and_two_more_equal_four_to_the_bit(
    policy: Policy, tmp_path: Path, random_batch: Callable[..., Batch]
) -> None:
    batches = [random_batch(seed) for seed in range(4)]
    save_policy(policy, tmp_path / "start")
    straight = load_policy(tmp_path / "start", "start", torch.device("cpu"))
    straight_optimizer, straight_names = optimizer_of(straight)
    for batch in batches:
        update(straight, straight_optimizer, batch)

    first = load_policy(tmp_path / "start", "start again", torch.device("cpu"))
    first_optimizer, first_names = optimizer_of(first)
    for batch in batches[:2]:
        update(first, first_optimizer, batch)
    torch.rand(3)  # the random state is saved too
    random_state = torch.get_rng_state()
    save_policy(first, tmp_path / "half")
    save_optimizer(first_optimizer, first_names, tmp_path / "optimizer")
    torch.rand(5)
    second = load_policy(tmp_path / "half", "half", torch.device("cpu"))
    second_optimizer, second_names = optimizer_of(second)
    load_optimizer(second_optimizer, second_names, tmp_path / "optimizer")
    assert torch.equal(torch.get_rng_state(), random_state)
    for batch in batches[2:]:
        update(second, second_optimizer, batch)

    assert torch.equal(weights_of(second), weights_of(straight))
    assert not torch.equal(weights_of(second), weights_of(first))
    states = [
        {names[parameter]: state for parameter, state in optimizer.state.items()}
        for optimizer, names in ((straight_optimizer, straight_names), (second_optimizer, second_names))
    ]
    assert states[0].keys() == states[1].keys()
    for name, state in states[0].items():
        assert state["step"].item() == 4
        assert all(torch.equal(state[key], states[1][name][key]) for key in ("step", "exp_avg", "exp_avg_sq"))


def test_tied_weights_stay_tied_through_a_save_a_load_and_an_update(
    make_policy: Callable[..., Policy], tmp_path: Path, random_batch: Callable[..., Batch]
) -> None:
    save_policy(make_policy("qwen3"), tmp_path / "tied")
    save_policy(make_policy("llama"), tmp_path / "untied")
    tied = load_policy(tmp_path / "tied", "tied", torch.device("cpu"))
    untied = load_policy(tmp_path / "untied", "untied", torch.device("cpu"))
    for policy, is_tied in ((tied, True), (untied, False)):
        update(policy, optimizer_of(policy)[0], random_batch())
        head, embedding = policy.model.get_output_embeddings().weight, policy.model.get_input_embeddings().weight
        assert (head is embedding) == is_tied
        assert torch.equal(head, embedding) == is_tied
        assert len(optimizer_of(policy)[1]) == len(list(policy.model.parameters()))
