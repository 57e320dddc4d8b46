"""`tempo deploy`: work pools, deployments and automations of deployments/*.yaml on the configured Prefect server.

Again and again without harm: what exists is updated and never doubled, and what a person decided on the server stays:
a schedule paused or resumed, a pool paused or given another limit, an automation switched off.
"""

import copy
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from flows.next_commands import command_name
from flows.server import QUIET, ServerFailed, configured_url, is_healthy

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

HOME = Path(__file__).resolve().parent.parent
SETTINGS = HOME / "deployments"
WAIT_SECONDS = 60
"""`prefect server start --background` returns before its server answers: a first start makes the database."""


def deploy(data_root: Path, only: str | None = None) -> None:
    """Register everything, or `only` one deployment with the pools and automations, and say what to type next.

    Raises ServerFailed without a server that answers, ValueError for an unknown name.
    """
    url = _server()
    os.environ.update({name: os.environ.get(name, value) for name, value in QUIET.items()})
    from prefect.client.orchestration import get_client

    chosen = _chosen(only)
    with get_client(sync_client=True) as client:
        pools = _register_pools(client, _read("work-pools.yaml")["work_pools"])
        known = _schedules_on_the_server(client)
        _register_deployments(as_left_by_people(chosen, known), data_root)
        automations = _register_automations(client, _read("automations.yaml")["automations"])
    print(f"On {url}:")
    print(f"  work pools   {_counts(pools)}")
    print(f"  deployments  {_counts((entry['name'], entry['name'] not in known) for entry in chosen['deployments'])}")
    print(f"  automations  {_counts(automations)}")
    _print_next(chosen["deployments"][0])


def _server() -> str:
    """The URL of the configured server, once it answers."""
    url = configured_url()
    if url is None:
        raise ServerFailed(
            "no Prefect server is configured, and what is deployed must outlive this command: start one (prefect "
            "server start) and name it (prefect config set PREFECT_API_URL=http://127.0.0.1:4200/api, or the "
            "environment variable of that name)"
        )
    deadline = time.monotonic() + WAIT_SECONDS
    if not is_healthy(url):
        print(f"waiting for the Prefect server {url} (up to {WAIT_SECONDS} s) ...", file=sys.stderr, flush=True)
    while not is_healthy(url):
        if time.monotonic() > deadline:
            raise ServerFailed(
                f"the configured Prefect server {url} does not answer: start it (prefect server start), or name "
                "another with PREFECT_API_URL"
            )
        time.sleep(0.5)
    return url


def _read(name: str) -> dict[str, Any]:
    tree: dict[str, Any] = yaml.safe_load((SETTINGS / name).read_text(encoding="utf-8"))
    return tree


def _chosen(only: str | None) -> dict[str, Any]:
    """prefect.yaml, with all of its deployments or with one."""
    tree = _read("prefect.yaml")
    names = [entry["name"] for entry in tree["deployments"]]
    if only is not None and only not in names:
        raise ValueError(f"--only: no deployment {only!r} in {SETTINGS / 'prefect.yaml'}; expected {', '.join(names)}")
    tree["deployments"] = [entry for entry in tree["deployments"] if only in (None, entry["name"])]
    return tree


def as_left_by_people(tree: dict[str, Any], known: dict[str, dict[str, bool]]) -> dict[str, Any]:
    """The deployments with every schedule that the server knows as active, or not, as it is there."""
    adapted = copy.deepcopy(tree)
    for entry in adapted["deployments"]:
        for schedule in entry.get("schedules", ()):
            schedule["active"] = known.get(entry["name"], {}).get(schedule["slug"], schedule["active"])
    return adapted


def _schedules_on_the_server(client: "SyncPrefectClient") -> dict[str, dict[str, bool]]:
    """Whether each schedule is active, by deployment and slug."""
    known: dict[str, dict[str, bool]] = {}
    page = 200
    while len(found := client.read_deployments(limit=page, offset=len(known))) > 0:
        known |= {one.name: {s.slug: s.active for s in one.schedules if s.slug} for one in found}
        if len(found) < page:
            break
    return known


def _register_deployments(tree: dict[str, Any], data_root: Path) -> None:
    """By `prefect deploy`: its file format and its rules, whoever calls it."""
    environment = {"TEMPO_HOME": str(HOME)} | os.environ | {"TEMPO_DATA_ROOT": str(data_root.resolve())}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "prefect.yaml")
        file.write_text(yaml.safe_dump(tree), encoding="utf-8")
        done = subprocess.run(
            [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(file)],
            cwd=HOME,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
    if done.returncode != 0:
        tail = "\n".join((done.stdout + done.stderr).strip().splitlines()[-20:])
        raise ServerFailed(f"`prefect deploy` ended with {done.returncode}; its last words:\n{tail}")


def _register_pools(client: "SyncPrefectClient", declared: list[dict[str, Any]]) -> list[tuple[str, bool]]:
    """(pool, is new) of each; an existing one only gets a limit if it has none."""
    from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
    from prefect.exceptions import ObjectNotFound
    from prefect.workers.process import ProcessWorker

    registered = []
    for pool in declared:
        try:
            existing = client.read_work_pool(pool["name"])
        except ObjectNotFound:
            template = ProcessWorker.get_default_base_job_template()
            client.create_work_pool(WorkPoolCreate(**pool, base_job_template=template))
            registered.append((pool["name"], True))
            continue
        if existing.type != pool["type"]:
            raise ValueError(
                f"the work pool {pool['name']!r} on the server is of type {existing.type!r}, expected {pool['type']!r}"
                f": delete it (prefect work-pool delete {pool['name']}) or rename one of them"
            )
        if existing.concurrency_limit is None:
            client.update_work_pool(pool["name"], WorkPoolUpdate(concurrency_limit=pool["concurrency_limit"]))
        registered.append((pool["name"], False))
    return registered


def _register_automations(client: "SyncPrefectClient", declared: list[dict[str, Any]]) -> list[tuple[str, bool]]:
    """(automation, is new) of each. One that is the same already is left alone: an update forgets what it has seen."""
    from prefect.events.schemas.automations import AutomationCore

    registered = []
    for tree in declared:
        wanted = AutomationCore(**tree)
        existing = client.read_automations_by_name(wanted.name)
        if not existing:
            client.create_automation(wanted)
        elif _contents(existing[0]) != _contents(wanted):
            client.update_automation(existing[0].id, wanted.model_copy(update={"enabled": existing[0].enabled}))
        registered.append((wanted.name, not existing))
    return registered


def _contents(automation: Any) -> str:
    """What an automation does: without ids and whether it is switched on."""
    kept = automation.model_dump(mode="json", include={"description", "trigger", "actions"})
    kept["trigger"] = {name: value for name, value in kept["trigger"].items() if name != "id"}
    return json.dumps({name: _sorted(value) for name, value in kept.items()}, sort_keys=True)


def _sorted(value: Any) -> Any:
    """Lists of texts come from sets: in any order."""
    if isinstance(value, dict):
        return {name: _sorted(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return sorted(value) if all(isinstance(entry, str) for entry in value) else [_sorted(entry) for entry in value]
    return value


def _counts(registered: Iterable[tuple[str, bool]]) -> str:
    entries = list(registered)
    new = sum(is_new for _, is_new in entries)
    names = ", ".join(name for name, _ in entries) if len(entries) <= 3 else f"{entries[0][0]} ... {entries[-1][0]}"
    return f"{len(entries)} ({new} new): {names}"


def _print_next(first: dict[str, Any]) -> None:
    prefect = shlex.quote(str(Path(sys.executable).with_name("prefect"))) if command_name() != "tempo" else "prefect"
    pool = first["work_pool"]["name"]
    flow = str(first["entrypoint"]).rpartition(":")[2].replace("_", "-")
    print("\nNext: a worker that takes runs from the queue, and a run:")
    print(f"  {prefect} worker start --pool {pool}")
    print(f"  {prefect} deployment run {flow}/{first['name']} --watch")
