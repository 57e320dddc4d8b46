"""A stored run of many steps, made in seconds: the walk is real, its artifacts are copies of those of a short run.

Every stage's artifact is a hard-linked copy of the one that a real run of one step made, with digests of its own. Keys,
manifests and the commit log are as a long training would have left them; the contents are the template's.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flows.loop import train_experiment, walk
from flows.run import open_run
from storage.artifact import MANIFEST, Artifact, Store
from storage.catalog import open_catalog
from tasks.call import Call
from tasks.config import Experiment
from tasks.experiment import load_experiment
from tasks.place import Listener

TEMPLATE = [
    "run=long", "prompts_per_step=2", "group_size=2", "train.updates_per_step=1", "arithmetic.num_train=4",
    "arithmetic.num_test=2", "warm_start.updates=1", "warm_start.batch_size=2", "evaluation.num_samples=1",
]  # fmt: skip


def experiment(steps: int) -> Experiment:
    return load_experiment("quickstart", [*TEMPLATE, f"steps={steps}", "evaluate_every=100"])


def make_long_run(root: Path, steps: int) -> None:
    """Store a run of `steps` steps below `root`."""
    template = root.with_name(f"{root.name}-template")
    train_experiment(experiment(1), template, uses_prefect=False)
    rows = open_catalog(template).execute("SELECT DISTINCT stage, key FROM stage_runs").fetchall()
    copied = {stage: template / "artifacts" / stage / key for stage, key in rows}
    settings = experiment(steps)
    with open_run(settings, root, Listener(), uses_prefect=False) as run:
        walk(replace(run, perform=lambda call: _copy(call, run.store, copied[call.stage])), settings)


def _copy(call: Call, store: Store, template: Path) -> Artifact:
    """An artifact under the call's key with the template's files, and digests that no other has."""
    target = store.path_of(call.stage, call.key)
    artifact = Artifact(call.stage, call.key, target)
    if not target.exists():
        for file in template.rglob("*"):
            if file.is_file() and file.name != MANIFEST:
                copy = target / file.relative_to(template)
                copy.parent.mkdir(parents=True, exist_ok=True)
                os.link(file, copy)
        manifest: dict[str, Any] = json.loads((template / MANIFEST).read_text())
        for name, part in manifest["parts"].items():
            part["digest"] = hashlib.sha256(f"{call.key}/{name}".encode()).hexdigest()
        manifest |= {"key": call.key, "key_parts": call.key_parts}
        (target / MANIFEST).write_text(json.dumps(manifest))
    call.log(datetime.now(UTC), "ran", 1.0, artifact, None)
    return artifact


@contextmanager
def without_fsync() -> Iterator[None]:
    """Making the data takes seconds; what is measured afterwards flushes as ever."""
    real, os.fsync = os.fsync, lambda descriptor: None
    try:
        yield
    finally:
        os.fsync = real
