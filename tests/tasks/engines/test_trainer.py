"""Log-probabilities, gradients and updates: against plain forward passes, across micro-batches and saves."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tasks.core.objective import Objective
from tasks.engines.batch import Batch
from tasks.engines.optimizer import make_optimizer
from tasks.engines.policy import Policy
from tasks.engines.sampler import SamplingParams
from tasks.engines.trainer import completion_logprobs, policy_update
from tasks.engines.transformers_sampler import TransformersSampler

Tokens = NDArray[np.int32]
ONE_BATCH, ROW_BY_ROW = 1_000_000, 1
NO_CLIP = 1e9
OBJECTIVE = Objective(clip_low=0.2, clip_high=0.28, dual_clip=3.0, max_tokens=24)


def optimizer_of(policy: Policy, learning_rate: float = 1e-3) -> tuple[torch.optim.AdamW, dict[Any, str]]:
    return make_optimizer(policy.model, learning_rate=learning_rate, weight_decay=0.01, betas=(0.9, 0.999))


def on_policy(policy: Policy, batch: Batch) -> Batch:
    """The batch with the policy's own log-probabilities as the sampler's."""
    logprobs_N, _ = completion_logprobs(policy, batch.prompts, batch.completions, 1.0)
    ends = np.cumsum([len(completion) for completion in batch.completions])
    return replace(batch, sampler_logprobs=np.split(logprobs_N.numpy(), ends[:-1]))


def update(
    policy: Policy, optimizer: Any, batch: Batch, objective: Objective = OBJECTIVE, **how: Any
) -> dict[str, Any]:
    settings = {"micro_batch_tokens": ONE_BATCH, "max_grad_norm": 1.0} | how
    return policy_update(policy, optimizer, batch, objective, **settings)


def gradient_of(policy: Policy) -> torch.Tensor:
    return torch.cat([parameter.grad.flatten().double() for parameter in policy.model.parameters()])


def weights_of(policy: Policy) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten().double() for parameter in policy.model.parameters()])


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_and_entropy_are_those_of_a_plain_forward_pass_of_each_row(
    policy: Policy, temperature: float, random_batch: Callable[..., Batch]
) -> None:
    batch = random_batch()
    with torch.no_grad():
        logprobs_N, entropy_N = completion_logprobs(policy, batch.prompts, batch.completions, temperature)
        begin = 0
        for prompt, completion in zip(batch.prompts, batch.completions, strict=True):
            ids = torch.from_numpy(np.concatenate([prompt, completion]).astype(np.int64))
            all_TV = torch.log_softmax(policy.model(ids[None]).logits[0].double() / temperature, dim=-1)
            predicted_TV = all_TV[len(prompt) - 1 : -1]
            end = begin + len(completion)
            expected = predicted_TV.gather(1, ids[len(prompt) :, None])[:, 0]
            torch.testing.assert_close(logprobs_N[begin:end].double(), expected, rtol=0, atol=1e-5)
            entropy = -(predicted_TV.exp() * predicted_TV).sum(dim=-1)
            torch.testing.assert_close(entropy_N[begin:end].double(), entropy, rtol=0, atol=1e-5)
            begin = end
    assert begin == len(logprobs_N)


def test_padding_on_the_right_changes_no_logprob(policy: Policy) -> None:
    prompt, short = np.array([5, 6], np.int32), np.array([7, 8, 9], np.int32)
    long = np.arange(60, dtype=np.int32) % 19
    alone, _ = completion_logprobs(policy, [prompt], [short], 1.0)
    padded, _ = completion_logprobs(policy, [prompt, prompt], [short, long], 1.0)
    torch.testing.assert_close(padded[:3], alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("normalization", ["token_mean", "sequence_mean", "prompt_mean", "constant"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_the_gradient_does_not_depend_on_the_micro_batches(
    make_policy: Callable[..., Policy],
    normalization: str,
    dtype: torch.dtype,
    tolerance: float,
    random_batch: Callable[..., Batch],
) -> None:
    objective, batch = replace(OBJECTIVE, normalization=normalization), random_batch()
    gradients, losses = [], []
    for micro_batch_tokens in (ONE_BATCH, 100, ROW_BY_ROW):
        policy = make_policy(dtype=dtype)
        how = {"micro_batch_tokens": micro_batch_tokens, "max_grad_norm": NO_CLIP}
        losses.append(update(policy, optimizer_of(policy)[0], batch, objective, **how)["loss"])
        gradients.append(gradient_of(policy))
    for gradient, loss in zip(gradients[1:], losses[1:], strict=True):
        assert (gradient - gradients[0]).norm() <= tolerance * gradients[0].norm()
        assert loss == pytest.approx(losses[0], rel=1e-5)


def test_the_weights_after_an_update_do_not_depend_on_the_micro_batches(
    make_policy: Callable[..., Policy], random_batch: Callable[..., Batch]
) -> None:
    whole, split = make_policy(), make_policy()
    before = weights_of(whole)
    update(whole, optimizer_of(whole)[0], random_batch())
    update(split, optimizer_of(split)[0], random_batch(), micro_batch_tokens=ROW_BY_ROW)
    assert (weights_of(whole) - before).norm() > 1e-3 * before.norm()
    assert (weights_of(whole) - weights_of(split)).norm() <= 1e-5 * before.norm()


def test_the_loss_is_the_surrogate_of_the_whole_mini_batch_by_hand(make_policy: Callable[..., Policy]) -> None:
    policy = make_policy()
    # Two completions, 1 and 3 tokens, ratio 1 everywhere, A = 2 and -1: token mean -(2 - 1 - 1 - 1) / 4 = 0.25;
    # sequence mean -(2 / 1 + -3 / 3) / 2 = -0.5; constant, 24 tokens: -(2 - 3) / (2 * 24) = 1 / 48.
    prompt = np.array([5, 16], np.int32)
    batch = Batch(
        prompts=[prompt, prompt],
        completions=[np.array([1], np.int32), np.array([7, 9, 1], np.int32)],
        group_index_R=np.array([0, 0]),
        sampler_logprobs=[np.zeros(1, np.float32), np.zeros(3, np.float32)],
        advantages=[np.array([2], np.float32), np.array([-1, -1, -1], np.float32)],
    )
    for normalization, loss in (("token_mean", 0.25), ("sequence_mean", -0.5), ("constant", 1 / 48)):
        objective = replace(OBJECTIVE, normalization=normalization)
        row = update(policy, optimizer_of(policy, 1e-12)[0], on_policy(policy, batch), objective)
        assert row["loss"] == pytest.approx(loss, abs=1e-6)
        assert (row["num_completions"], row["num_tokens"]) == (2, 4)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_first_update_on_sampled_completions_has_ratio_one(
    policy: Policy, prompts: list[Tokens], temperature: float
) -> None:
    samples = TransformersSampler(policy, batch_tokens=400).sample(
        prompts,
        num_samples=4,
        seeds_R=np.arange(20),
        params=SamplingParams(temperature=temperature, top_p=1.0, max_tokens=24),
    )
    completions = np.split(samples.token_ids_N, samples.offsets[1:-1])
    batch = Batch(
        prompts=[prompts[i // 4] for i in range(20)],
        completions=completions,
        group_index_R=np.arange(20) // 4,
        sampler_logprobs=np.split(samples.sampler_logprobs_N, samples.offsets[1:-1]),
        advantages=[np.ones(len(completion), np.float32) for completion in completions],
    )
    row = update(policy, optimizer_of(policy)[0], batch, replace(OBJECTIVE, temperature=temperature))
    assert abs(row["ratio_min"] - 1) < 1e-4
    assert abs(row["ratio_max"] - 1) < 1e-4
    assert row["clip_fraction_low"] == row["clip_fraction_high"] == row["clip_fraction_dual"] == 0
    assert abs(row["kl"]) < 1e-6


def test_an_update_raises_a_good_token_and_lowers_a_bad_one(policy: Policy) -> None:
    prompt, good, bad = np.array([5, 6, 16], np.int32), 7, 9

    def logprobs() -> list[float]:
        values, _ = completion_logprobs(policy, [prompt] * 2, [np.array([t], np.int32) for t in (good, bad)], 1.0)
        return values.tolist()

    before = logprobs()
    batch = Batch(
        prompts=[prompt, prompt],
        completions=[np.array([good], np.int32), np.array([bad], np.int32)],
        group_index_R=np.array([0, 0]),
        sampler_logprobs=[np.array([value], np.float32) for value in before],
        advantages=[np.array([1], np.float32), np.array([-1], np.float32)],
    )
    update(policy, optimizer_of(policy, learning_rate=1e-4)[0], batch)
    after = logprobs()
    assert after[0] > before[0] + 1e-4
    assert after[1] < before[1] - 1e-4


def test_the_row_describes_the_ratios_and_clips_of_the_update(make_policy: Callable[..., Policy]) -> None:
    policy = make_policy()
    prompt, completion = np.array([5, 6], np.int32), np.array([7, 8, 9, 10], np.int32)
    batch = on_policy(
        policy,
        Batch(
            prompts=[prompt],
            completions=[completion],
            group_index_R=np.array([0]),
            sampler_logprobs=[np.zeros(4, np.float32)],
            advantages=[np.array([-1, 1, -1, 1], np.float32)],
        ),
    )
    ratios = np.array([0.5, 2.0, 4.0, 1.0])  # clipped low, clipped high, held by the dual clip, free
    shifted = [batch.sampler_logprobs[0] - np.log(ratios).astype(np.float32)]
    row = update(policy, optimizer_of(policy)[0], replace(batch, sampler_logprobs=shifted))
    assert row["clip_fraction_low"] == row["clip_fraction_high"] == row["clip_fraction_dual"] == 0.25
    quantiles = [row[f"ratio_{name}"] for name in ("min", "p05", "p50", "p95", "max")]
    # of 0.5, 1, 2, 4: 5 % lies 0.15 of the way from the first to the second, 95 % 0.85 from the third to the fourth
    assert quantiles == pytest.approx([0.5, 0.575, 1.5, 3.7, 4.0], abs=1e-4)
    kl = sum(ratio - 1 - math.log(ratio) for ratio in ratios) / 4
    assert row["kl"] == pytest.approx(kl, abs=1e-4)
    # losses: 0.8 (clipped), -1.28, 3, -1: their mean
    assert row["loss"] == pytest.approx((0.8 - 1.28 + 3 - 1) / 4, abs=1e-4)


@pytest.mark.parametrize(
    ("signal", "value"), [("sampler_logprobs", math.nan), ("advantages", math.nan), ("advantages", math.inf)]
)
def test_a_loss_that_is_not_finite_is_refused_and_changes_no_weight(
    make_policy: Callable[..., Policy], signal: str, value: float, random_batch: Callable[..., Batch]
) -> None:
    policy, batch = make_policy(), random_batch()
    optimizer, _ = optimizer_of(policy)
    values = list(getattr(batch, signal))
    values[3] = np.full_like(values[3], value)
    before = weights_of(policy)
    with pytest.raises(FloatingPointError, match=r"the update was not applied.*lower train.learning_rate"):
        update(policy, optimizer, replace(batch, **{signal: values}))
    assert torch.equal(weights_of(policy), before)
    assert not optimizer.state


def test_a_long_gradient_is_scaled_down_and_reported_as_it_was(
    make_policy: Callable[..., Policy], random_batch: Callable[..., Batch]
) -> None:
    free, clipped = make_policy(), make_policy()
    free_row = update(free, optimizer_of(free)[0], random_batch(), max_grad_norm=NO_CLIP)
    row = update(clipped, optimizer_of(clipped)[0], random_batch(), max_grad_norm=0.01)
    norm = gradient_of(free).norm().item()
    assert norm > 0.1
    assert row["grad_norm"] == pytest.approx(free_row["grad_norm"], rel=1e-6)
    assert row["grad_norm"] == pytest.approx(norm, rel=1e-5)
    torch.testing.assert_close(gradient_of(clipped), gradient_of(free) * (0.01 / norm), rtol=1e-3, atol=1e-9)


def test_an_empty_completion_weighs_what_its_normalization_says_and_breaks_nothing(
    make_policy: Callable[..., Policy], random_batch: Callable[..., Batch]
) -> None:
    batch = random_batch()
    empty = np.zeros(0, np.float32)
    larger = Batch(
        prompts=[*batch.prompts, batch.prompts[0]],
        completions=[*batch.completions, empty.astype(np.int32)],
        group_index_R=np.append(batch.group_index_R, 0),
        sampler_logprobs=[*batch.sampler_logprobs, empty],
        advantages=[*batch.advantages, empty],
    )
    for normalization, share in (("token_mean", 1.0), ("sequence_mean", 12 / 13)):
        objective = replace(OBJECTIVE, normalization=normalization)
        without, with_empty = make_policy(), make_policy()
        update(without, optimizer_of(without)[0], batch, objective, max_grad_norm=NO_CLIP)
        row = update(with_empty, optimizer_of(with_empty)[0], larger, objective, max_grad_norm=NO_CLIP)
        expected = gradient_of(without) * share
        assert (gradient_of(with_empty) - expected).norm() <= 1e-5 * expected.norm()
        assert row["num_completions"] == 13


def test_a_mini_batch_without_any_token_is_refused(
    make_policy: Callable[..., Policy], random_batch: Callable[..., Batch]
) -> None:
    policy, batch = make_policy(), random_batch()
    nothing = [np.zeros(0, np.float32)] * 12
    blank = replace(batch, completions=[np.zeros(0, np.int32)] * 12, sampler_logprobs=nothing, advantages=nothing)
    with pytest.raises(ValueError, match="got none in the mini-batch's 12 completions"):
        update(policy, optimizer_of(policy)[0], blank)
