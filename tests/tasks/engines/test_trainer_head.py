"""The output head in chunks: the same numbers and gradients as in one piece."""

import numpy as np
import pytest
import torch

from tasks.core.arithmetic import CHARACTERS
from tasks.engines import trainer
from tasks.engines.policy import make_tiny_policy


@pytest.mark.parametrize("rows_per_chunk", [1, 3, 7])
def test_chunks_of_the_head_change_neither_logprobs_nor_gradients(monkeypatch, rows_per_chunk):
    policy = make_tiny_policy(CHARACTERS, seed=3)
    prompts = [np.array([3, 4, 5], np.int32), np.array([6, 7], np.int32)]
    completions = [np.array([8, 9, 10, 11], np.int32), np.array([12, 13, 1], np.int32)]
    weights = torch.linspace(-1, 1, 7)  # 4 + 3 tokens

    def run() -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        policy.model.zero_grad()
        logprobs_N, entropy_N = trainer.completion_logprobs(policy, prompts, completions, 0.7)
        (weights * logprobs_N).sum().backward()
        return logprobs_N.detach(), entropy_N, {n: p.grad.clone() for n, p in policy.model.named_parameters()}

    whole = run()
    monkeypatch.setattr(trainer, "MAX_LOGITS", rows_per_chunk * len(policy.tokenizer))
    chunked = run()
    torch.testing.assert_close(chunked[0], whole[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(chunked[1], whole[1], rtol=0, atol=1e-6)
    for name, gradient in whole[2].items():
        torch.testing.assert_close(chunked[2][name], gradient, rtol=1e-4, atol=1e-6)
