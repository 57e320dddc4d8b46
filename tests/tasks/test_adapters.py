"""Training with low-rank adapters: what moves, what is stored, and how the next step goes on."""

from typing import Any

import torch
from safetensors.torch import load_file

Loop = Any  # the class of conftest.py, which a test module cannot import
LORA = {"lora_rank": 2, "lora_alpha": 4.0, "learning_rate": 1e-2}


def weights(loop: Loop, name: str) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = load_file(loop.part(name, "checkpoint").path / "model.safetensors")
    return tensors


def prepared(loop: Loop) -> None:
    loop.sample("rollouts", "policy", step=1)
    loop.judge("verdicts", "rollouts")
    loop.credit("credit", "rollouts", "verdicts")


def test_a_step_moves_every_projection_by_a_matrix_of_the_adapters_rank_and_nothing_else(fresh: Loop) -> None:
    prepared(fresh)
    fresh.train("trained", "policy", "rollouts", "credit", base="policy", **LORA)
    before, after = weights(fresh, "policy"), weights(fresh, "trained")
    assert before.keys() == after.keys()
    for name, weight in before.items():
        moved = (after[name] - weight).double()
        singular = torch.linalg.svdvals(moved) if moved.ndim == 2 else moved.abs()
        if "_proj" in name:
            assert singular[0] > 1e-4
            assert singular[2] < 1e-4 * singular[0]  # rank 2, up to the rounding of fp32
        else:
            assert torch.equal(after[name], weight)
    moments = load_file(fresh.part("trained", "optimizer").path / "optimizer.safetensors")
    assert all("lora_" in name for name in moments if name != "rng_state")


def test_the_next_step_goes_on_with_the_stored_adapters_and_is_the_same_when_it_is_made_again(fresh: Loop) -> None:
    prepared(fresh)
    fresh.train("one", "policy", "rollouts", "credit", base="policy", **LORA)
    resumed = {"base": "policy", "adapter": "one", "optimizer": "one"}
    fresh.train("two", "one", "rollouts", "credit", **resumed, **LORA)
    digests = {name: fresh.part("two", name).digest for name in ("checkpoint", "adapter", "optimizer")}
    delta = weights(fresh, "two")["model.layers.0.mlp.up_proj.weight"]
    delta = (delta - weights(fresh, "policy")["model.layers.0.mlp.up_proj.weight"]).double()
    singular = torch.linalg.svdvals(delta)
    assert singular[2] < 1e-4 * singular[0]  # both steps together have moved it by one matrix of rank 2
    fresh.train("again", "one", "rollouts", "credit", **resumed, **LORA, gradient_checkpointing=True)
    assert {name: fresh.part("again", name).digest for name in digests} == digests
