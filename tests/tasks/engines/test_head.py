"""The output head: one pass over chunks of logits against autograd over all of them."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.core.layout import build_layout
from tasks.engines import head
from tasks.engines.head import head_logprobs, head_pass


class TinyHead(torch.nn.Module):
    """A model that is only its output head."""

    def __init__(self, vocabulary: int, width: int, *, has_bias: bool) -> None:
        super().__init__()
        self.lm_head = torch.nn.Linear(width, vocabulary, bias=has_bias, dtype=torch.float64)

    def get_output_embeddings(self) -> torch.nn.Linear:
        return self.lm_head


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    chunk=st.integers(1, 9),
    temperature=st.sampled_from([1.0, 0.7]),
    entropy_coefficient=st.sampled_from([0.0, 0.3]),
    has_bias=st.booleans(),
)
def test_one_pass_over_chunks_gives_autograds_loss_and_gradients(
    seed: int, chunk: int, temperature: float, entropy_coefficient: float, has_bias: bool
) -> None:
    """loss = sum of w * exp(log p) - c * entropy, over the tokens of a random tree whose siblings share edges."""
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    completions = [rng.integers(0, 3, size=rng.integers(1, 6)).astype(np.int32) for _ in range(5)]
    layout = build_layout("tree", [np.array([1, 2], np.int32)] * 5, completions, np.zeros(5, np.int64))
    weight_N = torch.randn(layout.token_edge_N.size, dtype=torch.float64)
    model = TinyHead(7, 4, has_bias=has_bias)
    hidden_UH = torch.randn(layout.parent_U.size, 4, dtype=torch.float64, requires_grad=True)

    def token_loss(logprob_n: torch.Tensor, entropy_n: torch.Tensor, tokens_n: torch.Tensor) -> torch.Tensor:
        loss = (weight_N[tokens_n] * logprob_n.exp()).sum()
        return loss - entropy_coefficient * entropy_n.sum() if entropy_coefficient else loss

    all_UV = torch.log_softmax(model.lm_head(hidden_UH) / temperature, dim=-1)
    parent_N, token_N = layout.edge_parent_E[layout.token_edge_N], layout.edge_token_E[layout.token_edge_N]
    logprob_N = all_UV[parent_N, token_N]
    entropy_N = -(all_UV.exp() * all_UV).sum(dim=1)[parent_N]
    expected = token_loss(logprob_N, entropy_N, torch.arange(len(weight_N)))
    expected.backward()
    gradients = [hidden_UH.grad, *(parameter.grad.clone() for parameter in model.parameters())]
    model.zero_grad(set_to_none=True)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(head.MAX_LOGITS, "cpu", chunk * 7)
        result = head_pass(model, hidden_UH, layout, token_loss, temperature)
        logprobs, entropies = head_logprobs(model, hidden_UH, layout, temperature)
    assert result.loss == pytest.approx(expected.item(), abs=1e-12)
    found = [result.cotangent_UH, *(parameter.grad for parameter in model.parameters())]
    for one, other in zip(found, gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
    for one, other in ((result.logprob_N, logprob_N), (result.entropy_N, entropy_N), (logprobs, logprob_N)):
        torch.testing.assert_close(one, other.detach(), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(entropies, entropy_N.detach(), rtol=1e-10, atol=1e-12)


def test_gradients_of_two_passes_add_up_and_a_frozen_head_gets_none() -> None:
    layout = build_layout("packed", [np.array([1], np.int32)], [np.array([2, 0], np.int32)], np.zeros(1, np.int64))
    model = TinyHead(3, 2, has_bias=False)
    hidden_UH = torch.randn(2, 2, dtype=torch.float64)

    def run() -> torch.Tensor:
        return head_pass(model, hidden_UH, layout, lambda logprob_n, *_: logprob_n.sum(), 1.0).cotangent_UH

    run()
    once = model.lm_head.weight.grad.clone()
    cotangent = run()
    torch.testing.assert_close(model.lm_head.weight.grad, 2 * once)
    model.lm_head.weight.requires_grad_(False)
    model.lm_head.weight.grad = None
    torch.testing.assert_close(run(), cotangent)
    assert model.lm_head.weight.grad is None


@pytest.mark.parametrize("rows_at_once", [1, 4])
def test_the_kept_mass_stands_at_every_token_with_the_distribution_that_it_was_drawn_from(rows_at_once: int) -> None:
    """Two states: with (0.5, 0.3, 0.2) two tokens reach 0.7, together 0.8; with (0.1, 0.6, 0.3) two, together 0.9."""
    model = TinyHead(3, 2, has_bias=False)
    model.lm_head.weight.data = torch.tensor([[0.5, 0.1], [0.3, 0.6], [0.2, 0.3]], dtype=torch.float64).log()
    completions = [np.array([2, 0], np.int32), np.array([2, 1], np.int32)]
    layout = build_layout("tree", [np.array([1], np.int32)] * 2, completions, np.zeros(2, np.int64))
    hidden_UH = torch.eye(2, dtype=torch.float64)  # of the prompt's end, and of the token 2 that both share
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(head.MAX_LOGITS, "cpu", rows_at_once * 3)
        logprob_N, _, mass_N = head_logprobs(model, hidden_UH, layout, 1.0, top_p=0.7)
    assert mass_N.tolist() == pytest.approx([0.8, 0.9, 0.8, 0.9], abs=1e-12)
    assert logprob_N.exp().tolist() == pytest.approx([0.2, 0.1, 0.2, 0.6], abs=1e-12)
    # token 2 of the first state is outside its nucleus: it can have come from another engine; the mass is the state's
    assert len(head_logprobs(model, hidden_UH, layout, 1.0)) == 2  # nobody asked for it
