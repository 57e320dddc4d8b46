"""How many tokens a prompt's completions may have, whichever sampler makes them."""

import numpy as np
import pytest
from numpy.typing import NDArray

from tasks.engines.sampler import completion_limits


def prompts(*lengths: int) -> list[NDArray[np.int32]]:
    return [np.full(length, 5, dtype=np.int32) for length in lengths]


def test_a_completion_may_have_max_tokens_or_what_the_context_leaves_if_that_is_less() -> None:
    # of 128: 104 leave exactly the 24 asked for, 105 one less, 127 a single token
    limits_P = completion_limits(prompts(1, 104, 105, 127), max_tokens=24, context_length=128)
    assert limits_P.tolist() == [24, 24, 23, 1]
    assert completion_limits([], max_tokens=24, context_length=128).tolist() == []


def test_prompts_without_room_for_one_token_are_counted_and_refused_with_the_remedy() -> None:
    with pytest.raises(
        ValueError, match=r"at most 127 tokens, got 2 of 3 that are longer, the longest of 300"
    ) as error:
        completion_limits(prompts(128, 5, 300), max_tokens=1, context_length=128)
    for remedy in ("prompts.max_tokens", "prompts.overlong=drop", "longer context", "sampler.vllm.max_model_len"):
        assert remedy in str(error.value)


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(ValueError, match="got an empty prompt"):
        completion_limits(prompts(3, 0), max_tokens=24, context_length=128)
