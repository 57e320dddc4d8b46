"""The clipped surrogate token by token, and the weights of the four normalisations, each with its arithmetic."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tasks.core.objective import NORMALIZATIONS, Objective, PolicyLoss, TokenSignals, policy_loss, token_weights

SAMPLER_LOGPROB = -1.5
OBJECTIVE = Objective(clip_low=0.2, clip_high=0.28, dual_clip=3.0)


def double(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def surrogate(trainer: Tensor, sampler: Tensor, advantages: Tensor, weights: Tensor) -> PolicyLoss:
    """The loss without KL, entropy and importance weights."""
    signals = TokenSignals(advantages_N=advantages, weights_N=weights, anchor_logprobs_N=sampler)
    return policy_loss(trainer, None, signals, OBJECTIVE)


def loss_at(ratio: float, advantage: float, weight: float = 1.0) -> tuple[PolicyLoss, float]:
    """The loss of one token with that importance ratio, and its gradient with respect to the trainer's logprob."""
    trainer = double(SAMPLER_LOGPROB + math.log(ratio)).requires_grad_()
    result = surrogate(trainer, double(SAMPLER_LOGPROB), double(advantage), double(weight))
    (gradient,) = torch.autograd.grad(result.loss, trainer)
    return result, gradient.item()


def test_at_ratio_one_the_gradient_is_minus_weight_times_advantage() -> None:
    logprobs = double(-0.1, -2.0, -7.5, -0.01)
    advantages, weights = double(1.7, -0.4, -2.0, 0.5), double(0.25, 0.5, 0.125, 1.0)
    trainer = logprobs.clone().requires_grad_()
    result = surrogate(trainer, logprobs, advantages, weights)
    (gradient,) = torch.autograd.grad(result.loss, trainer)
    # -(1.7 * 0.25), 0.4 * 0.5, 2 * 0.125, -0.5; and the loss is their sum, for the ratio is 1
    assert gradient.tolist() == pytest.approx([-0.425, 0.2, 0.25, -0.5], abs=1e-15)
    assert result.loss.item() == pytest.approx(-0.475, abs=1e-15)
    assert result.ratio_N.tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("advantage", "ratio", "loss", "gradient"),
    [
        # l = max(-A r, -A clamp(r, 0.8, 1.28)); the gradient is -A r where the first term counts, else 0
        (-1.0, 0.81, 0.81, 0.81),
        (-1.0, 0.79, 0.80, 0.0),  # already less likely than the clip asks for: no further push down
        (+1.0, 0.79, -0.79, -0.79),  # a good token that became unlikely is still pushed up
        (+1.0, 0.01, -0.01, -0.01),
        (+1.0, 1.27, -1.27, -1.27),
        (+1.0, 1.29, -1.28, 0.0),  # already more likely than the clip asks for
        (-1.0, 1.29, 1.29, 1.29),  # a bad token that became likely is still pushed down
        (-2.0, 2.90, 5.80, 5.80),
        (-2.0, 3.10, 6.00, 0.0),  # dual clip: at most 3 |A|
        (+2.0, 3.10, -2.56, 0.0),  # 2 * 1.28; the dual clip is for negative advantages only
    ],
)
def test_each_clip_cuts_the_gradient_on_its_own_side_only(
    advantage: float, ratio: float, loss: float, gradient: float
) -> None:
    result, actual = loss_at(ratio, advantage)
    assert result.loss.item() == pytest.approx(loss, abs=1e-12)
    assert actual == pytest.approx(gradient, abs=1e-12)
    is_clipped = result.is_clipped_low_N | result.is_clipped_high_N | result.is_dual_clipped_N
    assert is_clipped.item() == (gradient == 0)


def test_the_flags_name_the_clip_that_held() -> None:
    flags = {
        (ratio, advantage): (
            result.is_clipped_low_N.item(),
            result.is_clipped_high_N.item(),
            result.is_dual_clipped_N.item(),
        )
        for ratio in (0.5, 1.0, 2.0, 4.0)
        for advantage in (-1.0, 1.0)
        for result in [loss_at(ratio, advantage)[0]]
    }
    low, high, dual, none = (True, False, False), (False, True, False), (False, False, True), (False, False, False)
    assert flags == {
        (0.5, -1.0): low,
        (0.5, 1.0): none,
        (1.0, -1.0): none,
        (1.0, 1.0): none,
        (2.0, -1.0): none,
        (2.0, 1.0): high,
        (4.0, -1.0): dual,
        (4.0, 1.0): high,
    }


@pytest.mark.parametrize(
    ("log_ratio", "advantage", "loss"),
    [(1000.0, 1.0, -1.28), (1000.0, -1.0, 3.0), (-1000.0, 1.0, -math.exp(-20)), (-1000.0, -1.0, 0.8)],
)
def test_log_ratios_of_a_thousand_stay_finite(log_ratio: float, advantage: float, loss: float) -> None:
    trainer = torch.tensor([log_ratio], requires_grad=True)  # float32, in which exp(1000) is infinite
    result = surrogate(trainer, torch.zeros(1), torch.tensor([advantage]), torch.ones(1))
    (gradient,) = torch.autograd.grad(result.loss, trainer)
    assert result.loss.item() == pytest.approx(loss, rel=1e-6)
    assert gradient.item() == 0
    assert result.ratio_N.item() == pytest.approx(math.exp(math.copysign(20, log_ratio)), rel=1e-5)


@settings(deadline=None)
@given(log_ratio=st.floats(-30, 30), weight=st.floats(0, 1))
def test_a_token_with_advantage_zero_gives_no_loss_and_no_gradient(log_ratio: float, weight: float) -> None:
    trainer = double(log_ratio).requires_grad_()
    result = surrogate(trainer, double(0.0), double(0.0), double(weight))
    (gradient,) = torch.autograd.grad(result.loss, trainer)
    assert result.loss.item() == 0
    assert gradient.item() == 0
    assert not (result.is_clipped_low_N | result.is_clipped_high_N | result.is_dual_clipped_N).item()


def test_the_gradient_is_the_numerical_one_away_from_the_kinks() -> None:
    # Kinks: ln 0.8 = -0.223, ln 1.28 = 0.247, ln 3 = 1.099, +-20. None is nearer than 0.02 to a point below.
    log_ratios = [-25.0, -3.0, -0.5, -0.2, 0.0, 0.2, 0.3, 1.0, 1.2, 25.0]
    trainer = double(*log_ratios, *log_ratios).requires_grad_()
    advantages = double(*[1.3] * 10, *[-0.7] * 10)
    weights = torch.linspace(0.01, 0.2, 20, dtype=torch.float64)
    sampler = torch.zeros(20, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: surrogate(x, sampler, advantages, weights).loss, trainer)


TOKEN = st.tuples(st.floats(-4, 4), st.floats(-3, 3), st.booleans())  # log-ratio, advantage, does a micro-batch end


@settings(deadline=None)
@given(tokens=st.lists(TOKEN, min_size=1, max_size=30))
def test_loss_and_gradient_over_any_micro_batches_add_up_to_the_whole(
    tokens: list[tuple[float, float, bool]],
) -> None:
    sampler = torch.linspace(-3, -0.1, len(tokens), dtype=torch.float64)
    trainer = (sampler + double(*[log_ratio for log_ratio, _, _ in tokens])).requires_grad_()
    advantages = double(*[advantage for _, advantage, _ in tokens])
    weights = torch.full_like(sampler, 1 / len(tokens))
    whole = surrogate(trainer, sampler, advantages, weights).loss
    (expected,) = torch.autograd.grad(whole, trainer)
    ends = [i + 1 for i, (_, _, is_end) in enumerate(tokens) if is_end] + [len(tokens)]
    loss, gradient, begin = 0.0, torch.zeros_like(sampler), 0
    for end in ends:
        part = surrogate(trainer[begin:end], sampler[begin:end], advantages[begin:end], weights[begin:end]).loss
        loss, begin = loss + part.item(), end
        gradient += torch.autograd.grad(part, trainer)[0]
    assert loss == pytest.approx(whole.item(), abs=1e-12)
    assert (gradient - expected).abs().max().item() <= 1e-12


def weights_of(normalization: str, lengths: list[int], groups: list[int], max_tokens: int = 4) -> list[float]:
    weights_N = token_weights(
        torch.tensor(lengths), torch.tensor(groups), normalization, max_tokens=max_tokens, dtype=torch.float64
    )
    return weights_N.tolist()


@pytest.mark.parametrize(
    ("normalization", "weights"),
    [  # completions of 2, 3 and 1 tokens; the first two are group 7, the third is group 5; max_tokens 4
        ("token_mean", [1 / 6] * 6),
        ("sequence_mean", [1 / 6, 1 / 6, 1 / 9, 1 / 9, 1 / 9, 1 / 3]),  # 1/(3*2), 1/(3*3), 1/(3*1)
        ("prompt_mean", [1 / 10] * 5 + [1 / 2]),  # 1/(2*5) for the group of 5 tokens, 1/(2*1)
        ("constant", [1 / 12] * 6),  # 1/(3*4)
    ],
)
def test_the_weights_of_each_normalization(normalization: str, weights: list[float]) -> None:
    assert weights_of(normalization, [2, 3, 1], [7, 7, 5]) == pytest.approx(weights, abs=1e-15)


def test_groups_are_told_apart_by_their_index_not_by_their_place() -> None:
    # groups 1, 0, 1: the tokens of group 1 (2 + 4) weigh 1/(2*6), those of group 0 (3) 1/(2*3)
    assert weights_of("prompt_mean", [2, 3, 4], [1, 0, 1]) == pytest.approx([1 / 12] * 2 + [1 / 6] * 3 + [1 / 12] * 4)


def test_an_empty_completion_has_no_weight_and_counts_where_completions_count() -> None:
    assert weights_of("sequence_mean", [2, 0], [0, 0]) == [0.25, 0.25]  # 1/(2*2), as if it had contributed a loss of 0
    assert weights_of("token_mean", [2, 0], [0, 0]) == [0.5, 0.5]
    assert weights_of("constant", [2, 0], [0, 0]) == [0.125, 0.125]  # 1/(2*4)
    assert weights_of("token_mean", [0, 0], [0, 0]) == []


@settings(deadline=None)
@given(lengths=st.lists(st.integers(1, 50), min_size=1, max_size=20), groups=st.data())
def test_the_weights_of_the_three_means_sum_to_one(lengths: list[int], groups: st.DataObject) -> None:
    index = groups.draw(st.lists(st.integers(0, 5), min_size=len(lengths), max_size=len(lengths)))
    for normalization in ("token_mean", "sequence_mean", "prompt_mean"):
        assert sum(weights_of(normalization, lengths, index)) == pytest.approx(1, abs=1e-12)
    # constant: N / (R * max_tokens), here with max_tokens = 50
    constant = sum(weights_of("constant", lengths, index, max_tokens=50))
    assert constant == pytest.approx(sum(lengths) / (len(lengths) * 50), abs=1e-12)


def test_an_unknown_normalization_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="'batch_mean'") as error:
        weights_of("batch_mean", [1], [0])
    assert all(name in str(error.value) for name in NORMALIZATIONS)
