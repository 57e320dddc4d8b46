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
        with completions. Raises ValueError for an empty prompt and for one that leaves no room in the context.
        """
        ...
