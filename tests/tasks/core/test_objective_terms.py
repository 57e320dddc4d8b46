"""KL to a reference, entropy bonus, truncated importance weights and loss masks, each with its arithmetic."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tasks.core.objective import (
    Objective,
    TokenSignals,
    importance_weights,
    kl_estimate,
    policy_loss,
    token_weights,
)


def double(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def signals(advantages: Tensor, **more: Tensor) -> TokenSignals:
    """Ratio 1, weight 1."""
    ones = torch.ones_like(advantages)
    return TokenSignals(advantages_N=advantages, weights_N=ones, anchor_logprobs_N=torch.zeros_like(ones), **more)


def test_the_three_estimates_of_the_kl_by_hand() -> None:
    trainer, reference = double(-1.0, -2.0), double(-1.5, -1.0)  # d = 0.5 and -1
    assert kl_estimate(trainer, reference, "k1").tolist() == [0.5, -1.0]
    assert kl_estimate(trainer, reference, "k2").tolist() == [0.125, 0.5]
    k3 = [math.exp(-0.5) - 1 + 0.5, math.exp(1) - 1 - 1]
    assert kl_estimate(trainer, reference, "k3").tolist() == pytest.approx(k3, abs=1e-15)
    with pytest.raises(ValueError, match="expected one of k1, k2, k3, got 'k4'"):
        kl_estimate(trainer, reference, "k4")


@settings(deadline=None)
@given(logits=st.lists(st.tuples(st.floats(-3, 3), st.floats(-3, 3)), min_size=2, max_size=6))
def test_on_policy_k1_and_k3_average_to_the_kl_and_the_gradients_of_k2_and_k3_do_what_is_said_of_them(
    logits: list[tuple[float, float]],
) -> None:
    """Exact expectations over a whole vocabulary: sum over tokens of p * estimate."""
    policy_V = double(*[a for a, _ in logits]).requires_grad_()
    reference_V = torch.log_softmax(double(*[b for _, b in logits]), 0)
    logp_V = torch.log_softmax(policy_V, 0)
    p_V = logp_V.exp().detach()
    kl = (logp_V.exp() * (logp_V - reference_V)).sum()
    (true_gradient,) = torch.autograd.grad(kl, policy_V, retain_graph=True)
    means, gradients = {}, {}
    for name in ("k1", "k2", "k3"):
        mean = (p_V * kl_estimate(logp_V, reference_V, name)).sum()
        means[name] = mean.item()
        (gradients[name],) = torch.autograd.grad(mean, policy_V, retain_graph=True)
    assert means["k1"] == pytest.approx(kl.item(), abs=1e-12)
    assert means["k3"] == pytest.approx(kl.item(), abs=1e-12)
    assert gradients["k1"].abs().max() < 1e-12  # regularises nothing
    torch.testing.assert_close(gradients["k2"], true_gradient, rtol=1e-9, atol=1e-12)


def test_the_loss_adds_kl_and_takes_away_entropy_each_with_its_coefficient() -> None:
    objective = Objective(kl_coefficient=0.1, kl_estimator="k2", entropy_coefficient=0.01)
    trainer = double(0.0, 0.0).requires_grad_()
    entropy = double(2.0, 3.0).requires_grad_()
    told = signals(double(1.0, -1.0), reference_logprobs_N=double(-1.0, 2.0))
    result = policy_loss(trainer, entropy, told, objective)
    # surrogates -1 and 1; k2 = 1/2 and 4/2; entropies 2 and 3
    assert result.loss.item() == pytest.approx(-1 + 1 + 0.1 * (0.5 + 2) - 0.01 * (2 + 3), abs=1e-15)
    by_logprob, by_entropy = torch.autograd.grad(result.loss, (trainer, entropy))
    assert by_logprob.tolist() == pytest.approx([-1 + 0.1 * 1, 1 - 0.1 * 2], abs=1e-15)
    assert by_entropy.tolist() == pytest.approx([-0.01, -0.01], abs=1e-15)
    assert result.reference_kl_N is not None
    assert result.reference_kl_N.tolist() == [0.5, 2.0]


TOKEN = Objective(importance_sampling="token", importance_cap=2.0)
LENGTHS = torch.tensor([2, 0, 3])


def ratios(*values: float) -> tuple[Tensor, Tensor]:
    """Trainer and sampler log-probabilities with these probability ratios."""
    return double(*map(math.log, values)) - 1, torch.full((len(values),), -1.0, dtype=torch.float64)


def test_importance_weights_by_token_and_by_completion_truncated_or_masked() -> None:
    logprobs = ratios(0.5, 3.0, 1.0, 2.5, 0.5)  # two completions: products 1.5 and 1.25
    for objective, weights, capped in (
        (TOKEN, [0.5, 2.0, 1.0, 2.0, 0.5], [0, 1, 0, 1, 0]),
        (replace(TOKEN, importance_mode="mask"), [0.5, 0.0, 1.0, 0.0, 0.5], [0, 1, 0, 1, 0]),
        (replace(TOKEN, importance_sampling="sequence"), [1.5, 1.5, 1.25, 1.25, 1.25], [0] * 5),
        (
            replace(TOKEN, importance_sampling="sequence", importance_cap=1.4),
            [1.4, 1.4, 1.25, 1.25, 1.25],
            [1, 1, 0, 0, 0],
        ),
    ):
        weight_N, is_capped_N = importance_weights(*logprobs, LENGTHS, objective)
        assert weight_N.tolist() == pytest.approx(weights, abs=1e-12)
        assert is_capped_N.tolist() == [bool(flag) for flag in capped]


def test_tokens_that_were_not_sampled_do_not_enter_a_completions_weight() -> None:
    mask = torch.tensor([True, False, True, True, True])  # the factor 3 is a tool's output
    sequence = replace(TOKEN, importance_sampling="sequence")
    weight_N, _ = importance_weights(*ratios(0.5, 3.0, 1.0, 2.5, 0.5), LENGTHS, sequence, mask)
    assert weight_N.tolist() == pytest.approx([0.5, 0.5, 1.25, 1.25, 1.25], abs=1e-12)


def test_an_importance_weight_scales_the_surrogate_and_nothing_else() -> None:
    objective = Objective(kl_coefficient=1.0, kl_estimator="k1")
    told = signals(double(2.0), importance_N=double(0.25), reference_logprobs_N=double(-3.0))
    assert policy_loss(double(0.0), None, told, objective).loss.item() == pytest.approx(-2 * 0.25 + 3, abs=1e-15)


@pytest.mark.parametrize(("field", "value"), [("importance_sampling", "group"), ("importance_mode", "clip")])
def test_unknown_ways_of_importance_sampling_are_refused(field: str, value: str) -> None:
    with pytest.raises(ValueError, match=f"{field}: expected .*, got '{value}'"):
        importance_weights(*ratios(1.0), torch.tensor([1]), replace(TOKEN, **{field: value}))


@pytest.mark.parametrize(
    ("normalization", "weights"),
    [  # completions of 3 and 2 tokens of which 2 and 1 are trained on, in two groups; max_tokens 5
        ("token_mean", [1 / 3, 0, 1 / 3, 1 / 3, 0]),
        ("sequence_mean", [1 / 4, 0, 1 / 4, 1 / 2, 0]),  # 1/(2*2), 1/(2*1)
        ("prompt_mean", [1 / 4, 0, 1 / 4, 1 / 2, 0]),
        ("constant", [1 / 10, 0, 1 / 10, 1 / 10, 0]),
    ],
)
def test_only_trainable_tokens_weigh_and_are_counted(normalization: str, weights: list[float]) -> None:
    mask = torch.tensor([True, False, True, True, False])
    found = token_weights(
        torch.tensor([3, 2]),
        torch.tensor([0, 1]),
        normalization,
        max_tokens=5,
        loss_mask_N=mask,
        dtype=torch.float64,
    )
    assert found.tolist() == pytest.approx(weights, abs=1e-15)
