"""Learning-rate schedules: a factor of the peak rate for every update."""

import math

SCHEDULES = ("constant", "linear", "cosine")


def learning_rate_factor(schedule: str, update: int, *, warmup_updates: int = 0, total_updates: int = 0) -> float:
    """Factor in [0, 1] of the peak learning rate at `update` (from 0).

    1, a line from 1 to 0 or half a cosine from 1 to 0 over `total_updates`, and 0 after them; times a linear rise
    from 1 / warmup_updates to 1 over the first `warmup_updates`. Raises ValueError for another name.

    >>> learning_rate_factor("cosine", 50, total_updates=100)
    0.5
    """
    rise = min(1.0, (update + 1) / max(warmup_updates, 1))
    done = min(update / max(total_updates, 1), 1.0)
    if schedule == "constant":
        return rise
    if schedule == "linear":
        return rise * (1 - done)
    if schedule == "cosine":
        return rise * 0.5 * (1 + math.cos(math.pi * done))
    raise ValueError(f"schedule: expected one of {', '.join(SCHEDULES)}, got {schedule!r}")
