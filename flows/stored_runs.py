"""Finding what is stored: runs by name or prefix, policies by id, RUN@STEP or RUN@latest."""

import dataclasses
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from flows.history import find_run
from flows.takes import stored_takes
from storage.artifact import Artifact, Store
from storage.catalog import open_catalog
from tasks.config import Experiment
from tasks.datasets import available_benchmarks, get_dataset
from tasks.experiment import apply_overrides, parse_experiment
from tasks.place import Take
from tasks.policy import BUILTIN

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

SCORING_KEYS = ("evaluation.", "sampler.", "prompts.", "arithmetic.", "contracts.", "hub_root", "device", "threads")
"""Keys that `tempo evaluate --set` takes."""
ALL = "all"
"""In place of names: every benchmark that comes from the Hub."""


@dataclass(frozen=True)
class StoredPolicy:
    """A policy to score, its run's experiment and its step. A checkpoint that is not stored yet has no artifacts."""

    experiment: Experiment
    step: int
    attempt: str | None = None
    policy: Artifact | None = None
    first_policy: Artifact | None = None
    """The artifact of the run's first policy: it holds the tokenizer."""
    takes: tuple[Take, ...] = ()
    """Reruns of the attempt that made it."""


def stored_run(connection: "DuckDBPyConnection", name: str) -> str:
    """The stored run `name`, or the only one that begins with it. Raises ValueError otherwise."""
    return find_run([row[0] for row in connection.execute("SELECT run FROM runs ORDER BY run").fetchall()], name)


def find_policy(data_root: Path, policy: str) -> StoredPolicy:
    """The policy named by an id (or its beginning), RUN@STEP or RUN@latest; a checkpoint by its folder or Hub id."""
    if Path(policy).is_dir():
        return _checkpoint(policy)
    with_step = re.fullmatch(r"(?P<run>[^/]+)@(?P<step>\d+|latest)", policy)
    is_id = re.fullmatch(r"[0-9a-f]{6,64}", policy)
    if not (with_step or is_id):
        return _checkpoint(policy)
    connection = open_catalog(data_root)
    if with_step and with_step["step"] == "latest":
        where, values = "l.run = ?", [stored_run(connection, with_step["run"])]
    elif with_step:
        where, values = "l.run = ? AND l.step = ?", [stored_run(connection, with_step["run"]), int(with_step["step"])]
    else:
        where, values = "starts_with(p.fingerprint, ?)", [policy]
    found = connection.execute(
        "SELECT l.run, l.step, l.stage, l.key FROM links l "
        "JOIN policies p ON p.run = l.run AND p.step = l.step AND p.origin = l.stage "
        f"WHERE l.part = 'checkpoint' AND {where} ORDER BY l.stage = 'policy', l.step DESC LIMIT 1",
        values,
    ).fetchone()
    if found is None:
        raise ValueError(
            f'policy: no stored policy {policy!r}; list them with: tempo sql "SELECT run, step, policy FROM policies"'
        )
    run, step, stage, key = found
    experiment, takes = connection.execute(
        "SELECT arg_max(experiment, line), arg_max(takes, line) FROM run_events WHERE run = ? AND state = 'started'",
        [run],
    ).fetchone()
    attempt, first = connection.execute(
        "SELECT r.attempt, l.key FROM runs r JOIN links l ON l.run = r.run AND l.part = 'tokenizer' WHERE r.run = ?",
        [run],
    ).fetchone()
    store = Store(data_root)
    return StoredPolicy(
        experiment=parse_experiment(json.loads(experiment)),
        step=step,
        attempt=attempt,
        policy=Artifact(stage, key, store.path_of(stage, key)),
        first_policy=Artifact("policy", first, store.path_of("policy", first)),
        takes=stored_takes({"takes": json.loads(takes or "[]")}),
    )


def _checkpoint(policy: str) -> StoredPolicy:
    """A checkpoint becomes a run of its own, named after its folder and the digest of its files."""
    from tasks.engines.hub import find_checkpoint

    if policy == BUILTIN:
        return StoredPolicy(
            parse_experiment({"run": f"evaluate-{Path(policy).name}", "policy": policy, "steps": 0}), step=0
        )
    if "/" not in policy and not Path(policy).is_dir():
        raise ValueError(
            f"policy: {policy!r} is no policy: expected a policy id (6 digits or more), RUN@STEP such as "
            f"quickstart@40, RUN@latest, a checkpoint's folder, a Hub id (OWNER/NAME) or {BUILTIN}"
        )
    _, digest = find_checkpoint(policy)
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(policy).name).lstrip(".") or "checkpoint"
    tree = {"run": f"evaluate-{name}-{digest[:8]}", "policy": policy, "steps": 0, "sampler": {"max_tokens": 512}}
    return StoredPolicy(parse_experiment(tree), step=0)


def evaluation_experiment(stored: StoredPolicy, benchmarks: Sequence[str], overrides: Sequence[str]) -> Experiment:
    """The experiment of the policy's run with overrides and other benchmarks, of which ALL names every one.

    Raises ConfigError, and ValueError for benchmarks that are not there.
    """
    fixed = [key for key in overrides if not key.startswith(SCORING_KEYS)]
    if fixed:
        raise ValueError(
            f"--set {fixed[0]}: expected a key that changes how a policy is scored ({', '.join(SCORING_KEYS)}); the "
            "policy and its run are given"
        )
    experiment = apply_overrides(stored.experiment, overrides)
    names = tuple(dict.fromkeys(benchmarks)) or experiment.benchmarks
    if not names:
        raise ValueError("benchmarks: expected at least one, got none: name them with --benchmarks a,b (or all)")
    if ALL in names:
        names = _every_benchmark(names, experiment.hub_root)
    return dataclasses.replace(experiment, benchmarks=names)


def _every_benchmark(names: Sequence[str], hub_root: str | None) -> tuple[str, ...]:
    """Every benchmark of the registry that comes from the Hub. Raises ValueError when a mirror lacks some of them."""
    others = [name for name in names if name != ALL]
    if others:
        raise ValueError(f"benchmarks: expected {ALL!r} alone or names, got {ALL!r} beside {', '.join(others)}")
    present, missing = available_benchmarks(hub_root)
    if not missing:
        return present
    there = (
        f"To score those that are there: --benchmarks {','.join(present)}. Or mirror the others"
        if present
        else "Mirror them"
    )
    lacking = ", ".join(f"{name} ({get_dataset(name, 'benchmarks').hub_id})" for name in missing)
    raise ValueError(
        f"benchmarks: {ALL!r} is {len(present) + len(missing)} benchmarks, and {hub_root} lacks {len(missing)} of "
        f"them: {lacking}. {there} (OWNER/NAME with the Hub's files), or leave the folder out to load all from the Hub"
    )
