"""What earlier executions say of a stage: what it was computed from the last time, how it failed, what it cost."""

import functools
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

from storage.commit_log import read_events
from tasks.call import Call
from tasks.config import Experiment
from tasks.experiment import parse_experiment

RECENT = 8
"""Executions whose mean is the expected cost."""


@dataclass(frozen=True)
class Cost:
    """Expected cost of executions; `num_unknown` of them were never executed before, and are not in the figures."""

    seconds: float = 0.0
    tokens: float = 0.0
    num_bytes: float = 0.0
    num_unknown: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            self.seconds + other.seconds,
            self.tokens + other.tokens,
            self.num_bytes + other.num_bytes,
            self.num_unknown + other.num_unknown,
        )

    def describe(self) -> str:
        if self.num_unknown and not self.seconds:
            return "cost unknown"
        tokens = f", {self.tokens:,.0f} tokens" if self.tokens else ""
        unknown = f", and {self.num_unknown} stages of unknown cost" if self.num_unknown else ""
        return f"{self.seconds:,.1f} s{tokens}, {self.num_bytes / 1e6:,.1f} MB{unknown}"


def stored_experiment(data_root: Path, name: str) -> Experiment:
    """The settings that the stored run `name` (or the only one that begins so) was last worked on with.

    Raises ValueError for another name, and FileNotFoundError when nothing is stored there.
    """
    log = data_root / "log.jsonl"
    if not log.exists():
        raise FileNotFoundError(
            f"no run has been stored under {data_root.resolve()}; start one with `tempo train quickstart`, or name "
            "another folder with --data-root"
        )
    started = {event["run"]: event for event in read_events(log, "run") if event["state"] == "started"}
    tree = started[find_run(sorted(started), name)]["experiment"]
    vllm = tree.get("sampler", {}).get("vllm", {})
    if isinstance(vllm.get("kv_cache_gib"), float):  # roots of schema 4 may hold 1.0
        vllm["kv_cache_gib"] = ceil(vllm["kv_cache_gib"])
    return parse_experiment(tree, origin=f"the stored run {name!r}")


def find_run(runs: Sequence[str], name: str) -> str:
    """The stored run `name`, or the only one of `runs` that begins with it. Raises ValueError otherwise."""
    matches = [name] if name in runs else [run for run in runs if run.startswith(name)]
    if len(matches) == 1:
        return matches[0]
    problem = "is the beginning of several runs" if matches else "is no stored run"
    raise ValueError(f"run: {name!r} {problem}; expected one of: {', '.join(runs) or 'none'} (see `tempo runs`)")


class History:
    """The stage events of a commit log, as far as one run's plan needs them."""

    def __init__(self, log: Path, run: str) -> None:
        self.log = log
        self.run = run

    @functools.cached_property
    def _read(self) -> "_Events":
        """The log is read when the first question is asked: a plan of hits only asks none."""
        return _Events(self.log, self.run)

    def last(self, call: Call) -> Mapping[str, Any] | None:
        """The newest event of the stage at this place that ended with an artifact."""
        return self._read.last.get(_place(call))

    def failure(self, call: Call) -> str | None:
        """Why the stage failed at this place, if that is the newest thing known of it."""
        event = self._read.failures.get(_place(call))
        return str(event["error"]) if event else None

    def differences(self, call: Call, unknown: set[str]) -> list[str]:
        """Parts of the key that differ from the last time, from what to what; inputs in `unknown` are left out."""
        last = self.last(call)
        assert last is not None
        before = dict(_flat(last["key_parts"]))
        parts = {"version": call.version, "config": call.config, "take": call.take}
        inputs = {name: part.digest for name, part in call.inputs.items() if name not in unknown}
        now = dict(_flat({k: v for k, v in parts.items() if v is not None} | {"inputs": inputs}))
        skipped = {"stage", *(f"input {name}" for name in unknown)}
        return [
            f"{name} {_short(before.get(name))} -> {_short(now.get(name))}"
            for name in [*before, *(name for name in now if name not in before)]
            if name not in skipped and before.get(name) != now.get(name)
        ]

    def cost_of(self, call: Call) -> Cost:
        """Mean of the last executions: this run's, else any run's; of this label, whatever the step."""
        place = _place(call)[1:]
        known = (self._read.costs.get((True, *place)) or self._read.costs.get(place) or [])[-RECENT:]
        if not known:
            return Cost(num_unknown=1)
        total = sum(known, Cost())
        return Cost(total.seconds / len(known), total.tokens / len(known), total.num_bytes / len(known))


class _Events:
    """Newest artifact and newest failure by place, and the costs of what was computed."""

    def __init__(self, log: Path, run: str) -> None:
        self.last: dict[tuple[Any, ...], Mapping[str, Any]] = {}
        self.failures: dict[tuple[Any, ...], Mapping[str, Any]] = {}
        self.costs: dict[tuple[Any, ...], list[Cost]] = defaultdict(list)
        for event in read_events(log, "stage"):
            is_own = event["run"] == run
            place = (event["step"], event["purpose"], event["label"], event["stage"])
            if event["outcome"] == "ran":
                cost = Cost(event["seconds"], event.get("tokens") or 0, event.get("bytes") or 0)
                for key in (place[1:], (is_own, *place[1:])):
                    self.costs[key].append(cost)
            if is_own and event["outcome"] == "failed":
                self.failures[place] = event
            elif is_own and event["outcome"] in ("ran", "cached"):
                self.last[place] = event
                self.failures.pop(place, None)


def _place(call: Call) -> tuple[Any, ...]:
    return (call.place.step, call.place.purpose, call.place.label, call.stage)


def _flat(parts: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Key parts by dotted name: an argument of the stage by its own name, an input as `input NAME`."""
    for name, value in parts.items():
        if not prefix and name == "inputs":
            yield from ((f"input {inner}", digest) for inner, digest in value.items())
        elif isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}." if prefix or name != "config" else "\0")
        else:
            yield f"{prefix}{name}".removeprefix("\0"), value


def _short(value: Any) -> str:
    """A value for people; digests by their first digits."""
    if isinstance(value, str) and len(value) == 64:
        return value[:12]
    return "(absent)" if value is None else str(value)
