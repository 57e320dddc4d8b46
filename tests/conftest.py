"""The end of a test session: as for the command (flows/cli.py, run), without tearing the interpreter down."""

import atexit
import os
import sys

import hypothesis
import pytest

hypothesis.settings.register_profile("untimed", deadline=None)  # speed is measured in tests/benchmarks
hypothesis.settings.load_profile("untimed")

_status: list[int] = []


@pytest.fixture(autouse=True)
def _denormal_numbers_as_usual() -> None:
    """A training in this process has switched them off for the thread; hypothesis refuses to draw floats then."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_flush_denormal(False)


def pytest_sessionfinish(exitstatus: int) -> None:
    _status[:] = [int(exitstatus)]


@pytest.hookimpl(trylast=True)
def pytest_unconfigure() -> None:
    """duckdb's bindings report objects that prefect's threads or pytest keep alive as leaks, after the closing line."""
    if _status:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(_status[0])
