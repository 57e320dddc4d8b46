"""A real Prefect server on a port of its own, everything of deployments/ on it, and a real process worker."""

import getpass
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.deployments.served import BIN, ROOT, Served, end, is_healthy, wait_for


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def database() -> Iterator[dict[str, str]]:
    """The server's settings for a Postgres of its own; with TEMPO_TEST_SQLITE=1 none, which means SQLite.

    Under several clients at once Prefect's SQLite stands still for a minute at a time: these tests then take twice as
    long, and those that look at a moment may miss it.
    """
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if os.environ.get("TEMPO_TEST_SQLITE"):
        yield {}
        return
    if not found:
        pytest.skip("no Postgres in /usr/lib/postgresql for Prefect's server (apt-get install postgresql)")
    user = "postgres" if os.getuid() == 0 else getpass.getuser()  # it refuses to be run by root
    folder, port = Path(tempfile.mkdtemp(prefix="postgres-")), free_port()
    shutil.chown(folder, user)
    as_user = {"user": user, "cwd": folder, "stdin": subprocess.DEVNULL} if os.getuid() == 0 else {"cwd": folder}
    make = [found[-1], "--auth=trust", "--username=tempo", "--no-sync", "--encoding=UTF8", "--pgdata", folder / "data"]
    subprocess.run(make, check=True, stdout=subprocess.DEVNULL, **as_user)
    with (folder / "log").open("wb") as log:
        postgres = subprocess.Popen(
            [found[-1].with_name("postgres"), "-D", folder / "data", "-p", str(port), "-k", folder, "-c", "fsync=off"],
            stdout=log, stderr=subprocess.STDOUT, start_new_session=True, **as_user,
        )  # fmt: skip
    try:
        is_ready = [found[-1].with_name("pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(port)]
        wait_for("Postgres", lambda: subprocess.run(is_ready).returncode == 0, 60)
        url = f"postgresql+asyncpg://tempo@127.0.0.1:{port}/postgres"
        yield {"PREFECT_SERVER_DATABASE_CONNECTION_URL": url}
    finally:
        end(postgres)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server with everything deployed and one worker for the training pool."""
    home, port = tmp_path_factory.mktemp("prefect"), free_port()
    url = f"http://127.0.0.1:{port}/api"
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT", "TEMPO"))}
    environment = kept | {
        "HOME": str(home),
        "PREFECT_HOME": str(home),
        "PREFECT_PROFILES_PATH": str(home / "profiles.toml"),
        "PREFECT_MEMO_STORE_PATH": str(home / "memo_store.toml"),
        "PREFECT_API_URL": url,
        "PREFECT_UI_API_URL": url,
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "NO_COLOR": "1",
        "COLUMNS": "200",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "PREFECT_WORKER_QUERY_SECONDS": "3",  # a test does not wait for the usual 10 s
        "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "5",  # 60
    }
    with database() as settings, (home / "server.log").open("wb") as log:
        server = subprocess.Popen(
            [BIN / "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)],
            env=environment | settings, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        running = Served(url, home, home / "data", environment)
        try:
            wait_for("the server", lambda: is_healthy(url), 180)
            done = running.command("deploy", "--data-root", running.data, name="tempo")
            assert done.returncode == 0, done.stderr
            running.worker()
            yield running
        finally:
            for process in [*running.workers, server]:
                end(process)
