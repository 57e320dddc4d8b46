"""Credit assignment: ns per completion token of the prefix tree and TEMPO advantages, in one process on one core.

    OMP_NUM_THREADS=1 python tests/benchmarks/credit.py [--completions 10000] [--shared 12] [--chunks]

Workload: groups of 8 completions of 100 to 300 tokens; a completion shares its first tokens (exponential, mean
--shared) with an earlier one of its group. The peer is a dict trie in plain Python, one node a prefix, whose walk stops
where one completion is left; it gives the same dense advantages. The limit is one copy of the token buffer. Order
A B B A, best of --repeats for us; CPU seconds beside wall seconds show a machine that others use.
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


def workload(num_completions: int, group_size: int, mean_shared: float, *, seed: int = 0) -> Buffers:
    """Flat token ids, offsets, group offsets, binary rewards."""
    rng = np.random.default_rng(seed)
    completions: list[np.ndarray] = []
    for i in range(num_completions):
        tokens = rng.integers(0, 151_936, rng.integers(100, 301), dtype=np.int32)
        if i % group_size:
            donor = completions[i - int(rng.integers(1, i % group_size + 1))]
            shared = min(tokens.size, donor.size, int(rng.exponential(mean_shared)))
            tokens[:shared] = donor[:shared]
        completions.append(tokens)
    offsets = np.cumsum([0] + [tokens.size for tokens in completions])
    group_offsets = np.append(np.arange(0, num_completions, group_size), num_completions)
    return np.concatenate(completions), offsets, group_offsets, rng.integers(0, 2, num_completions).astype(np.float64)


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


def best_seconds(function: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Least wall and least CPU seconds of `repeats` calls."""
    walls, cpus = [], []
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        function()
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    return min(walls), min(cpus)


def report(name: str, seconds: tuple[float, float], num_tokens: int, peer_seconds: float, limit_seconds: float) -> None:
    wall, cpu = seconds
    print(
        f"{name:<38} {wall / num_tokens * 1e9:9.2f} ns/token  (CPU {cpu / num_tokens * 1e9:9.2f})"
        f"  {peer_seconds / wall:8.1f} x peer  {limit_seconds / wall * 100:6.1f} % of the copy limit"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--completions", type=int, default=10_000)
    parser.add_argument("--shared", type=float, default=12.0, help="mean tokens shared with an earlier completion")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--chunks", action="store_true", help="also time the tree at several chunk sizes")
    args = parser.parse_args()
    gc.disable()  # fair to the peer: with the collector on it took 764 ns per token instead of 160
    token_ids_N, offsets, group_offsets, rewards_R = workload(args.completions, 8, args.shared)
    completions = [part.tolist() for part in np.split(token_ids_N, offsets[1:-1])]
    bounds = list(zip(group_offsets[:-1].tolist(), group_offsets[1:].tolist(), strict=True))
    groups = [completions[low:high] for low, high in bounds]
    rewards = [rewards_R[low:high].tolist() for low, high in bounds]

    def sparse() -> Advantages:
        return compute_advantages("tempo", token_ids_N, offsets, group_offsets, rewards_R)

    expected, result = np.array(peer(groups, rewards)), sparse()
    np.testing.assert_allclose(result.advantages, expected, rtol=1e-6, atol=1e-6)  # equality before speed
    assert result.tree is not None
    num = token_ids_N.size
    print(
        f"{args.completions} completions, {num / args.completions:.0f} tokens each, groups of 8: "
        f"{result.tree.node_group_M.size} nodes, {result.td_value_K.size / args.completions:.2f} td a completion; "
        f"equal to the peer within 1e-6"
    )
    ours = {
        "tree": lambda: build_prefix_tree(token_ids_N, offsets, group_offsets),
        "tree + advantages, sparse": sparse,
        "tree + advantages, dense output": lambda: sparse().advantages,
        "grpo without a tree, dense output": lambda: (
            compute_advantages("grpo", token_ids_N, offsets, group_offsets, rewards_R, with_tree=False).advantages
        ),
    }
    before = {name: best_seconds(function, args.repeats) for name, function in ours.items()}  # A
    peer_times = best_seconds(lambda: peer(groups, rewards), 2)  # B B
    after = {name: best_seconds(function, args.repeats) for name, function in ours.items()}  # A
    target = np.empty_like(token_ids_N)
    copy = best_seconds(lambda: np.copyto(target, token_ids_N), args.repeats)
    for name, (wall, cpu) in before.items():
        report(name, (min(wall, after[name][0]), min(cpu, after[name][1])), num, peer_times[0], copy[0])
    report("peer: dict trie, dense output", peer_times, num, peer_times[0], copy[0])
    report("limit: copy of the token buffer", copy, num, peer_times[0], copy[0])
    for size in (2_048, 4_096, 8_192, 16_384, 32_768, 65_536) if args.chunks else ():
        seconds = best_seconds(
            lambda size=size: build_prefix_tree(token_ids_N, offsets, group_offsets, completions_per_chunk=size),
            args.repeats,
        )
        report(f"tree in chunks of {size} completions", seconds, num, peer_times[0], copy[0])


if __name__ == "__main__":
    main()
