"""Drawing tokens: the distribution drawn from, the log-probability reported, and what can never be drawn."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tasks.core.sampling import draw_tokens, kept_mass

PROBABILITIES = (0.15, 0.5, 0.05, 0.3)  # tokens 0 to 3; in order of mass: 1, 3, 0, 2
LOGITS = torch.tensor(PROBABILITIES).log() + 2.5  # a shift of all logits changes nothing
BIGGEST_UNIFORM = 1 - 2**-53  # numpy draws multiples of 2**-53 below 1


def draw(uniforms: list[float], *, temperature: float = 1.0, top_p: float = 1.0) -> tuple[list[int], list[float]]:
    rows_BV = LOGITS.expand(len(uniforms), -1)
    uniforms_B = torch.tensor(uniforms, dtype=torch.float64)
    tokens_B, logprobs_B = draw_tokens(rows_BV, uniforms_B, temperature=temperature, top_p=top_p)
    return tokens_B.tolist(), logprobs_B.tolist()


def logs(*values: float) -> list[float]:
    return [pytest.approx(math.log(value), abs=2e-6) for value in values]


def test_a_uniform_number_picks_the_token_whose_share_of_the_line_it_falls_in() -> None:
    # cumulative: 0.15, 0.65, 0.70, 1
    tokens, logprobs = draw([0.0, 0.14, 0.16, 0.64, 0.66, 0.69, 0.71, BIGGEST_UNIFORM])
    assert tokens == [0, 0, 1, 1, 2, 2, 3, 3]
    assert logprobs == logs(0.15, 0.15, 0.5, 0.5, 0.05, 0.05, 0.3, 0.3)


def test_the_temperature_divides_the_logits() -> None:
    # T = 1/2 squares the probabilities: 0.0225, 0.25, 0.0025, 0.09, together 0.365; cumulative 0.062, 0.747, 0.753, 1
    tokens, logprobs = draw([0.06, 0.07, 0.74, 0.75, 0.76], temperature=0.5)
    assert tokens == [0, 1, 1, 2, 3]
    assert logprobs == logs(0.0225 / 0.365, 0.25 / 0.365, 0.25 / 0.365, 0.0025 / 0.365, 0.09 / 0.365)


def test_top_p_keeps_the_token_that_crosses_it_and_renormalises() -> None:
    # 0.5 falls short of 0.7, 0.5 + 0.3 crosses it: tokens 1 and 3 with 5/8 and 3/8
    tokens, logprobs = draw([0.0, 0.62, 0.63, BIGGEST_UNIFORM], top_p=0.7)
    assert tokens == [1, 1, 3, 3]
    assert logprobs == logs(5 / 8, 5 / 8, 3 / 8, 3 / 8)


def test_top_p_below_the_greatest_probability_leaves_one_token() -> None:
    tokens, logprobs = draw([0.0, 0.5, BIGGEST_UNIFORM], top_p=0.45)
    assert tokens == [1, 1, 1]
    assert logprobs == logs(1, 1, 1)


def test_the_nucleus_is_that_of_the_tempered_distribution() -> None:
    # T = 1/2: 0.685, 0.247, 0.062, 0.007 in order of mass; two reach 0.9 (at T = 1 it takes three)
    tokens, logprobs = draw([0.0, 0.73, 0.74, BIGGEST_UNIFORM], temperature=0.5, top_p=0.9)
    assert tokens == [1, 1, 3, 3]  # 0.25 / 0.34 = 0.735
    assert logprobs == logs(0.25 / 0.34, 0.25 / 0.34, 0.09 / 0.34, 0.09 / 0.34)


def test_top_p_of_one_keeps_every_token_however_unlikely() -> None:
    logits_BV = torch.tensor([[0.0, -20.0]])  # exp(-20) = 2e-9 is lost against 1 in float32, not on the line drawn on
    uniforms_B = torch.tensor([BIGGEST_UNIFORM], dtype=torch.float64)
    tokens_B, logprobs_B = draw_tokens(logits_BV, uniforms_B, temperature=1.0, top_p=1.0)
    assert tokens_B.tolist() == [1]
    assert logprobs_B.item() == pytest.approx(-20, abs=1e-5)


def test_equally_likely_tokens_enter_the_nucleus_by_their_number() -> None:
    logits_BV, uniforms_B = torch.zeros(2, 1000), torch.tensor([0.0, BIGGEST_UNIFORM], dtype=torch.float64)
    tokens_B, logprobs_B = draw_tokens(logits_BV, uniforms_B, temperature=1.0, top_p=0.0995)
    assert tokens_B.tolist() == [0, 99]  # a hundred of 1/1000 reach 0.0995
    assert logprobs_B.tolist() == logs(1 / 100, 1 / 100)


def test_the_kept_mass_is_that_of_the_likeliest_tokens_up_to_the_one_that_crosses_top_p() -> None:
    # 0.5, 0.3, 0.2: one token reaches 0.4, two reach 0.7 with 0.8 together, and only all three 0.9
    logprobs_BV = torch.tensor([[0.3, 0.5, 0.2]]).log()
    for top_p, mass in ((0.4, 0.5), (0.7, 0.8), (0.9, 1.0), (1.0, 1.0)):
        assert kept_mass(logprobs_BV, top_p).item() == pytest.approx(mass, abs=1e-6)
    # T = 1/2: 0.25, 0.09 and 0.04 of 0.38: two reach 0.7, with 0.34 / 0.38
    assert kept_mass(torch.log_softmax(2 * logprobs_BV, dim=-1), 0.7).item() == pytest.approx(0.34 / 0.38, abs=1e-6)


def test_of_equally_likely_tokens_as_many_are_kept_as_are_drawn_from() -> None:
    # a hundred of 1/1000 reach 0.0995, as in the draw above
    assert kept_mass(torch.full((1, 1000), 1e-3).log(), 0.0995).item() == pytest.approx(0.1, abs=1e-6)


@settings(deadline=None)
@given(seed=st.integers(0, 10**6), top_p=st.sampled_from([0.05, 0.5, 0.8, 0.99]), temperature=st.sampled_from([1, 0.6]))
def test_a_token_of_the_nucleus_is_likelier_by_the_kept_mass_than_without_it(
    seed: int, top_p: float, temperature: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits_BV = 3 * torch.randn(8, 19, generator=generator)
    uniforms_B = torch.rand(8, generator=generator, dtype=torch.float64)
    tokens_B, logprobs_B = draw_tokens(logits_BV, uniforms_B, temperature=temperature, top_p=top_p)
    plain_BV = torch.log_softmax(logits_BV / temperature, dim=-1)
    mass_B = kept_mass(plain_BV, top_p)
    expected_B = plain_BV.gather(1, tokens_B[:, None])[:, 0] - mass_B.log()
    torch.testing.assert_close(logprobs_B.double(), expected_B, rtol=0, atol=1e-5)
    assert ((top_p - 1e-6 <= mass_B) & (mass_B <= 1 + 1e-6)).all()


def test_temperature_zero_takes_the_most_likely_token_and_reports_its_plain_probability() -> None:
    tokens, logprobs = draw([0.0, 0.99], temperature=0.0, top_p=0.3)
    assert tokens == [1, 1]
    assert logprobs == logs(0.5, 0.5)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_frequencies_follow_the_softmax_of_the_tempered_logits(temperature: float) -> None:
    logits_V, num_draws = torch.tensor([0.3, -1.0, 2.0, 0.0, 1.1, -2.5]), 20_000
    uniforms_B = torch.from_numpy(np.random.default_rng(5).random(num_draws))
    tokens_B, _ = draw_tokens(logits_V.expand(num_draws, -1), uniforms_B, temperature=temperature, top_p=1.0)
    expected_V = num_draws * torch.softmax(logits_V / temperature, dim=0).numpy()
    chi_square = ((np.bincount(tokens_B, minlength=6) - expected_V) ** 2 / expected_V).sum()
    assert chi_square < 25.7  # 5 degrees of freedom: exceeded by one right sampler in 10,000


ROW = st.lists(st.one_of(st.just(-math.inf), st.floats(-30, 30)), min_size=2, max_size=12).filter(
    lambda row: max(row) > -math.inf
)


@settings(deadline=None)
@given(row=ROW, uniform=st.sampled_from([0.0, 2**-53, 0.5, BIGGEST_UNIFORM]), top_p=st.sampled_from([1.0, 0.6]))
def test_a_token_of_probability_zero_is_never_drawn(row: list[float], uniform: float, top_p: float) -> None:
    uniforms_B = torch.tensor([uniform], dtype=torch.float64)
    tokens_B, logprobs_B = draw_tokens(torch.tensor([row]), uniforms_B, temperature=1.0, top_p=top_p)
    assert row[tokens_B.item()] > -math.inf
    assert -math.inf < logprobs_B.item() <= 1e-6


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 0.8), (0.0, 1.0)])
def test_a_row_is_drawn_the_same_alone_and_in_company(temperature: float, top_p: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits_BV = 3 * torch.randn(64, 37, generator=generator)
    uniforms_B = torch.rand(64, generator=generator, dtype=torch.float64)

    def drawn(rows: slice) -> tuple[Tensor, Tensor]:
        return draw_tokens(logits_BV[rows], uniforms_B[rows], temperature=temperature, top_p=top_p)

    together = drawn(slice(None))
    alone = [drawn(slice(i, i + 1)) for i in range(64)]
    for whole, parts in zip(together, zip(*alone, strict=True), strict=True):
        assert torch.equal(whole, torch.cat(parts))
