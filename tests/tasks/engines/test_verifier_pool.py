"""The pool of math-verify: every pair has one outcome, whatever hangs, bloats or dies; nothing of it is executed."""

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

from tasks.core.verdict import Comparison, Status
from tasks.engines.verifier_pool import Outcome, VerifierPool
from tasks.engines.verifier_process import VerifierProcess, WorkerFailed

pytestmark = pytest.mark.skipif(os.name != "posix", reason="workers are forked")

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
    from math_verify import LatexExtractionConfig, parse, verify

    pairs = [
        pair("\\frac{1}{2}", "\\frac{2}{4}"), pair("2\\sqrt{2}", "\\sqrt{8}"), pair("x^2-1", "(x-1)(x+1)"),
        pair("(3,\\frac{\\pi}{2})", "(3,\\pi/2)"), pair("[1,2]", "(1,2)"), pair("\\{1,2\\}", "\\{2,1\\}"),
        pair("(-\\infty,2)\\cup(3,\\infty)", "(-\\infty,2)\\cup(3,\\infty)"), pair("6-5i", "-5i+6"), pair("x+1", "x"),
        pair("\\begin{pmatrix}1\\\\2\\end{pmatrix}", "\\begin{pmatrix}1\\\\2\\end{pmatrix}"), pair("p-q", "q-p"),
    ]  # fmt: skip

    def direct(text: str) -> list[object]:
        boxed = f"\\boxed{{{text}}}"
        return parse(boxed, extraction_config=[LatexExtractionConfig()], parsing_timeout=None)

    expected = [verify(direct(each.gold), direct(each.answer), timeout_seconds=None) for each in pairs]
    assert [outcome.is_equal for outcome in pool.compare(pairs)] == expected
    assert expected.count(True) == 8  # not (1,2) for [1,2], x for x+1, q-p for p-q


def test_what_cannot_be_read_is_no_answer(pool: VerifierPool) -> None:
    assert [outcome.is_equal for outcome in pool.compare([pair("}{", "1"), pair("\\frac", "1")])] == [None, None]


def test_text_is_never_executed(pool: VerifierPool, tmp_path: Path) -> None:
    target = tmp_path / "executed"
    code = f"__import__('pathlib').Path('{target}').touch()"
    texts = [code, f"\\text{{{code}}}", f"\\sympify{{{code}}}", f"exec({code!r})", f"\\{{{code}\\}}", f"x={code}"]
    outcomes = pool.compare([pair(text, "1") for text in texts] + [pair("x", text) for text in texts])
    assert not target.exists()
    assert not any(outcome.is_equal for outcome in outcomes)


def test_a_pair_that_hangs_is_tried_twice_and_its_neighbours_get_their_verdicts(pool: VerifierPool) -> None:
    neighbours = sums(40)
    mixed = [*neighbours[:10], pair(TOWER, "2"), *neighbours[10:], pair(FACTORIAL, "2")]
    *rest, last = pool.compare(mixed)
    tower = rest.pop(10)
    for outcome in (tower, last):
        assert outcome.failure in (Status.TIMEOUT, Status.OUT_OF_MEMORY)
        assert (outcome.is_equal, outcome.num_attempts) == (None, 2)
    assert "no answer within 1 s" in tower.message
    assert all(are_right(rest))
    assert {outcome.num_attempts for outcome in rest} == {1}


def test_a_failure_is_not_remembered_and_an_outcome_is(pool: VerifierPool) -> None:
    assert pool.submit(pair("x+0", "0+x")).result() is pool.submit(pair("x+0", "0+x")).result()
    first, second = (pool.submit(pair("8^{8^{8^8}}", "2")).result() for _ in range(2))
    assert first is not second
    assert first.failure == second.failure == Status.TIMEOUT


def test_a_pair_that_takes_more_memory_than_it_may_is_out_of_memory() -> None:
    pool = VerifierPool(workers=1, timeout_seconds=20, memory_mb=64)
    try:
        bloated, neighbour = pool.compare([pair("2^{2^{33}}", "3"), pair("x+1", "1+x")])
    finally:
        pool.close()
    assert bloated.failure is Status.OUT_OF_MEMORY, bloated
    assert bloated.num_attempts == 2
    assert neighbour.is_equal is True


def test_no_verdict_is_lost_while_workers_are_killed(pool: VerifierPool) -> None:
    """Children die by kill -9 every 50 ms, and the nurses twice, while 600 pairs are compared."""
    is_over, killed = threading.Event(), []

    def attack() -> None:
        for blow in range(10_000):
            if is_over.wait(0.05):
                return
            for nurse in pool.pids:
                victims = [nurse] if blow in (3, 40) else children(nurse)
                for victim in victims:
                    os.kill(victim, signal.SIGKILL)
                    killed.append(victim)

    attacker = threading.Thread(target=attack)
    pool.compare(sums(2))
    attacker.start()
    try:
        pairs = [pair(f"y+{i}", f"{i + (i % 3 == 2)}+y") for i in range(600)]
        outcomes = pool.compare(pairs)
    finally:
        is_over.set()
        attacker.join()
    assert len(killed) > 10
    assert all(are_right(outcomes)), [o for o, right in zip(outcomes, are_right(outcomes), strict=True) if not right]
    assert all(are_right(pool.compare([pair(f"z+{i}", f"{i + (i % 3 == 2)}+z") for i in range(30)])))


def test_any_number_of_threads_may_ask_at_once(pool: VerifierPool) -> None:
    batches = [[pair(f"t_{k}+{i}", f"{i + (i % 3 == 2)}+t_{k}") for i in range(30)] for k in range(4)]
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(pool.compare, batches))
    assert all(all(are_right(outcomes)) for outcomes in answers)


def test_hostile_pairs_leave_no_descriptor_process_or_thread_behind() -> None:
    def held() -> tuple[int, int]:
        return len(os.listdir("/proc/self/fd")), threading.active_count()

    before = held()
    pool = VerifierPool(workers=2, timeout_seconds=0.1, memory_mb=256)
    outcomes = pool.compare([pair(f"{9 + i % 3}^{{9^{{9^{9 + i}}}}}", "2") for i in range(20)])
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
    root = Path(__file__).resolve().parents[3]
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=root)
    assert process.stdout is not None
    nurse = int(process.stdout.readline())
    family = [nurse, *children(nurse)]
    process.kill()
    process.wait()
    assert len(family) == 2
    assert wait_until_gone(family)


def test_a_pool_that_cannot_start_its_processes_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "math_verify.py").write_text("raise ImportError('math_verify is broken here')")
    monkeypatch.setattr("tasks.engines.verifier_process.PROJECT", f"{tmp_path}{os.pathsep}{Path.cwd()}")
    pool = VerifierPool(workers=1, timeout_seconds=1, memory_mb=256)
    try:
        with pytest.raises(
            WorkerFailed, match=r"did not start .*ImportError: math_verify is broken here\. .*make setup"
        ):
            pool.compare([pair("x", "y")])
        with pytest.raises(WorkerFailed):
            pool.submit(pair("x", "z"))
    finally:
        pool.close()


def test_a_closed_pool_cancels_what_waits_and_refuses_more() -> None:
    pool = VerifierPool(workers=1, timeout_seconds=30, memory_mb=256)
    futures = [pool.submit(pair(f"9^{{9^{{9^{i}}}}}", "2")) for i in range(9, 30)]
    pool.close()
    assert futures[-1].cancelled()
    with pytest.raises(RuntimeError, match="closed"):
        pool.submit(pair("x", "y"))


def test_an_order_to_kill_spares_a_child_that_came_later() -> None:
    process = VerifierProcess(256)
    process.send({process.next_id(): ("x+1", "1+x")})
    assert [fact["is_equal"] for fact in process.facts(30)] == [True]
    process._generation -= 1
    process.kill_child()
    process.send({process.next_id(): ("x+2", "2+x")})
    assert [fact["is_equal"] for fact in process.facts(30)] == [True]
    process.end()
