"""A Prefect server as its user has it: its API, its command line, its workers, and the processes that they start."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
TINY: dict[str, Any] = {
    "steps": 2,
    "prompts_per_step": 4,
    "group_size": 4,
    "benchmarks": [],
    "train": {"updates_per_step": 1},
    "arithmetic": {"num_train": 32, "num_test": 4, "min_terms": 2, "max_terms": 2},
    "warm_start": {"updates": 4, "batch_size": 8},
}
"""Twelve stages in two seconds: 4 before the first step, 4 in each of 2 steps."""


def wait_for(what: str, answer: Callable[[], Any], seconds: float = 150) -> Any:
    """The first answer that is not empty. A busy SQLite can make the server stall for a minute (its busy_timeout)."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = answer()
        if found:
            return found
        time.sleep(0.5)
    raise AssertionError(f"waited {seconds} s for {what}")


def processes_of(flow_run: str) -> list[int]:
    """Processes that were started for a flow run, with all that they started: its id is in their environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if f"FLOW_RUN_ID={flow_run}".encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
    return found


@dataclass
class Served:
    """The server as a person has it: its API, its command line, and workers."""

    url: str
    home: Path
    data: Path
    environment: dict[str, str]
    tiny: dict[str, Any] = field(default_factory=lambda: dict(TINY))
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def ask(self, path: str, body: dict[str, Any] | None = None, method: str = "") -> Any:
        request = urllib.request.Request(
            f"{self.url}{path}",
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
            method=method or ("GET" if body is None else "POST"),
        )
        for pause in (1, 5, 20, 0):
            try:
                with urllib.request.urlopen(request, timeout=150) as answer:
                    return json.loads(answer.read() or "null")
            except urllib.error.HTTPError as error:
                if error.code != 503 or not pause:  # 503: SQLite was busy; Prefect's own clients ask again, too
                    raise
                time.sleep(pause)
        raise AssertionError("the last attempt returns or raises")

    def command(self, *arguments: str | Path, name: str = "prefect") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [BIN / name, *arguments],
            cwd=ROOT, env=self.environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=180,
        )  # fmt: skip

    def deployment(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.ask(f"/deployments/name/{name}")
        return found

    def start(self, settings: dict[str, Any] | None = None, **parameters: Any) -> str:
        """A run of train-quickstart as the UI's button makes it; returns its id."""
        parameters |= {"settings": self.tiny | (settings or {})}
        made = self.ask(f"/deployments/{self.deployment('train/train-quickstart')['id']}/create_flow_run",
                        {"parameters": parameters, "state": {"type": "SCHEDULED"}})  # fmt: skip
        return str(made["id"])

    def run(self, flow_run: str) -> dict[str, Any]:
        found: dict[str, Any] = self.ask(f"/flow_runs/{flow_run}")
        return found

    def state(self, flow_run: str) -> dict[str, Any]:
        return dict(self.run(flow_run)["state"])

    def until(self, flow_run: str, *types: str, seconds: float = 150) -> dict[str, Any]:
        """The run's state as soon as it is one of `types`."""

        def reached() -> dict[str, Any] | None:
            state = self.state(flow_run)
            assert state["type"] != "FAILED" or "FAILED" in types, state["message"]
            return state if state["type"] in types else None

        found: dict[str, Any] = wait_for(f"{flow_run} to be {' or '.join(types)}", reached, seconds)
        return found

    def stages(self, flow_run: str) -> dict[str, str]:
        """State name of each stage by its title, in the flow run's newest start. The server may be seconds behind."""
        where = {"flow_runs": {"id": {"any_": [flow_run]}}}
        before: list[tuple[str, str]] = []
        while True:
            tasks = self.ask("/task_runs/filter", where)
            now = sorted((task["id"], task["state_name"]) for task in tasks)
            if now == before:
                break
            before = now
            time.sleep(0.7)
        newest = max((task["flow_run_run_count"] for task in tasks), default=0)
        return {task["name"]: task["state_name"] for task in tasks if task["flow_run_run_count"] == newest}

    def worker(self, pool: str = "tempo-train") -> subprocess.Popen[bytes]:
        number = len(self.workers) + 1
        with (self.home / f"worker-{number}.log").open("wb") as log:
            worker = subprocess.Popen(
                [BIN / "prefect", "worker", "start", "--pool", pool, "--name", f"worker {number}"],
                cwd=self.home, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
        self.workers.append(worker)
        return worker

    def events(self, run: str) -> list[dict[str, Any]]:
        """The commit log's events of a run."""
        lines = (self.data / "log.jsonl").read_text().splitlines()
        return [event for event in map(json.loads, lines) if event["run"] == run]


def is_healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def end(process: subprocess.Popen[bytes]) -> None:
    """The whole session of a process: politely, then firmly."""
    for kind in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, kind)
        with suppress(subprocess.TimeoutExpired):
            process.wait(15)
            return
