"""The clipped value loss: its three cases by hand, and that micro-batches only add up."""

import numpy as np
import pytest
import torch

from tasks.core.value_loss import value_loss


@pytest.mark.parametrize(
    ("value", "loss", "gradient", "is_clipped"),
    [
        # stored value 0.5, clip 0.2, return 1: the value is held between 0.3 and 0.7
        (0.6, 0.08, -0.4, False),  # inside: 1/2 (0.6 - 1)^2 = 1/2 * 0.16
        (0.9, 0.045, 0.0, True),  # too far towards the return: max(0.1^2, (0.7 - 1)^2) / 2 = 0.09 / 2, and no pull
        (0.1, 0.405, -0.9, False),  # as far away from it: max(0.9^2, (0.3 - 1)^2) / 2 = 0.81 / 2, pulled back in full
    ],
)
def test_a_value_may_move_by_the_clip_and_no_further(value, loss, gradient, is_clipped):
    values_N = torch.tensor([value], dtype=torch.float64, requires_grad=True)
    stored_N, returns_N, weights_N = (torch.tensor([number], dtype=torch.float64) for number in (0.5, 1.0, 1.0))
    result = value_loss(values_N, stored_N, returns_N, weights_N, value_clip=0.2)
    result.loss.backward()
    assert result.loss.item() == pytest.approx(loss, abs=1e-12)
    assert values_N.grad.item() == pytest.approx(gradient, abs=1e-12)
    assert result.is_clipped_N.tolist() == [is_clipped]


@pytest.mark.parametrize("cut", [[1, 1], [7], [3, 8, 9], list(range(1, 40))])
def test_micro_batches_add_up_to_the_mean_over_the_mini_batch_and_so_do_their_gradients(cut):
    rng = np.random.default_rng(0)
    values, stored, returns = (torch.from_numpy(rng.normal(size=40)) for _ in range(3))
    weights = torch.full((40,), 1 / 40, dtype=torch.float64)

    def run(cuts: list[int]) -> tuple[float, torch.Tensor]:
        values_N = values.clone().requires_grad_()
        total = 0.0
        for part in np.split(np.arange(40), cuts):
            loss = value_loss(values_N[part], stored[part], returns[part], weights[part], value_clip=0.3).loss
            loss.backward()
            total += loss.item()
        return total, values_N.grad

    whole, gradient = run([])
    moved = (values - stored).clamp(-0.3, 0.3)
    by_hand = 0.5 * torch.maximum((values - returns) ** 2, (stored + moved - returns) ** 2).mean()
    assert abs(whole - by_hand.item()) < 1e-12
    total, summed = run(cut)
    assert abs(total - whole) < 1e-10
    assert (summed - gradient).abs().max() < 1e-10


def test_no_tokens_no_loss():
    none = torch.zeros(0)
    assert value_loss(none, none, none, none, value_clip=0.5).loss.item() == 0
