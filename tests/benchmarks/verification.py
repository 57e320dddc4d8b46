"""The pool of math-verify beside math-verify called directly, and 10,000 hostile pairs.

    OMP_NUM_THREADS=1 python tests/benchmarks/verification.py [--pairs 1500] [--hostile 10000] [--repeats 3]

Only pairs that the verifier `math` would hand to algebra: what text and exact numbers decide is timed apart. `direct`
is one process that calls math-verify with the pool's settings (tasks/engines/algebra.py), `plain` its own parse and
verify, as most people call them. Results are compared first. Order A B B A, best of --repeats, wall seconds; every
repetition has pairs of its own, for the pool remembers. Goal: a worker does >= 90 % of direct's pairs on the easy mix.
"""

import argparse
import gc
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tasks.core.verdict import Comparison
from tasks.core.verifiers import get_verifier
from tasks.engines.verifier_pool import VerifierPool

GOAL = 0.9
HOSTILE_TIMEOUT = 0.2
Mix = Callable[[int], tuple[str, str]]


def easy(i: int) -> tuple[str, str]:
    return [
        (f"x+{i}", f"{i}+x"),
        (f"{i}y-{i + 1}", f"-{i + 1}+{i}y"),
        (f"2(a+{i})", f"2a+{2 * i}"),
        (f"{i}b", f"c{i}"),
    ][i % 4]


def latex(i: int) -> tuple[str, str]:
    return [
        (f"\\frac{{{i}\\sqrt{{2}}}}{{2}}", f"\\frac{{{i}}}{{\\sqrt{{2}}}}"),
        (f"(x-{i})(x+{i})", f"x^2-{i * i}"),
        (
            f"\\left(\\frac{{{i}\\pi}}{{6}},\\sqrt{{{i}}}\\right)",
            f"\\left(\\frac{{{2 * i}\\pi}}{{12}},\\sqrt{{{i}}}\\right)",
        ),
        (f"\\begin{{pmatrix}}{i}&1\\\\x&3\\end{{pmatrix}}", f"\\begin{{pmatrix}}{i}&1\\\\x&4\\end{{pmatrix}}"),
        (
            f"(-\\infty,-\\sqrt{{{i}}})\\cup(\\sqrt{{{i}}},\\infty)",
            f"(-\\infty,-\\sqrt{{{i}}})\\cup(\\sqrt{{{i}}},\\infty)",
        ),
        (f"\\log_2{{{i + 2}}}+\\sin{{x}}", f"\\sin{{x}}+\\log_2{{{i + 2}}}"),
    ][i % 6]


def hostile(i: int) -> tuple[str, str]:
    """Every 25th takes all the time or memory that it is given; the rest is what breaks parsers."""
    if i % 25 == 0:
        return [
            (f"9^{{9^{{9^{{{i + 9}}}}}}}", "2"),
            (f"2^{{2^{{{33 + i}}}}}", "2"),
            (f"10^{{10^{{{i + 9}}}}}!", "2"),
            (f"\\binom{{10^9}}{{{i + 10**8}}}", "2"),
            (f"{'(' * 50}x+{i}{')' * 50}", f"x+{i}"),
            (f"\\int_0^{{{i}}} x^{{x^x}} dx", f"x+{i}"),
            (f"\\sum_{{k=1}}^{{{10**6 + i}}} \\frac{{1}}{{k^k}}", f"x+{i}"),
            (f"{i}!!-x", f"x-{i}!!"),
        ][i // 25 % 8]
    return [
        (f"\\frac{{{i}}}{{", "1"),
        (f"__import__('os').system('touch pwned{i}')", "x"),
        (f"\\sqrt[{i}]{{x}}^{{\\frac", "x"),
        (f"\\lim_{{x\\to {i}}} \\frac{{\\sin x}}{{x-{i}}}", f"x-{i}"),
    ][i % 4]


MIXES: dict[str, Mix] = {"easy": easy, "latex": latex}


def batch(mix: Mix, num: int, start: int) -> list[Comparison]:
    return [Comparison(answer=answer, gold=gold) for answer, gold in (mix(i) for i in range(start, start + num))]


def plain(pair: Comparison) -> bool:
    from math_verify import LatexExtractionConfig, parse, verify

    gold, answer = (
        parse(f"\\boxed{{{text}}}", extraction_config=[LatexExtractionConfig()], parsing_timeout=None)
        for text in (pair.gold, pair.answer)
    )
    return bool(verify(gold, answer, timeout_seconds=None))


def best_rates(
    contenders: dict[str, Callable[[list[Comparison]], Any]], mix: Mix, num: int, repeats: int
) -> dict[str, float]:
    """Pairs a second of each contender; all see the same pairs, once each, in the order A B B A."""
    rates = dict.fromkeys(contenders, 0.0)
    names = list(contenders)
    for repeat in range(repeats):
        pairs = batch(mix, num, 1000 + repeat * num)
        for name in names if repeat % 2 == 0 else reversed(names):
            started = time.perf_counter()
            contenders[name](pairs)
            rates[name] = max(rates[name], num / (time.perf_counter() - started))
    return rates


def speed(num: int, repeats: int) -> None:
    from tasks.engines.algebra import Algebra

    algebra = Algebra()
    algebra.warm_up()
    pools = {n: VerifierPool(workers=n, timeout_seconds=10, memory_mb=1024) for n in (1, 2)}
    for mix in MIXES.values():
        pairs = batch(mix, 120, 0)
        expected = [algebra.compare(pair.answer, pair.gold) for pair in pairs]
        for pool in pools.values():
            assert [outcome.is_equal for outcome in pool.compare(pairs)] == expected
        assert [plain(pair) for pair in pairs] == [bool(equal) for equal in expected]
    contenders: dict[str, Callable[[list[Comparison]], Any]] = {
        "plain": lambda pairs: [plain(pair) for pair in pairs],
        "direct": lambda pairs: [algebra.compare(pair.answer, pair.gold) for pair in pairs],
        "1 worker": pools[1].compare,
        "2 workers": pools[2].compare,
    }
    print(
        f"{'pairs/s':12}" + "".join(f"{name:>12}" for name in contenders) + "   1 worker / direct, 2 workers / direct"
    )
    for name, mix in MIXES.items():
        rates = best_rates(contenders, mix, num, repeats)
        one, two = rates["1 worker"] / rates["direct"], rates["2 workers"] / rates["direct"]
        goal = ("  goal met" if one >= GOAL else f"  GOAL {GOAL:.0%} MISSED") if name == "easy" else ""
        print(f"{name:12}" + "".join(f"{rate:12,.0f}" for rate in rates.values()) + f"   {one:.2f}, {two:.2f}{goal}")
    for pool in pools.values():
        pool.close()


def text_alone() -> None:
    """Verdicts that need no algebra."""
    judge = get_verifier("math")
    rows = [(f"so x is \\boxed{{\\dfrac{{{i}}}{{7}}}}.", f"\\frac{{{i}}}{{7}}") for i in range(20_000)]
    started = time.perf_counter()
    for completion, answer in rows:
        judge.judge(completion, answer, is_truncated=False)
    print(
        f"decided by text or exact numbers: {len(rows) / (time.perf_counter() - started):,.0f} completions/s, no worker"
    )


def resident() -> float:
    """MB of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def family(pid: int) -> Iterator[int]:
    for listed in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in listed.read_text().split():
            yield int(child)
            yield from family(int(child))


def held() -> tuple[int, int, int]:
    """Descriptors, threads and processes."""
    gc.collect()
    return len(os.listdir("/proc/self/fd")), threading.active_count(), len(list(family(os.getpid())))


def one_hostile_pair() -> None:
    pool = VerifierPool(workers=1, timeout_seconds=HOSTILE_TIMEOUT, memory_mb=256)
    pool.compare(batch(easy, 50, 0))
    alone = batch(easy, 400, 10_000)
    started = time.perf_counter()
    pool.compare(alone)
    without = time.perf_counter() - started
    mixed = batch(easy, 400, 20_000)
    mixed.insert(200, Comparison(answer="9^{9^{9^9}}", gold="2"))
    started = time.perf_counter()
    pool.compare(mixed)
    cost = time.perf_counter() - started - without
    print(
        f"one hostile pair costs {cost:.2f} s of one worker: two attempts of {HOSTILE_TIMEOUT} s each, and "
        f"{cost - 2 * HOSTILE_TIMEOUT:.3f} s for two new processes and what was in flight"
    )
    pool.close()


def siege(num: int) -> None:
    before = held()
    pool = VerifierPool(workers=2, timeout_seconds=HOSTILE_TIMEOUT, memory_mb=256)
    pool.compare(batch(easy, 50, 0))
    pairs = batch(hostile, num, 0)
    assert len(set(pairs)) == num
    size, started = resident(), time.perf_counter()
    with ThreadPoolExecutor(4) as threads:  # from four threads at once
        shares = list(threads.map(pool.compare, [pairs[i::4] for i in range(4)]))
    seconds = time.perf_counter() - started
    outcomes = [outcome for share in shares for outcome in share]
    words = {True: "equal", False: "different", None: "unreadable"}
    counts = Counter(str(outcome.failure or words[outcome.is_equal]) for outcome in outcomes)
    right, during = pool.compare(batch(easy, 200, 50_000)), held()
    grown = resident() - size
    pool.close()
    print(
        f"{num:,} hostile pairs in {seconds:.0f} s ({num / seconds:.0f}/s): "
        + ", ".join(f"{v:,} {k}" for k, v in counts.most_common())
    )
    twice = sum(outcome.num_attempts > 1 for outcome in outcomes)
    print(f"  verdicts lost: {num - len(outcomes)}; tried twice: {twice:,}; this process grew by {grown:.1f} MB")
    print(f"  descriptors, threads, processes before {before}, in it {during}, after {held()}; easy pairs judged then: "
          f"{sum(o.is_equal is not None for o in right)} of {len(right)}")  # fmt: skip
    assert not list(Path.cwd().glob("pwned*"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=1500, help="pairs of one timing")
    parser.add_argument("--hostile", type=int, default=10_000, help="hostile pairs; 0: none")
    parser.add_argument("--repeats", type=int, default=4)
    options = parser.parse_args()
    speed(options.pairs, options.repeats)
    text_alone()
    one_hostile_pair()
    if options.hostile:
        siege(options.hostile)


if __name__ == "__main__":
    main()
