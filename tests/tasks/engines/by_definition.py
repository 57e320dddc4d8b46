"""What a sampled token's log-probability is by definition: one plain forward pass, no cache, no padding, no batch."""

import numpy as np
import torch
from numpy.typing import NDArray

from tasks.engines.policy import Policy
from tasks.engines.sampler import SamplingParams

Tokens = NDArray[np.int32]


@torch.no_grad()
def next_token_logits(policy: Policy, prompt: Tokens, completion: Tokens) -> NDArray[np.float64]:
    """[T, V] logits that predict each completion token: one plain forward pass, no cache, no padding, no mask."""
    ids = torch.from_numpy(np.concatenate([prompt, completion]).astype(np.int64))[None]
    logits: NDArray[np.float64] = policy.model(ids, use_cache=False).logits[0, len(prompt) - 1 : -1].double().numpy()
    return logits


def logprobs_by_definition(
    policy: Policy, prompt: Tokens, completion: Tokens, how: SamplingParams
) -> NDArray[np.float64]:
    """log of the tempered probability, divided by the mass of the tokens that were not above top_p before theirs."""
    temperature = how.temperature or 1.0
    logprobs = []
    for logits_V, token in zip(next_token_logits(policy, prompt, completion), completion, strict=True):
        mass_V = np.exp(logits_V / temperature - np.max(logits_V / temperature))
        mass_V /= mass_V.sum()
        kept: list[int] = []
        for candidate in np.argsort(-mass_V):
            if mass_V[kept].sum() < how.top_p:
                kept.append(int(candidate))
        assert token in kept
        logprobs.append(np.log(mass_V[token] / mass_V[kept].sum()))
    return np.array(logprobs)
