"""The processes that compare answers by algebra: run as `python -m`, with the descriptors of three streams.

This process imports math-verify once and forks a child that compares: a child that is killed, runs out of memory or
crashes is replaced in milliseconds. The parent's side is tasks/engines/verifier_process.py.

* control (parent to this process): `fork N` starts the child with the number N, `kill` ends it; the end of the stream
  ends everything.
* pairs (parent to child): one line of JSON each: child (its number), id, answer, gold. A line that does not parse, or
  is for another child, is skipped: after a child's end the rest of what it was sent still stands in the pipe.
* answers (from both to the parent): one line of JSON each, in one write that the system does not split.

Of a child nothing more is read once its end is told.
"""

import contextlib
import ctypes
import gc
import json
import os
import resource
import select
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tasks.engines.algebra import Algebra

MAX_MESSAGE_CHARACTERS = 300
RETIRE_PAIRS = 5000
"""Comparisons after which a child makes room for a fresh one: the LaTeX parser's tables only ever grow."""
RETIRE_SHARE = 0.25
"""Share of the memory limit that may stay taken between pairs."""
WATCH_SECONDS = 1.0
"""How often the process looks whether its parent is still there; that is for parents that were forked themselves, whose
copies hold the control stream open."""


def serve(control: int, pairs: int, answers: int, memory_mb: int) -> None:
    """Fork and end children as the parent says, until it is gone."""
    algebra = Algebra()
    algebra.warm_up()
    gc.freeze()  # what is there now stays where it is: shared pages of the children
    woken, wake = os.pipe()
    for fd in (woken, wake):
        os.set_blocking(fd, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    parent, child, number, unread = os.getppid(), 0, 0, b""
    _tell(answers, event="ready")
    while True:
        readable, _, _ = select.select([control, woken], [], [], WATCH_SECONDS)
        if woken in readable:
            os.read(woken, 4096)
        if child and (ended := os.waitpid(child, os.WNOHANG)) != (0, 0):
            code = os.waitstatus_to_exitcode(ended[1])
            _tell(answers, event="ended", child=number, code=code)
            child = 0
        received = os.read(control, 4096) if control in readable else None
        if received == b"" or os.getppid() != parent:
            if child:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
            return
        *lines, unread = (unread + (received or b"")).split(b"\n")
        for line in lines:
            if line == b"kill" and child:
                os.kill(child, signal.SIGKILL)  # not reaped yet: the id is still its own
            elif line.startswith(b"fork ") and not child:
                number, child = int(line[5:]), _fork(algebra, int(line[5:]), control, pairs, answers, memory_mb)
                _tell(answers, event="started", child=number, pid=child)


def _fork(algebra: Algebra, number: int, control: int, pairs: int, answers: int, memory_mb: int) -> int:
    nurse, pid = os.getpid(), os.fork()
    if pid:
        return pid
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.close(control)
        _end_with(nurse)
        nothing = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):  # whatever a library prints
            os.dup2(nothing, fd)
        _compare_all(algebra, number, pairs, answers, _limit_memory(memory_mb))
    except MemoryError:
        os._exit(2)
    except BaseException:
        os._exit(1)
    os._exit(0)


def _compare_all(algebra: Algebra, number: int, pairs: int, answers: int, room: int) -> None:
    """Answer every pair that is sent to this child; returns when it should be replaced."""
    before = _mapped_bytes()
    for num_pairs, pair in enumerate(_requests(pairs, number), 1):
        started = time.perf_counter()
        answer: dict[str, Any] = {}
        try:
            answer["is_equal"] = algebra.compare(pair["answer"], pair["gold"])
        except MemoryError as error:
            answer |= {"failure": "out_of_memory", "message": f"MemoryError: {error}"}
        except BaseException as error:
            answer |= {"failure": "crashed", "message": _described(error)}
        _tell(answers, child=number, id=pair["id"], seconds=time.perf_counter() - started, **answer)
        has_grown = _mapped_bytes() - before > RETIRE_SHARE * room
        if has_grown or num_pairs >= RETIRE_PAIRS or answer.get("failure") == "out_of_memory":
            return


def _requests(pairs: int, number: int) -> Iterator[dict[str, Any]]:
    """The pairs for this child; ends with the parent."""
    unread = b""
    while received := os.read(pairs, 65536):
        *lines, unread = (unread + received).split(b"\n")
        for line in lines:
            with contextlib.suppress(ValueError):
                pair = json.loads(line)
                if isinstance(pair, dict) and pair.get("child") == number:
                    yield pair


def _tell(answers: int, **message: Any) -> None:
    """Write a line; it begins with a line's end too, in case a child was killed while it wrote."""
    os.write(answers, b"\n" + json.dumps(message).encode() + b"\n")


def _described(error: BaseException) -> str:
    try:
        text = str(error)
    except Exception:
        text = "(its message cannot be shown)"
    return f"{type(error).__name__}: {text}"[:MAX_MESSAGE_CHARACTERS]


def _limit_memory(memory_mb: int) -> int:
    """Limit what this process may map beside what it has now; returns that room in bytes."""
    room = memory_mb * 2**20
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    mapped = _mapped_bytes()
    if mapped:  # where that is not known, as on macOS, a limit is not enforced either
        resource.setrlimit(resource.RLIMIT_AS, (mapped + room, mapped + room))
    with contextlib.suppress(OSError):  # if the machine runs out of memory, this process is the one to end
        Path("/proc/self/oom_score_adj").write_text("1000")
    return room


def _mapped_bytes() -> int:
    """Address space of this process; 0 where the system does not say."""
    try:
        with open("/proc/self/statm", "rb") as statm:
            return int(statm.read().split()[0]) * resource.getpagesize()
    except OSError:
        return 0


def _end_with(nurse: int) -> None:
    """End this process when its parent ends, however that ends."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    else:  # elsewhere it looks for itself
        signal.signal(signal.SIGALRM, lambda *_: os.getppid() == nurse or os._exit(1))
        signal.setitimer(signal.ITIMER_REAL, WATCH_SECONDS, WATCH_SECONDS)
    if os.getppid() != nurse:
        os._exit(1)


if __name__ == "__main__":
    serve(*map(int, sys.argv[1:]))
