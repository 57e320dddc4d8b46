"""The Prefect server of a run: the configured one, or a local one under the data root, started and stopped here.

Several commands on one data root share the local server; the last one to end stops it. A command killed with -9 leaves
it running, and the next one finds and uses it.
"""

import fcntl
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

START_SECONDS = 180
"""A first start migrates the database: 3-6 s on an idle machine, much more on a busy one."""
STARTING_SECONDS = 10
"""How long a recorded server that does not answer yet is waited for, before another one is started."""

FLUSH_SECONDS = 10
SETTLE_SECONDS = 0.3
"""Pause between two counts of the server's task runs; when they agree, it has written them all."""
STEADY_POLLS = 6

QUIET = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",  # the command prints its own progress and errors
}


class ServerFailed(RuntimeError):
    """The local Prefect server did not start."""


@contextmanager
def prefect_server(data_root: Path) -> Iterator[str]:
    """The URL of the API to use, with the environment set for it. Must be entered before prefect is imported."""
    _be_quiet()
    configured = configured_url()
    if configured:
        _refuse_dead_server(configured)
        try:
            yield configured
        finally:
            _flush()
        return
    home = (data_root / "prefect").resolve()
    home.mkdir(parents=True, exist_ok=True)
    with _locked(home / "start.lock", fcntl.LOCK_EX):
        url = _running(home) or _start(home)
        user = os.open(home / "users.lock", os.O_RDWR | os.O_CREAT, 0o644)
        fcntl.flock(user, fcntl.LOCK_SH)
    os.environ.update(PREFECT_HOME=str(home), PREFECT_API_URL=url)
    try:
        yield url
    finally:
        _flush()
        with _locked(home / "start.lock", fcntl.LOCK_EX):
            try:
                fcntl.flock(user, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _settle(url)
                _stop(home)
            except BlockingIOError:
                pass  # another command still uses the server, and will stop it
            finally:
                os.close(user)


@contextmanager
def without_server(data_root: Path) -> Iterator[None]:
    """The environment for stages that report to no server; prefect, once imported, keeps its files in the data root."""
    _be_quiet()
    os.environ.setdefault("PREFECT_HOME", str((data_root / "prefect").resolve()))
    yield


def _be_quiet() -> None:
    """No analytics and no console logs, unless the user's environment says otherwise. Before prefect is imported."""
    os.environ.update({name: os.environ.get(name, value) for name, value in QUIET.items()})


def _refuse_dead_server(url: str) -> None:
    """Raise ServerFailed when a configured server of this machine does not answer."""
    if ("//127.0.0.1" in url or "//localhost" in url) and not is_healthy(url):
        raise ServerFailed(
            f"the configured Prefect server {url} does not answer: start it, unset PREFECT_API_URL to let this command "
            "start one of its own, or go without: --no-server"
        )


def configured_url() -> str | None:
    """PREFECT_API_URL of the environment or of Prefect's active profile."""
    if os.environ.get("PREFECT_API_URL"):
        return os.environ["PREFECT_API_URL"]
    home = Path(os.environ.get("PREFECT_HOME", "~/.prefect")).expanduser()
    path = Path(os.environ.get("PREFECT_PROFILES_PATH", home / "profiles.toml"))
    try:
        profiles = tomllib.loads(path.read_text(encoding="utf-8"))
        active = os.environ.get("PREFECT_PROFILE", profiles.get("active", ""))
        url = profiles["profiles"][active]["PREFECT_API_URL"]
    except (OSError, KeyError, tomllib.TOMLDecodeError):
        return None
    return str(url)


def history_command(data_root: Path) -> str:
    """What to type to see the runs in Prefect's UI afterwards; for a configured server, where it is."""
    home = (data_root / "prefect").resolve()
    if os.environ.get("PREFECT_HOME") != str(home):
        return str(configured_url()).removesuffix("/api")
    prefect = shlex.quote(str(Path(sys.executable).with_name("prefect")))
    return f"DO_NOT_TRACK=1 PREFECT_HOME={shlex.quote(str(home))} {prefect} server start"


@contextmanager
def _locked(path: Path, kind: int) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, kind)
        yield
    finally:
        os.close(descriptor)


def _running(home: Path) -> str | None:
    """The URL of a server that an earlier command started and that still answers, or soon does."""
    try:
        recorded = json.loads((home / "server.json").read_text())
        url, pid = str(recorded["url"]), int(recorded["pid"])
    except (OSError, ValueError, KeyError):
        return None
    deadline = time.monotonic() + STARTING_SECONDS
    while not is_healthy(url):
        if not Path(f"/proc/{pid}").exists() or time.monotonic() > deadline:
            return None
        time.sleep(0.1)
    return url


def _start(home: Path) -> str:
    """Start a server in a session of its own, so that Ctrl-C does not reach it, and wait until it answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url, log = f"http://127.0.0.1:{port}/api", home / "server.log"
    environment = os.environ | {
        "PREFECT_HOME": str(home),
        "PREFECT_MEMO_STORE_PATH": str(home / "memo_store.toml"),
        "PREFECT_UI_API_URL": url,  # else the pages of this server ask the default port
    }
    with log.open("wb") as output:
        server = subprocess.Popen(
            [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    (home / "server.json").write_text(json.dumps({"pid": server.pid, "url": url}))
    deadline = time.monotonic() + START_SECONDS
    try:
        while time.monotonic() < deadline and server.poll() is None:
            if is_healthy(url):
                return url
            time.sleep(0.05)
    except BaseException:  # Ctrl-C while it starts: it must not stay behind
        _stop(home)
        raise
    _stop(home)
    tail = log.read_text(errors="replace").strip().splitlines()[-1:]
    raise ServerFailed(
        f"the local Prefect server did not answer within {START_SECONDS} s: {' '.join(tail) or 'no output'} (whole "
        f"log: {log}). Use a running one with PREFECT_API_URL=URL, or go without: --no-server"
    )


def is_healthy(url: str) -> bool:
    """Whether the server of this API answers."""
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=2) as answer:
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def _flush() -> None:
    """Send what prefect still holds (logs, events) while its server is there: at exit it is too late, and loud."""
    if "prefect" in sys.modules:
        from prefect.events.worker import EventsWorker
        from prefect.logging.handlers import APILogWorker

        for worker in (APILogWorker, EventsWorker):
            worker.drain_all(timeout=FLUSH_SECONDS)


def _settle(url: str) -> None:
    """Wait until the server has written what it was sent: it records task runs from a queue, which dies with it."""
    if "prefect" not in sys.modules:
        return
    before, steady = None, 0
    while steady < STEADY_POLLS:  # task runs of a command that was killed stay unfinished for ever
        unfinished = {"task_runs": {"state": {"type": {"any_": ["PENDING", "RUNNING", "SCHEDULED"]}}}}
        counts = [_count_task_runs(url, where) for where in ({}, unfinished)]
        if counts == before and not counts[1]:
            return
        before, steady = counts, steady + 1 if counts == before else 0
        time.sleep(SETTLE_SECONDS)


def _count_task_runs(url: str, where: dict[str, Any]) -> int:
    """How many task runs the server has written; 0 when it does not answer."""
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{url}/task_runs/count", json.dumps(where).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=2) as answer:
            return int(answer.read())
    except (OSError, ValueError):
        return 0


def _stop(home: Path) -> None:
    """End the server's whole session: politely, then firmly."""
    try:
        pid = int(json.loads((home / "server.json").read_text())["pid"])
    except (OSError, ValueError, KeyError):
        return
    (home / "server.json").unlink(missing_ok=True)
    for kind in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(pid, kind)
        except ProcessLookupError:
            return
        for _ in range(100):
            with suppress(ChildProcessError):  # started by another command: not our child
                os.waitpid(pid, os.WNOHANG)
            try:
                os.killpg(pid, 0)
            except ProcessLookupError:
                return
            time.sleep(0.05)
