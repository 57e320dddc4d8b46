"""Scores: pass@k and maj@k of 10,000 prompts x 64 completions beside the usual loops over prompts, in one process.

    OMP_NUM_THREADS=1 python tests/benchmarks/evaluation.py [--prompts 10000] [--samples 64]

The peer of pass@k is the numerically stable product of Chen et al. (arXiv 2107.03374, fig. 3), one prompt at a time,
from the same counts (where k is all samples it needs no product); that of maj@k is collections.Counter, and sorting the
votes gains little over it. Equality first; order A B B A, best of --repeats for us.
"""

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tasks.core.statistics import attempts_up_to, majority_mean, pass_at


def usual_pass_at_k(num_correct_P: np.ndarray, num_samples_P: np.ndarray, k: int) -> float:
    chances = []
    for n, c in zip(num_samples_P, num_correct_P, strict=True):
        missing = n - c < k
        chances.append(1.0 if missing else 1.0 - np.prod(1.0 - k / np.arange(n - c + 1, n + 1)))
    return float(np.mean(chances))


def usual_majority(votes_PG: list[list[int]]) -> float:
    total = 0.0
    for votes in votes_PG:
        tally = Counter(vote for vote in votes if vote >= 0)
        top = max(tally.values(), default=0)
        tied = [vote for vote, count in tally.items() if count == top]
        total += tied.count(0) / len(tied) if tied else 0.0
    return total / len(votes_PG)


def seconds_of(work: Callable[[], object], repeats: int) -> float:
    best = float("inf")
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - started)
    return best


def compare(name: str, ours: Callable[[], float], theirs: Callable[[], float], repeats: int) -> None:
    assert abs(ours() - theirs()) < 1e-9, name
    times = [seconds_of(ours, repeats), seconds_of(theirs, 1), seconds_of(theirs, 1), seconds_of(ours, repeats)]
    us, them = min(times[0], times[3]), min(times[1:3])
    print(f"{name:<28} {1e3 * us:9.3f} ms   usual loop {1e3 * them:9.1f} ms   {them / us:6.0f} x")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=10_000)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=20)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    shape = (options.prompts, options.samples)
    is_correct_PG = rng.random(shape) < rng.beta(0.5, 1.0, (options.prompts, 1))
    votes_PG = np.where(is_correct_PG, 0, rng.integers(-1, 20, shape))
    votes_PG = np.where(~is_correct_PG & (votes_PG == 0), 1, votes_PG)  # only correct ones vote 0
    num_correct_P, num_samples_P = is_correct_PG.sum(axis=1), np.full(options.prompts, options.samples)
    attempts = attempts_up_to(options.samples)
    print(f"{options.prompts:,} prompts x {options.samples} completions")
    for k in (1, 8, options.samples):
        compare(
            f"pass@{k}",
            lambda k=k: pass_at([k], num_correct_P, num_samples_P).item(),
            lambda k=k: usual_pass_at_k(num_correct_P, num_samples_P, k),
            options.repeats,
        )
    compare(
        f"pass@ all {len(attempts)} of a score",
        lambda: float(pass_at(attempts, num_correct_P, num_samples_P).sum()),
        lambda: sum(usual_pass_at_k(num_correct_P, num_samples_P, k) for k in attempts),
        options.repeats,
    )
    votes_R, prompt_index_R = votes_PG.ravel(), np.repeat(np.arange(options.prompts), options.samples)
    lists = votes_PG.tolist()
    compare("maj@k", lambda: majority_mean(votes_R, prompt_index_R), lambda: usual_majority(lists), 5)


if __name__ == "__main__":
    main()
