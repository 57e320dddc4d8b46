"""The process that compares answers with math-verify: a nurse, and a child that it forks and forks again.

The nurse imports math-verify once, which takes a second; a child that was killed is followed by a fresh one within
milliseconds. Requests and answers are JSON lines, each shorter than what a pipe takes at once, so that a kill tears
none; ids are never used twice, so that an answer to a request that was given up is recognised.

Only math-verify's LaTeX parser is used. Its other one (ExprExtractionConfig) hands text to sympy.parse_expr, which is
Python's eval. Its own time limits are alarms that work in one thread only, and are off: the parent has the clock.
"""

import contextlib
import functools
import gc
import json
import os
import resource
import select
import signal
import sys
import time
from pathlib import Path
from typing import Any

RECYCLED_AFTER = 2000
"""Comparisons of one child; sympy's caches then start empty again."""
MAX_MESSAGE = 300
"""Characters of an error that are handed on."""
WATCHED_EVERY = 0.02
"""Seconds between two looks at the child's memory: what it can take meanwhile comes on top of its limit."""
BACKSTOP = 4
"""The kernel refuses allocations at this many times the limit, should they come faster than the nurse looks."""
OUT_OF_MEMORY = "out_of_memory"


def main() -> None:
    """`python -m tasks.engines.verifier_worker REQUESTS ANSWERS MEMORY_MB`: two descriptors; stdin is the control."""
    requests, answers, memory_mb = (int(argument) for argument in sys.argv[1:4])
    os.set_inheritable(requests, False)
    compare("\\frac{1}{2}+x", "x+\\frac{2}{4}")  # imports, and builds the parser's tables
    gc.collect()
    gc.freeze()  # what is loaded stays shared with the children
    nurse(requests, answers, memory_mb * 2**20)


def nurse(requests: int, answers: int, memory: int) -> None:
    """Fork a child, wait for its end, tell it, and fork the next; until the parent is gone."""
    awake, waker = os.pipe()
    os.set_blocking(waker, False)
    signal.set_wakeup_fd(waker)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    for generation in range(sys.maxsize):
        child = os.fork()
        if child == 0:
            with contextlib.suppress(KeyboardInterrupt):
                work(requests, answers, memory, generation)
            os._exit(0)
        ended = watch(child, generation, awake, memory)
        if ended is None:
            return
        drain(requests)
        say(answers, {"ended": generation} | ended)


def watch(child: int, generation: int, awake: int, memory: int) -> dict[str, Any] | None:
    """How the child ended: {"code": exit code, or minus the signal, "reason": why we killed it}; None: no parent."""
    base, reason = resident(child), ""
    while True:
        ready, _, _ = select.select([0, awake], [], [], WATCHED_EVERY)
        if 0 in ready:
            order = os.read(0, 4096)
            if not order:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                return None
            if f"kill {generation}" in order.decode().splitlines():
                os.kill(child, signal.SIGKILL)
                reason = reason or "told"
        if awake in ready:
            os.read(awake, 4096)
        if not reason and resident(child) > base + memory:
            os.kill(child, signal.SIGKILL)
            reason = OUT_OF_MEMORY
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return {"code": os.waitstatus_to_exitcode(status), "reason": reason}


def resident(pid: int) -> int:
    """Bytes of memory that a process has to itself (0 where the system has no /proc)."""
    try:
        _, pages, shared, *_ = Path(f"/proc/{pid}/statm").read_text().split()
    except (OSError, ValueError):
        return 0
    return (int(pages) - int(shared)) * resource.getpagesize()


def drain(requests: int) -> None:
    """Throw away what the dead child did not read: the parent asks again."""
    os.set_blocking(requests, False)
    with contextlib.suppress(BlockingIOError):
        while os.read(requests, 2**16):
            pass
    os.set_blocking(requests, True)


def say(answers: int, fact: dict[str, Any]) -> None:
    try:
        os.write(answers, json.dumps(fact).encode() + b"\n")
    except BrokenPipeError:
        os._exit(0)


def work(requests: int, answers: int, memory: int, generation: int) -> None:
    """Answer requests, one line each, in order."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    die_with_parent()
    os.close(0)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    mapped = next((int(line.split()[1]) * 1024 for line in status_lines() if line.startswith("VmSize")), 0)
    if mapped:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_AS, (mapped + BACKSTOP * memory, resource.RLIM_INFINITY))
    say(answers, {"started": generation})
    with os.fdopen(requests, "rb", closefd=False) as lines:
        for _, line in zip(range(RECYCLED_AFTER), lines, strict=False):
            with contextlib.suppress(json.JSONDecodeError):
                request = json.loads(line)
                say(answers, {"id": request["id"]} | judged(request["answer"], request["gold"]))


def status_lines() -> list[str]:
    try:
        return Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return []


def die_with_parent() -> None:
    """Where Linux offers it: the nurse's end is the child's, even in the middle of a comparison."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def judged(answer: str, gold: str) -> dict[str, Any]:
    """One comparison as the answer's fields."""
    started = time.perf_counter()
    try:
        outcome: dict[str, Any] = {"is_equal": compare(answer, gold)}
    except MemoryError as error:
        outcome = {"failure": OUT_OF_MEMORY, "message": f"MemoryError: {error}"[:MAX_MESSAGE]}
    except BaseException as error:  # math-verify's own time-out is one
        outcome = {"failure": "crashed", "message": f"{type(error).__name__}: {error}"[:MAX_MESSAGE]}
    return outcome | {"seconds": round(time.perf_counter() - started, 6)}


def compare(answer: str, gold: str) -> bool | None:
    """Whether math-verify finds the answer equal to the gold; None when it cannot read the answer."""
    from math_verify import verify

    read = parsed(answer)
    if read is None:
        return None
    expected = parsed(gold)
    return expected is not None and verify(expected, read, timeout_seconds=None, raise_on_error=True)


@functools.lru_cache(maxsize=4096)
def parsed(latex: str) -> Any:
    """A sympy object, or None for text that is no LaTeX it knows. Golds repeat; answers of a group do, too.

    What `math_verify.parse` does with the contents of a box, without its catch-all: there a MemoryError would pass as
    "not readable", and so as a verdict.
    """
    from latex2sympy2_extended.latex2sympy2 import NormalizationConfig, normalize_latex
    from math_verify.parser import parse_latex_cached
    from sympy import Basic, MatrixBase

    config = NormalizationConfig(
        basic_latex=True, units=True, malformed_operators=True, nits=True, boxed="none", equations=False
    )
    try:
        found = parse_latex_cached(normalize_latex(latex, config=config))
    except (MemoryError, RecursionError):
        raise
    except Exception:
        return None
    return found if isinstance(found, Basic | MatrixBase) else None


if __name__ == "__main__":
    main()
