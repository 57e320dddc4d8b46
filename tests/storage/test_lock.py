"""The lock of a run: one holder at a time, named to the second one, and none after its process is gone."""

import os
import re
import socket
from pathlib import Path

import pytest

from storage.lock import RunLocked, run_lock

HOLD = """
import sys
from pathlib import Path
from storage.lock import run_lock
with run_lock(Path(sys.argv[1]), "demo"):
    print("held", flush=True)
    input()
"""


def test_a_second_holder_is_refused_and_told_the_run_and_the_process_host_and_time_of_the_first(tmp_path: Path, start):
    lock = tmp_path / "locks" / "demo.lock"
    holder = start(HOLD, str(lock))
    assert holder.line() == "held"
    host, since = re.escape(socket.gethostname()), r"20\d\d-\d\d-\d\dT[\d:]+\+00:00"
    who = rf"'demo' .* process {holder.popen.pid} on {host} since {since}"
    with pytest.raises(RunLocked, match=who), run_lock(lock, "demo"):
        pytest.fail("two holders")
    holder.go()
    assert holder.wait() == 0
    with run_lock(lock, "demo"):
        assert f'"pid": {os.getpid()}' in lock.read_text()


def test_a_holder_killed_with_9_frees_the_lock(tmp_path: Path, start):
    lock = tmp_path / "demo.lock"
    holder = start(HOLD, str(lock))
    assert holder.line() == "held"
    holder.kill()
    with run_lock(lock, "demo"):
        pass


def test_an_exception_inside_frees_the_lock(tmp_path: Path):
    with pytest.raises(KeyError), run_lock(tmp_path / "demo.lock", "demo"):
        raise KeyError
    with run_lock(tmp_path / "demo.lock", "demo"):
        pass


def test_the_locks_of_two_runs_do_not_meet(tmp_path: Path):
    a, b = tmp_path / "a.lock", tmp_path / "b.lock"
    with run_lock(a, "a"), run_lock(b, "b"), pytest.raises(RunLocked, match="'a'"), run_lock(a, "a"):
        pytest.fail("two holders")


def test_a_holder_that_has_not_yet_written_who_it_is_still_refuses(tmp_path: Path):
    lock = tmp_path / "demo.lock"
    with run_lock(lock, "demo"):
        os.truncate(lock, 0)
        with pytest.raises(RunLocked, match="another process"), run_lock(lock, "demo"):
            pytest.fail("two holders")
