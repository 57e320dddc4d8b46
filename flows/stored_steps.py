"""The steps of a run's current attempt whose rollouts are judged: what a recredit starts from."""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flows.takes import stored_takes
from storage.artifact import Artifact, Part, Store
from storage.catalog import open_catalog
from storage.fingerprint import canonical
from tasks.core.verdict import Verifier
from tasks.place import Take
from tasks.verification_config import VerificationConfig


@dataclass(frozen=True)
class StoredStep:
    """What is stored of a step, as far as credit needs it."""

    prompts: Part
    rollouts: Part
    verdicts: Part
    policy: Artifact
    """The one that sampled."""
    signals: Part | None

    def has(self, names: Sequence[str]) -> bool:
        """Whether its stored signals are these and perhaps more."""
        stored = self.signals.artifact.manifest["key_parts"]["config"]["wanted"] if self.signals else []
        return set(names) <= set(stored)

    @property
    def verifier(self) -> tuple[str, int]:
        """Name and version of the one that judged."""
        config = self.verdicts.artifact.manifest["key_parts"]["config"]
        return config["verifier"], config["verifier_version"]

    def is_judged(self, verifier: Verifier, settings: VerificationConfig) -> bool:
        """Whether its verdicts are this verifier's, in this version and with these settings."""
        config = self.verdicts.artifact.manifest["key_parts"]["config"]
        known = canonical(VerificationConfig()) | config.get("config", {})
        return self.verifier == (verifier.name, verifier.version) and known == canonical(settings)


@dataclass(frozen=True)
class StoredRun:
    """The run's current attempt, and its steps whose rollouts are judged."""

    attempt: str
    takes: tuple[Take, ...]
    steps: dict[int, StoredStep]


def stored_steps(data_root: Path, run: str) -> StoredRun:
    """What is stored of the run's current attempt."""
    connection, store = open_catalog(data_root), Store(data_root)

    def artifact(stage: str, key: str) -> Artifact:
        return Artifact(stage, key, store.path_of(stage, key))

    (attempt,) = connection.execute("SELECT attempt FROM runs WHERE run = ?", [run]).fetchone() or (None,)
    (takes,) = connection.execute(
        "SELECT arg_max(takes, line) FROM run_events WHERE run = ? AND state = 'started'", [run]
    ).fetchone() or (None,)
    rows = connection.execute(
        "SELECT DISTINCT l.step, l.part, l.stage, l.key, s.inputs['policy'] FROM links l "
        "JOIN stage_runs s USING (run, step, purpose, stage, key) WHERE run = ? AND purpose = 'train' "
        "AND l.part IN ('rollouts', 'verdicts', 'prompts', 'signals') AND s.outcome <> 'failed'",
        [run],
    ).fetchall()
    parts: dict[int, dict[str, Part]] = defaultdict(dict)
    policies: dict[int, Artifact] = {}
    for step, part, stage, key, policy in rows:
        parts[step][part] = artifact(stage, key).part(part)
        if part == "rollouts":
            policies[step] = artifact(*policy.split("/"))
    asked = parts.pop(0, {})
    steps = {
        step: StoredStep(asked["prompts"], found["rollouts"], found["verdicts"], policies[step], found.get("signals"))
        for step, found in parts.items()
        if {"rollouts", "verdicts"} <= set(found)
    }
    return StoredRun(str(attempt), stored_takes({"takes": json.loads(takes or "[]")}), steps)
