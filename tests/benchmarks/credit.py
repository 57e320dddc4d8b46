"""Credit assignment: ns per completion token of the prefix tree and TEMPO advantages, in one process on one core.

    OMP_NUM_THREADS=1 python tests/benchmarks/credit.py [--completions 10000] [--scaling] [--chunks]

Workloads: groups of completions of 100 to 300 tokens; a completion shares its first tokens (exponential mean) with an
earlier one of its group. G = 8 with a mean of 12 shared tokens, and G = 16 with 60. The peer is a dict trie in plain
Python, one node a prefix, whose walk stops where one completion is left; it gives the same dense advantages, with
Python's garbage collector off and on (it finds nothing to free, and walks the trie again and again). The limit is one
copy of the token buffer. Order A B B A, best of --repeats for us; CPU seconds beside wall seconds show a machine that
others use. `--scaling` adds a million completions (2.5 GB). Parquet in and out: credit_pipeline.py.

numba 0.68.1 was measured on the same inputs, equal to 1e-5, and is no dependency. Insertion sort that carries common
prefixes, dense output, one core of an EPYC with AVX-512: 2.3 ns per token where numpy takes 4.0 (G = 8), 3.0 where it
takes 6.9 (G = 16). At the paper's step (512 prompts, G = 7, 2,048 tokens: 7.3 M tokens) that is 12 ms of a step of
minutes, for 208 MB of numba and LLVM, 2.9 s of compiling in every process, and a second implementation to keep equal.
"""

import argparse
import gc
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tasks.core.advantage import Advantages, compute_advantages
from tasks.core.prefix_tree import build_prefix_tree

Buffers = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
Seconds = tuple[float, float]  # wall, CPU


def workload(num_completions: int, group_size: int, mean_shared: float, *, seed: int = 0) -> Buffers:
    """Flat token ids, offsets, group offsets, binary rewards."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(100, 301, num_completions)
    offsets = np.append(0, np.cumsum(lengths))
    token_ids_N = rng.integers(0, 151_936, offsets[-1], dtype=np.int32)
    place = np.arange(num_completions) % group_size
    donors = np.arange(num_completions) - rng.integers(1, np.maximum(place, 1) + 1)
    wanted = rng.exponential(mean_shared, num_completions).astype(np.int64)
    shared = np.minimum(wanted, np.minimum(lengths, lengths[donors])) * (place > 0)
    for i in np.flatnonzero(shared).tolist():
        begin, donor, count = offsets[i], offsets[donors[i]], shared[i]
        token_ids_N[begin : begin + count] = token_ids_N[donor : donor + count]
    group_offsets = np.append(np.arange(0, num_completions, group_size), num_completions)
    return token_ids_N, offsets, group_offsets, rng.integers(0, 2, num_completions).astype(np.float64)


def peer(groups: list[list[list[int]]], rewards: list[list[float]], epsilon: float = 1e-6) -> list[float]:
    """Dense TEMPO advantages by a dict trie, without numpy: insert each completion, then walk it until it is alone."""
    dense: list[float] = []
    for group, group_rewards in zip(groups, rewards, strict=True):
        size = len(group)
        mean = sum(group_rewards) / size
        has_signal = min(group_rewards) != max(group_rewards)
        std = (sum((r - mean) ** 2 for r in group_rewards) / max(size - 1, 1)) ** 0.5
        scale = std + epsilon
        root: list = [size, sum(group_rewards), {}]  # completions, sum of rewards, children by token
        for tokens, reward in zip(group, group_rewards, strict=True):
            children = root[2]
            for token in tokens:
                node = children.get(token)
                if node is None:
                    children[token] = node = [0, 0.0, {}]
                node[0] += 1
                node[1] += reward
                children = node[2]
        for tokens, reward in zip(group, group_rewards, strict=True):
            base = (reward - mean) / scale if has_signal else 0.0
            credit = [base] * len(tokens)
            count, total, children = root
            for t, token in enumerate(tokens):
                if count == 1 or not has_signal:
                    break
                next_count, next_total, children = children[token]
                if next_count != count:
                    credit[t] = base + (next_total / next_count - total / count) / scale
                count, total = next_count, next_total
            dense += credit
    return dense


def best_seconds(function: Callable[[], object], repeats: int) -> Seconds:
    """Least wall and least CPU seconds of `repeats` calls."""
    walls, cpus = [], []
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        function()
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    return min(walls), min(cpus)


def report(name: str, seconds: Seconds, num_tokens: int, peer_cpu: float, limit_cpu: float, goal: str = "") -> None:
    wall, cpu = seconds
    print(
        f"  {name:<36} {wall / num_tokens * 1e9:8.2f} ns/token  (CPU {cpu / num_tokens * 1e9:8.2f})"
        f"  {peer_cpu / cpu:8.1f} x peer  {limit_cpu / cpu * 100:6.1f} % of the copy limit  {goal}"
    )


def met(value: float, goal: float, *, at_least: bool = False) -> str:
    is_met = value >= goal if at_least else value <= goal
    return f"goal {'>=' if at_least else '<='} {goal:g}: {'met' if is_met else 'MISSED'}"


def advantages(buffers: Buffers, estimator: str = "tempo", *, with_tree: bool = True) -> Advantages:
    return compute_advantages(estimator, *buffers, with_tree=with_tree)


def timed_peer(buffers: Buffers, expected: np.ndarray) -> tuple[Seconds, Seconds]:
    """The dict trie's seconds with the garbage collector off and on, after it gave the same advantages."""
    token_ids_N, offsets, group_offsets, rewards_R = buffers
    completions = [part.tolist() for part in np.split(token_ids_N, offsets[1:-1])]
    bounds = list(zip(group_offsets[:-1].tolist(), group_offsets[1:].tolist(), strict=True))
    groups = [completions[low:high] for low, high in bounds]
    rewards = [rewards_R[low:high].tolist() for low, high in bounds]
    np.testing.assert_allclose(expected, peer(groups, rewards), rtol=1e-6, atol=1e-6)  # equality before speed
    off = best_seconds(lambda: peer(groups, rewards), 2)
    gc.enable()
    on = best_seconds(lambda: peer(groups, rewards), 2)
    gc.disable()
    return off, on


def measure(num_completions: int, group_size: int, mean_shared: float, repeats: int, goal: float) -> None:
    """One workload: our parts, the peer, the limit."""
    buffers = workload(num_completions, group_size, mean_shared)
    token_ids_N, num = buffers[0], buffers[0].size
    result = advantages(buffers)
    ours: dict[str, Callable[[], object]] = {
        "tree": lambda: build_prefix_tree(*buffers[:3]),
        "tree + advantages, sparse": lambda: advantages(buffers),
        "tree + advantages, dense output": lambda: advantages(buffers).advantages,
        "tempo_loo, dense output": lambda: advantages(buffers, "tempo_loo").advantages,
        "prm_weighted, dense output": lambda: advantages(buffers, "prm_weighted").advantages,
        "grpo without a tree, dense output": lambda: advantages(buffers, "grpo", with_tree=False).advantages,
    }
    before = {name: best_seconds(function, repeats) for name, function in ours.items()}  # A
    off, on = timed_peer(buffers, result.advantages)  # B B
    after = {name: best_seconds(function, repeats) for name, function in ours.items()}  # A
    target = np.empty_like(token_ids_N)
    copy = best_seconds(lambda: np.copyto(target, token_ids_N), repeats)
    assert result.tree is not None
    print(
        f"G = {group_size}, {num_completions} completions of {num / num_completions:.0f} tokens, {mean_shared:g} shared"
        ": "
        f"{result.tree.node_group_M.size} nodes, {result.td_value_K.size / num_completions:.2f} td a completion; equal "
        "to the peer within 1e-6"
    )
    for name, (wall, cpu) in before.items():
        seconds = min(wall, after[name][0]), min(cpu, after[name][1])
        verdict = met(seconds[1] / num * 1e9, goal) if name == "tree + advantages, dense output" else ""
        report(name, seconds, num, off[1], copy[1], verdict)
    ours_cpu = min(before["tree + advantages, dense output"][1], after["tree + advantages, dense output"][1])
    report("peer: dict trie, collector off", off, num, off[1], copy[1], met(off[1] / ours_cpu, 200, at_least=True))
    report("peer: dict trie, collector on", on, num, off[1], copy[1], met(on[1] / ours_cpu, 200, at_least=True))
    report("limit: copy of the token buffer", copy, num, off[1], copy[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--completions", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--scaling", action="store_true", help="also time 100,000 and a million completions")
    parser.add_argument("--chunks", action="store_true", help="also time the tree at several chunk sizes")
    args = parser.parse_args()
    gc.disable()
    measure(args.completions, 8, 12.0, args.repeats, goal=5)
    measure(args.completions, 16, 60.0, args.repeats, goal=8)
    if args.scaling:
        cpu = {}
        for num in (100_000, 1_000_000):
            buffers = workload(num, 8, 12.0)
            cpu[num] = best_seconds(lambda buffers=buffers: advantages(buffers).advantages, 4)[1]
            print(f"G = 8, {num} completions: {cpu[num] / buffers[0].size * 1e9:.2f} ns/token")
        ratio = cpu[1_000_000] / cpu[100_000]
        print(f"  t(1,000,000) / t(100,000) = {ratio:.1f}  {met(ratio, 11)}")
    buffers = workload(max(args.completions, 65_536), 8, 12.0) if args.chunks else None
    for size in (2_048, 4_096, 8_192, 16_384, 32_768, 65_536) if buffers else ():
        _, cpu_seconds = best_seconds(
            lambda size=size: build_prefix_tree(*buffers[:3], completions_per_chunk=size), args.repeats
        )
        print(f"tree in chunks of {size} completions: {cpu_seconds / buffers[0].size * 1e9:.2f} ns/token")


if __name__ == "__main__":
    main()
