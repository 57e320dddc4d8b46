"""Retention: which policies of a run keep their weights. The others can be rebuilt (tasks/rebuilding.py)."""

from storage.artifact import Artifact
from storage.commit_log import read_events
from tasks.experiment import KEEP_POLICIES
from tasks.place import Run

WEIGHTS = ("checkpoint", "optimizer", "critic")
"""Parts of a training artifact that are dropped, as far as it has them; its tables stay."""


class Retention:
    """Drops the weights of a run's older policies as it goes: `keep_policies` = all, last(n) or every(n).

    The newest policy always stays, since the next step needs it, and so does what was there before the first step. A
    policy that another run uses is that run's too, and is left alone.
    """

    def __init__(self, run: Run, rule: str) -> None:
        match = KEEP_POLICIES.fullmatch(rule)
        assert match is not None
        self.run = run
        self.kind, self.n = match["kind"], int(match["n"] or 0)
        self.policies: dict[int, Artifact] = {}
        self.is_foreign = self._keys_of_other_runs() if self.kind else frozenset[str]()

    def _keys_of_other_runs(self) -> frozenset[str]:
        return frozenset(
            event["key"]
            for event in read_events(self.run.log, "stage")
            if event["stage"] == "training" and event["run"] != self.run.name
        )

    def add(self, step: int, policy: Artifact) -> None:
        """The policy of `step` is there: drop what is not kept any more."""
        self.policies[step] = policy
        if self.kind is None:
            return
        for earlier in [s for s in self.policies if not is_kept(self.kind, self.n, s, newest=step)]:
            artifact = self.policies.pop(earlier)
            if not artifact.dropped and artifact.key not in self.is_foreign:
                self.run.store.drop_parts(artifact, [name for name in WEIGHTS if name in artifact.manifest["parts"]])


def is_kept(kind: str, n: int, step: int, *, newest: int) -> bool:
    """Whether the policy of `step` keeps its weights when `newest` is the newest one.

    last(n): the n newest. every(n): those of steps divisible by n, and the newest.
    """
    return step > newest - n if kind == "last" else step % n == 0 or step == newest
