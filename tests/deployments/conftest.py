"""A real Prefect server on a port of its own, everything of deployments/ on it, and a real process worker."""

import os
import socket
import subprocess
from collections.abc import Iterator

import pytest

from tests.deployments.served import BIN, ROOT, Served, end, is_healthy, wait_for


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server with everything deployed and one worker for the training pool."""
    home = tmp_path_factory.mktemp("prefect")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
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
    with (home / "server.log").open("wb") as log:
        server = subprocess.Popen(
            [BIN / "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)],
            env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
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
