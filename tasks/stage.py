"""A stage: identity -> look in storage -> compute -> commit. Prefect displays it, storage decides whether it runs.

    @stage("credit", version=1)
    def credit(context: Context, *, rollouts: Part, verdicts: Part, config: CreditConfig) -> Summary: ...

    artifact = credit(place, rollouts=..., verdicts=..., config=...)

Every keyword argument is part of the stage's identity: artifact parts by the digest of their contents, everything else
by its canonical JSON. What only says where or how fast (device, paths, progress) comes with the context.
"""

import functools
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec

from storage.artifact import Artifact
from tasks.call import Call, DiskFull, log_event
from tasks.place import Context, Listener, Place, Run, Summary, Take

__all__ = ["Context", "DiskFull", "Listener", "Place", "Run", "Summary", "Take", "log_event", "stage"]

P = ParamSpec("P")


def stage(
    name: str, *, version: int
) -> Callable[[Callable[Concatenate[Context, P], Summary]], Callable[..., Artifact]]:
    """Make `compute(context, **identity) -> summary` a stage: called with a Place, it returns a committed Artifact.

    Raise `version` whenever the same identity would give other contents: artifacts of the older version then no longer
    answer. Exceptions of the computation pass through; nothing is committed then, and the failure is in stage_runs.
    """

    def decorate(compute: Callable[Concatenate[Context, P], Summary]) -> Callable[..., Artifact]:
        @functools.wraps(compute)
        def call(place: Place, **identity: Any) -> Artifact:
            call = Call(name, version, compute, place, identity)
            if place.run.perform is not None:
                return place.run.perform(call)
            return call.run()[0]

        return call

    return decorate
