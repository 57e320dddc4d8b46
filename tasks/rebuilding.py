"""Rebuilding a dropped policy: its training stage is computed again from the stored rollouts and advantages.

Retention (flows/retention.py) drops the weights of old policies and keeps everything they were computed from. On a CPU
the rebuilt weights equal the dropped ones to the bit; on a machine where they do not, the rebuild is refused.
"""

import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime

from storage.artifact import Artifact, Part
from tasks.place import Run


class NotRebuilt(RuntimeError):
    """A dropped policy could not be made again as it was."""


@contextmanager
def borrowed(run: Run, parts: Iterable[Part]) -> Iterator[None]:
    """Make the dropped ones of `parts` readable for the time of the block; afterwards they are dropped again."""
    with ExitStack() as stack:
        for part in parts:
            if part.is_dropped:
                names = rebuild(run, part.artifact)
                stack.callback(run.store.drop_parts, part.artifact, names)
        yield


def rebuild(run: Run, artifact: Artifact) -> frozenset[str]:
    """Put the dropped parts of `artifact` back until retention drops them again; returns their names.

    Its own dropped inputs are rebuilt first, back to the nearest policy that was kept, and dropped again at once.
    Raises NotRebuilt when the run does not know how the artifact was made, or when the contents differ from those that
    were dropped.
    """
    names = artifact.dropped
    call = run.makers.get((artifact.stage, artifact.key))
    if call is None:
        raise NotRebuilt(
            f"the weights of {artifact.stage}/{artifact.key[:12]} were dropped (keep_policies), and the run "
            f"{run.name!r} did not make them, so it cannot rebuild them: run the experiment that did, or use a kept "
            'policy (tempo sql "SELECT run, step, policy FROM policies")'
        )
    started, at = time.perf_counter(), datetime.now(UTC)
    with borrowed(run, call.inputs.values()), call.computed() as staging:
        try:
            run.store.restore_parts(artifact, staging, sorted(names))
        except ValueError as error:
            raise NotRebuilt(
                f"{call.place.title(call.stage)}: the rebuilt weights are not those that were dropped: {error}. "
                "Rebuilding is exact only where training is (one CPU, the same package versions). To go on from new "
                f"weights: tempo rerun {run.name} --from {call.stage} --step {call.place.step}"
            ) from None
    call.log(at, "rebuilt", time.perf_counter() - started, artifact, None)
    run.listener.note(f"rebuilt the dropped policy of step {call.place.step} from its rollouts and advantages")
    return names


def num_to_rebuild(run: Run, artifact: Artifact) -> int:
    """How many stages `rebuild` would compute for this artifact: itself and its dropped inputs, back to a kept one."""
    if not artifact.dropped:
        return 0
    call = run.makers.get((artifact.stage, artifact.key))
    inputs = {part.artifact.key: part.artifact for part in call.inputs.values()} if call else {}
    return 1 + sum(num_to_rebuild(run, earlier) for earlier in inputs.values())
