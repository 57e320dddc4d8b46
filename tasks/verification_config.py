"""The experiment's section `verification`: how completions are judged, and what a verdict is worth in reward."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

from storage.fingerprint import NOT_IDENTITY
from tasks.bounds import Bounds, Count, PositiveFloat

STATUSES = ("correct", "wrong", "unparseable", "truncated", "timeout", "out_of_memory", "crashed")
"""tasks.core.verdict.Status, written out; a test keeps them equal."""
FAILURES = STATUSES[4:]
"""Statuses that say something of the verifier, and nothing of the completion."""


@dataclass(frozen=True, kw_only=True)
class RewardsConfig:
    """Reward of each status of a verdict. Benchmarks are scored with the defaults, whatever training uses."""

    correct: float = 1.0
    """The answer equals the gold answer."""
    wrong: float = 0.0
    """It differs."""
    unparseable: float = 0.0
    """There is no answer, or none that can be compared."""
    truncated: float = 0.0
    """The length limit came before the answer."""
    timeout: float = 0.0
    """The verifier took too long. This and the next two count only where they are not unassigned."""
    out_of_memory: float = 0.0
    """The verifier passed its memory limit."""
    crashed: float = 0.0
    """The verifier raised or died."""
    unassigned: tuple[str, ...] = FAILURES
    """Statuses without a reward (NULL): such completions are dropped from their group, and counted."""


@dataclass(frozen=True, kw_only=True)
class VerificationConfig:
    """How completions are judged, and what a verdict is worth."""

    rewards: RewardsConfig = RewardsConfig()
    """Rewards."""
    timeout_seconds: PositiveFloat = 5.0
    """Wall-clock limit of one comparison by algebra; what passes it is tried once more, alone."""
    memory_mb: Annotated[int, Bounds(at_least=64)] = 1024
    """Memory that one comparison may take, in MiB, beside what its process has loaded."""
    workers: Count = field(default=0, metadata=NOT_IDENTITY)
    """Processes that compare by algebra; 0: one per CPU, at most 8. They start when a verifier first needs them."""


def reward_of(status: str, rewards: RewardsConfig) -> float | None:
    """The reward of a status; None where it is unassigned."""
    return None if status in rewards.unassigned else float(getattr(rewards, status))


def reward_problems(unassigned: Sequence[str]) -> list[str]:
    """What is wrong with `verification.rewards.unassigned`, one sentence each."""
    return [
        f"verification.rewards.unassigned: expected statuses among {', '.join(STATUSES)}, got {status!r}"
        for status in unassigned
        if status not in STATUSES
    ]
