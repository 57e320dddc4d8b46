"""Groups of completions as the tests write them down, and as the flat buffers that the core takes."""

import numpy as np

from tasks.core.advantage import Advantages

Group = list[tuple[list[int], float]]  # (token ids, reward)


def flat(groups: list[Group]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """token_ids_N, offsets, group_offsets, rewards_R."""
    completions = [tokens for group in groups for tokens, _ in group]
    token_ids_N = np.array([token for tokens in completions for token in tokens], dtype=np.int32)
    offsets = np.cumsum([0] + [len(tokens) for tokens in completions])
    group_offsets = np.cumsum([0] + [len(group) for group in groups])
    rewards_R = np.array([reward for group in groups for _, reward in group], dtype=np.float64)
    return token_ids_N, offsets, group_offsets, rewards_R


def per_token(result: Advantages) -> list[list[float]]:
    """The advantages, completion by completion."""
    return [part.tolist() for part in np.split(result.advantages, result.offsets[1:-1])]
