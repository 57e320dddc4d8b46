"""The pool of math-verify: every pair has one outcome, whatever hangs, bloats or dies; nothing of it is executed."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tasks.core.verdict import FAILURES, Comparison, Status
from tasks.engines.verifier_driver import WINDOW
from tasks.engines.verifier_pool import Outcome, VerifierPool
from tasks.engines.verifier_process import VerifierProcess, WorkerFailed
from tests.tasks.direct_math_verify import directly

pytestmark = pytest.mark.skipif(os.name != "posix", reason="workers are forked")

ROOT = Path(__file__).resolve().parents[3]
TOWER, FACTORIAL = "9^{9^{9^9}}", "10^{10^{10}}!"


def pair(answer: str, gold: str) -> Comparison:
    return Comparison(answer=answer, gold=gold)


def sums(num: int) -> list[Comparison]:
    """x+i against i+x, and every third against i+1+x: right, right, wrong, ..."""
    return [pair(f"x+{i}", f"{i + (i % 3 == 2)}+x") for i in range(num)]


def are_right(outcomes: list[Outcome]) -> list[bool]:
    return [outcome.is_equal is (i % 3 != 2) for i, outcome in enumerate(outcomes)]


@pytest.fixture(scope="module")
def pool() -> Iterator[VerifierPool]:
    pool = VerifierPool(workers=2, timeout_seconds=1.0, memory_mb=256)
    yield pool
    pool.close()


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until_gone(pids: list[int], seconds: float = 10) -> bool:
    end = time.monotonic() + seconds
    while any(map(is_alive, pids)) and time.monotonic() < end:
        time.sleep(0.05)
    return not any(map(is_alive, pids))


def test_outcomes_are_those_of_math_verify_called_directly(pool: VerifierPool) -> None:
    pairs = [
        pair("\\frac{1}{2}", "\\frac{2}{4}"), pair("2\\sqrt{2}", "\\sqrt{8}"), pair("x^2-1", "(x-1)(x+1)"),
        pair("(3,\\frac{\\pi}{2})", "(3,\\pi/2)"), pair("[1,2]", "(1,2)"), pair("\\{1,2\\}", "\\{2,1\\}"),
        pair("(-\\infty,2)\\cup(3,\\infty)", "(-\\infty,2)\\cup(3,\\infty)"), pair("6-5i", "-5i+6"), pair("x+1", "x"),
        pair("\\begin{pmatrix}1\\\\2\\end{pmatrix}", "\\begin{pmatrix}1\\\\2\\end{pmatrix}"), pair("p-q", "q-p"),
        pair("50\\%", "0.5"), pair("1,234.50", "1234.5"), pair("x=3", "3"), pair("0.33", "\\frac13"),
        pair("\\text{east}", "\\text{East}"), pair("007", "7"), pair("5\\text{ cm}", "5"), pair("\\frac", "1"),
        pair("", "1"), pair("\\log_2 8", "3"), pair("\\sin\\frac{\\pi}{6}", "0.5"), pair("2x+3y=6", "4x+6y=12"),
        pair("3!", "6"),
        pair("1<x<2", "(1,2)"), pair("\\emptyset", "\\{\\}"), pair("12_8", "10"), pair("\\infty", "\\infty"),
    ]  # fmt: skip
    expected = directly(pairs)
    assert [outcome.is_equal for outcome in pool.compare(pairs)] == expected
    # not (1,2) for [1,2], x for x+1, q-p for p-q
    assert expected[:11] == [True, True, True, True, False, True, True, True, False, True, False]
    assert expected.count(None) == 2  # \frac, and nothing


def test_what_cannot_be_read_is_no_answer(pool: VerifierPool) -> None:
    assert [outcome.is_equal for outcome in pool.compare([pair("}{", "1"), pair("\\frac", "1")])] == [None, None]


def test_text_is_never_executed(pool: VerifierPool, tmp_path: Path) -> None:
    target = tmp_path / "executed"
    code = f"__import__('pathlib').Path('{target}').touch()"
    texts = [code, f"\\text{{{code}}}", f"\\sympify{{{code}}}", f"exec({code!r})", f"\\{{{code}\\}}", f"x={code}"]
    outcomes = pool.compare([pair(text, "1") for text in texts] + [pair("x", text) for text in texts])
    assert not target.exists()
    assert not any(outcome.is_equal for outcome in outcomes)


def test_of_an_answer_only_numbers_reach_python_s_compiler() -> None:
    """Whatever Python compiles is seen by an audit hook: sympy has numbers evaluated, and names of its own."""
    texts = [
        "q7+q7^2", "\\text{q7}", "q7(1)", "\\operatorname{q7}", "\\mathrm{q7}", "x_{q7}", "\\{q7,1\\}", "(q7,2]",
        "3.5q7", "0xq7", "1e q7", "1_q7", "q7!", "\\frac{q7}{3.25}", "\\begin{pmatrix}q7&1.5\\end{pmatrix}", "'q7'",
        "\\sqrt[q7]{2}", "1<q7<2", "q7\\%", "f(q7)=q7", "\\int q7 dx", "lambda: q7", "3q7", "[q7]", "q7=3",
    ]  # fmt: skip
    code = """
import contextlib, json, sys
from tasks.engines.algebra import Algebra
algebra, seen = Algebra(), []
algebra.warm_up()
def hook(event, arguments):
    if event == "compile" and arguments[0] is not None:
        seen.append(arguments[0] if isinstance(arguments[0], str) else bytes(arguments[0]).decode())
sys.addaudithook(hook)
for text in json.loads(sys.argv[1]):
    for pair in ((text, "3.75"), ("7.25", text), (text, text + "+1")):
        with contextlib.suppress(Exception):
            algebra.compare(*pair)
print(json.dumps(seen))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(texts)], capture_output=True, text=True, cwd=ROOT, timeout=60
    )
    compiled = json.loads(done.stdout)
    assert any("7.25" in source for source in compiled)  # the hook sees what is evaluated
    assert [source for source in compiled if "q7" in source] == []


def test_a_gold_answer_that_cannot_be_read_is_a_failure_and_no_wrong_answer(pool: VerifierPool) -> None:
    (outcome,) = pool.compare([pair("3", "}{")])
    assert (outcome.failure, outcome.num_attempts) == (Status.CRASHED, 2)
    assert outcome.message == "Unreadable: math-verify cannot read the gold answer '}{'"


def test_a_pair_that_hangs_is_tried_twice_and_its_neighbours_get_their_verdicts(pool: VerifierPool) -> None:
    neighbours = sums(40)
    mixed = [*neighbours[:10], pair(TOWER, "2"), *neighbours[10:], pair(FACTORIAL, "2")]
    *rest, last = pool.compare(mixed)
    tower = rest.pop(10)
    for outcome in (tower, last):
        assert outcome.failure in (Status.TIMEOUT, Status.OUT_OF_MEMORY)
        assert (outcome.is_equal, outcome.num_attempts) == (None, 2)
    assert tower.message == "no result within 1 s"
    assert all(are_right(rest))
    assert {outcome.num_attempts for outcome in rest} == {1}


def test_a_failure_is_not_remembered_and_an_outcome_is(pool: VerifierPool) -> None:
    _, again, once_more = (pool.submit(pair("x+y+0", "0+x+y")).result() for _ in range(3))
    assert again is once_more
    assert again.seconds == 0
    first, second = (pool.submit(pair("8^{8^{8^8}}", "2")).result() for _ in range(2))
    assert first is not second
    assert first.failure == second.failure == Status.TIMEOUT


def test_what_math_verify_swallows_is_a_failure_and_no_wrong_answer() -> None:
    """2^(2^29) takes 2^29 bits = 64 MiB, more than there are; 60 factorials are too deep for Python's stack."""
    bloated, deep, neighbour = pair("2^{2^{29}}", "3"), pair("3" + "!" * 60, "3"), pair("x+1", "1+x")
    assert directly([bloated], room=16 * 2**20) == [False]
    assert directly([deep]) == [False]
    pool = VerifierPool(workers=1, timeout_seconds=20, memory_mb=16)
    try:
        out_of_memory, crashed, right = pool.compare([bloated, deep, neighbour])
    finally:
        pool.close()
    assert (out_of_memory.failure, out_of_memory.num_attempts) == (Status.OUT_OF_MEMORY, 2), out_of_memory
    assert (crashed.failure, crashed.num_attempts) == (Status.CRASHED, 2)
    assert crashed.message.startswith("RecursionError: maximum recursion depth exceeded")
    assert (right.is_equal, right.num_attempts) == (True, 1)


HOSTILE = [
    TOWER, FACTORIAL, "(10^6)!", "3" + "!" * 60, "\\sum_{i=1}^{10^{10}} \\sin i", "\\prod_{i=1}^{10^9} (x+i)",
    "\\binom{10^9}{10^8}", "10^{-10^{9}}", "(" * 2000 + "1" + ")" * 2000, "{" * 2000 + "1" + "}" * 2000,
    "\\sqrt{" * 400 + "2" + "}" * 400, "-" * 3000 + "1", "\\int_0^1 e^{e^{e^{x^x}}} dx", "2^{10^{30}}", "\\frac{1}{0}",
    "\\begin{pmatrix}" + "\\\\".join(["&".join(["x"] * 60)] * 60) + "\\end{pmatrix}", "9" * 5000, "\x00" * 50,
    "\\lim_{x\\to 0} \\frac{\\sin x^{999}}{x^{999}}", "x^{x^{x^{x^{x}}}}", "(x+y+z+1)^{300}-(x+y+z)^{300}",
    "\U0001d7d9" * 300, "[" * 500, "," * 3000, "\\log" * 500, "x_{" * 300, "\ud800", "\n\n{\"child\": 1, \"id\": 2}\n",
]  # fmt: skip


def test_whatever_is_asked_ends_with_an_outcome_and_its_neighbours_get_their_verdicts() -> None:
    pool = VerifierPool(workers=2, timeout_seconds=0.3, memory_mb=256)
    neighbours = sums(2 * len(HOSTILE))
    mixed = [each for i, text in enumerate(HOSTILE) for each in (pair(text, "3"), *neighbours[2 * i : 2 * i + 2])]
    try:
        outcomes = pool.compare(mixed)
    finally:
        pool.close()
    hostile, rest = outcomes[::3], [outcome for i, outcome in enumerate(outcomes) if i % 3]
    assert all(are_right(rest))
    assert {outcome.num_attempts for outcome in rest} == {1}
    assert not any(outcome.is_equal for outcome in hostile)
    assert {None, Status.TIMEOUT, Status.CRASHED} <= {outcome.failure for outcome in hostile} <= {None, *FAILURES}
    assert all(bool(outcome.failure) == bool(outcome.message) for outcome in hostile)


def test_a_long_answer_behind_one_that_hangs_does_not_stop_the_clock() -> None:
    """No pipe takes 400 kB at once: who waits for that cannot watch the pair before it."""
    pool = VerifierPool(workers=1, timeout_seconds=0.5, memory_mb=256)
    try:
        futures = [pool.submit(each) for each in (pair(TOWER, "2"), pair("}" * 400_000, "2"), pair("x+1", "1+x"))]
        hanging, long, neighbour = [future.result(timeout=20) for future in futures]
    finally:
        pool.close()
    assert hanging.failure is Status.TIMEOUT
    assert long.is_equal is not True
    assert neighbour.is_equal is True


def test_a_process_that_is_stopped_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.engines.verifier_process.REACT_SECONDS", 0.3)
    pool = VerifierPool(workers=1, timeout_seconds=0.3, memory_mb=256)
    try:
        pool.compare(sums(1))
        (nurse,) = pool.pids
        family = [nurse, *children(nurse)]
        for pid in family:
            os.kill(pid, signal.SIGSTOP)
        outcomes = pool.compare([pair(f"s+{i}", f"{i}+s") for i in range(3)])
        assert [outcome.is_equal for outcome in outcomes] == [True] * 3
        assert pool.pids != [nurse]
        assert wait_until_gone(family)
    finally:
        pool.close()


def test_no_verdict_is_lost_while_workers_are_killed(pool: VerifierPool) -> None:
    """Children die by kill -9 every 80 ms, and the nurses twice, while pairs are compared until 12 have died."""
    is_over, killed = threading.Event(), []

    def attack() -> None:
        for blow in range(10_000):
            if is_over.wait(0.08):
                return
            for nurse in pool.pids:
                victims = [nurse] if blow in (3, 20) else children(nurse)
                for victim in victims:
                    os.kill(victim, signal.SIGKILL)
                    killed.append(victim)

    attacker = threading.Thread(target=attack)
    pool.compare(sums(2))
    attacker.start()
    try:
        outcomes: list[Outcome] = []
        while len(killed) < 12:
            start = len(outcomes)
            outcomes += pool.compare([pair(f"y+{i}", f"{i + (i % 3 == 2)}+y") for i in range(start, start + 150)])
    finally:
        is_over.set()
        attacker.join()
    assert all(are_right(outcomes)), [o for o, right in zip(outcomes, are_right(outcomes), strict=True) if not right]
    assert all(are_right(pool.compare([pair(f"z+{i}", f"{i + (i % 3 == 2)}+z") for i in range(30)])))


def test_any_number_of_threads_may_ask_at_once(pool: VerifierPool) -> None:
    batches = [[pair(f"t_{k}+{i}", f"{i + (i % 3 == 2)}+t_{k}") for i in range(30)] for k in range(4)]
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(pool.compare, batches))
    assert all(all(are_right(outcomes)) for outcomes in answers)


def test_hostile_pairs_leave_no_descriptor_process_or_thread_behind() -> None:
    """180 that fail at once, and 20 whose child is killed, twice."""

    def held() -> tuple[int, int]:
        return len(os.listdir("/proc/self/fd")), threading.active_count()

    before = held()
    pool = VerifierPool(workers=2, timeout_seconds=0.1, memory_mb=256)
    hang = [pair(f"{9 + i % 3}^{{9^{{9^{9 + i}}}}}", "2") for i in range(20)]
    crash = [pair(f"{i}", "}{") for i in range(180)]
    outcomes = pool.compare([each for i in range(20) for each in (hang[i], *crash[9 * i : 9 * i + 9])])
    while_open = held()
    assert [outcome.failure for outcome in pool.compare(crash)] == [Status.CRASHED] * 180
    assert held() == while_open
    nurses = pool.pids
    workers = [child for nurse in nurses for child in children(nurse)]
    pool.close()
    assert all(outcome.failure is not None for outcome in outcomes)
    assert nurses
    assert wait_until_gone([*nurses, *workers])
    assert held() == before


def test_workers_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    code = (
        "import time\nfrom tasks.core.verdict import Comparison\nfrom tasks.engines.verifier_pool import VerifierPool\n"
        "pool = VerifierPool(workers=1, timeout_seconds=60, memory_mb=256)\n"
        "pool.compare([Comparison(answer='x+1', gold='1+x')])\n"
        "pool.submit(Comparison(answer='9^{9^{9^9}}', gold='2'))\nprint(pool.pids[0], flush=True)\ntime.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    nurse = int(process.stdout.readline())
    family = [nurse, *children(nurse)]
    process.kill()
    process.wait()
    assert len(family) == 2
    assert wait_until_gone(family)


def test_a_pool_that_cannot_start_its_processes_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "math_verify.py").write_text("raise ImportError('math_verify is broken here')")
    monkeypatch.setattr("tasks.engines.verifier_process.ROOT", f"{tmp_path}{os.pathsep}{ROOT}")
    pool = VerifierPool(workers=1, timeout_seconds=1, memory_mb=256)
    try:
        with pytest.raises(
            WorkerFailed, match=r"(?s)did not start\. .*ImportError: math_verify is broken here\n.*make setup"
        ):
            pool.compare([pair("x", "y")])
        with pytest.raises(WorkerFailed):
            pool.submit(pair("x", "z"))
    finally:
        pool.close()


def test_a_closed_pool_leaves_nobody_waiting_and_refuses_more() -> None:
    pool = VerifierPool(workers=1, timeout_seconds=30, memory_mb=256)
    pool.compare(sums(1))
    futures = [pool.submit(pair(f"9^{{9^{{9^{i}}}}}", "2")) for i in range(9, 30)]
    time.sleep(0.2)  # the first ones are with the process by now
    pool.close()
    for future in futures:
        with pytest.raises(RuntimeError, match="closed"):
            future.result(timeout=1)
    with pytest.raises(RuntimeError, match="closed"):
        pool.submit(pair("x", "y"))


def test_what_was_sent_to_a_child_that_died_is_not_answered_by_the_next_one() -> None:
    process = VerifierProcess(256)
    try:
        process.fork()
        os.kill(process.child_pid, signal.SIGSTOP)
        end = time.monotonic() + 30
        for number in range(WINDOW):
            process.send(number, f"x+{number}", "x", end)
        process.kill_child()
        process.fork()
        process.send(99, "x+2", "2+x", end)
        answer = process.read(end)
        assert answer is not None
        assert (answer["id"], answer["is_equal"]) == (99, True)
    finally:
        process.end()
