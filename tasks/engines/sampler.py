"""What every sampler does: prompt token ids in; token ids, log-probabilities and finish reasons out.

Text is never tokenised again: what a sampler drew is what is trained on.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How tokens are drawn; temperature 0 decodes greedily."""

    temperature: float
    top_p: float
    max_tokens: int


@dataclass(frozen=True)
class Samples:
    """R = P * num_samples completions, prompt by prompt, ragged and flat."""

    token_ids_N: NDArray[np.int32]
    """Sampled tokens; the end-of-sequence token is included when it was drawn."""
    offsets: NDArray[np.int64]
    """[R+1] completion i is token_ids_N[offsets[i]:offsets[i+1]]."""
    sampler_logprobs_N: NDArray[np.float32]
    """log p(token) under the distribution it was drawn from (temperature and top-p applied)."""
    is_truncated_R: NDArray[np.bool_]
    """Ended by length rather than by an end-of-sequence token."""
    num_cached_prompt_tokens: int = 0
    """Prompt tokens, counted once a completion, whose keys and values were in a prefix cache."""
    num_restarts: int = 0
    """Times that the engine died over these samples, and was started again."""


def joined(parts: Sequence[Samples]) -> Samples:
    """Samples one after the other."""
    starts = np.cumsum([0, *(part.offsets[-1] for part in parts)])
    offsets = [part.offsets[:-1] + start for part, start in zip(parts, starts, strict=False)]
    return Samples(
        token_ids_N=np.concatenate([part.token_ids_N for part in parts]),
        offsets=np.concatenate([*offsets, starts[-1:]]).astype(np.int64),
        sampler_logprobs_N=np.concatenate([part.sampler_logprobs_N for part in parts]),
        is_truncated_R=np.concatenate([part.is_truncated_R for part in parts]),
        num_cached_prompt_tokens=sum(part.num_cached_prompt_tokens for part in parts),
    )


def completion_limits(prompts: Sequence[NDArray[np.int32]], max_tokens: int, context_length: int) -> NDArray[np.int64]:
    """Most tokens [P] that each prompt's completions may have: max_tokens, or what the context leaves.

    Raises ValueError for an empty prompt, and for one that leaves no room for a single token.
    """
    lengths_P = np.array([len(prompt) for prompt in prompts], dtype=np.int64)
    if (lengths_P == 0).any():
        raise ValueError("expected at least one token in every prompt, got an empty prompt: nothing to continue")
    num_without_room = int((lengths_P >= context_length).sum())
    if num_without_room:
        raise ValueError(
            f"expected prompts of at most {context_length - 1} tokens, got {num_without_room} of {lengths_P.size} that "
            f"are longer, the longest of {lengths_P.max()}: in a context of {context_length} tokens they leave no room "
            "for a completion. Lower prompts.max_tokens (prompts.overlong=drop leaves longer prompts out), or take a "
            "policy with a longer context (under vLLM: or raise sampler.vllm.max_model_len, if that is set)"
        )
    return np.minimum(max_tokens, context_length - lengths_P)


class Sampler(Protocol):
    """A machine that completes prompts with one policy."""

    name: str
    """Stored with every rollout."""

    def sample(
        self,
        prompts: Sequence[NDArray[np.int32]],
        *,
        num_samples: int,
        seeds_R: NDArray[np.int64],
        params: SamplingParams,
        progress: Callable[[int, int], Any] = ...,
    ) -> Samples:
        """Complete each prompt num_samples times; completion i of prompt p uses seeds_R[p * num_samples + i].

        The same policy, prompts, seeds and params give the same bytes each time. `progress(done, total)` is called
        with completions. A completion ends by length at params.max_tokens, or where the context does: see
        `completion_limits`, which also refuses prompts, before any work.
        """
        ...
