"""What the stage `credit` says of a step: how often groups part, how early, how much credit td moves, what has none.

storage/queries/branch_statistics.sql computes the same figures from the stored rows.
"""

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tasks.core.advantage import Advantages


@dataclass
class CreditTally:
    """Sums over the chunks of a step."""

    num_completions: int
    """Completions, those without a reward included."""
    sums: dict[str, float] = field(default_factory=dict)

    def add(self, result: Advantages, rewards_R: np.ndarray) -> None:
        assert result.tree is not None
        td, base = result.moved()
        divergence_P = first_divergence(result)
        new = {
            "credited": rewards_R.size,
            "reward": float(rewards_R.sum()),
            "groups": result.group_std_P.size,
            "without_signal": int((result.group_std_P == 0).sum()),
            "branch_tokens": result.tree.breakpoint_rollout_K.size,
            "diverging": int((divergence_P >= 0).sum()),
            "divergence": int(divergence_P[divergence_P >= 0].sum()),
            "td": td,
            "base": base,
        }
        self.sums = {name: self.sums.get(name, 0) + value for name, value in new.items()}

    def summary(self) -> dict[str, Any]:
        """branch_tokens: tokens at which D changes, per completion. divergence: mean over the groups that part of the
        tokens before their first branch token; None where none does. td_share: sum |td part| / (sum |td part| +
        sum |base part|) over the trained tokens, in [0, 1]; 0 where all advantages are 0.
        """
        sums = defaultdict(float, self.sums)
        credited, diverging, moved = sums["credited"], sums["diverging"], sums["td"] + sums["base"]
        return {
            "groups": int(sums["groups"]),
            "groups_without_signal": int(sums["without_signal"]),
            "branch_tokens": round(sums["branch_tokens"] / max(credited, 1), 4),
            "divergence": round(sums["divergence"] / diverging, 2) if diverging else None,
            "td_share": round(sums["td"] / moved, 4) if moved else 0.0,
            "unassigned": int(self.num_completions - credited),
            "mean_reward": round(sums["reward"] / credited, 4) if credited else None,
        }


def first_divergence(result: Advantages) -> np.ndarray:
    """Tokens before each group's first branch token, int64 [P]; -1 for a group that never diverges."""
    tree = result.tree
    assert tree is not None
    parent_M = np.maximum(tree.node_parent_M, 0)
    shrinks_M = tree.node_num_completions_M < tree.node_num_completions_M[parent_M]
    parting = np.flatnonzero(shrinks_M & (tree.node_parent_M >= 0))
    group = tree.node_group_M[parting]  # ascending: nodes are in the groups' order
    first = np.flatnonzero(np.diff(group, prepend=-1))
    divergence_P = np.full(result.group_std_P.size, -1)
    if first.size:
        depth = tree.node_depth_M[parent_M[parting]]
        divergence_P[group[first]] = np.minimum.reduceat(depth, first)
    return divergence_P
