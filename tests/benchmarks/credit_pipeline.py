"""The credit stage from Parquet to Parquet, against reading and writing the same columns, and its memory.

    OMP_NUM_THREADS=1 python tests/benchmarks/credit_pipeline.py [--completions 65536] [--estimator tempo] [--memory]

Workload: credit.py's, G = 8, about 200 random tokens a completion (the worst case of zstd), binary rewards. Two peers
read and write the very columns that the stage reads and writes, with the same encodings: `bare` with pyarrow alone, and
`stored` as the store does it, with a digest of the contents and of the file. Order A B B A, best of --repeats, CPU and
wall seconds: the stage hashes in a second thread while it compresses. Contracts are not part of it.

`--memory`: peak resident memory of the stage above that of its imports, in a process of its own, at --completions and
four times as many.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from credit import met, workload  # type: ignore[import-not-found]

from storage.artifact import Artifact, Store
from storage.parquet import ROW_GROUP_ROWS, list_array, read_table
from storage.schema import FLAGS, FLOATS, TABLES, TOKENS
from tasks.config import CreditConfig
from tasks.core.advantage import SIGNALS
from tasks.credit import credit
from tasks.place import Context

READ = {"rollouts": ["rollout_id", "group_id", "token_ids", "loss_mask"], "verdicts": ["rollout_id", "reward"]}
WRITTEN = ("prefix_nodes", "advantages")


def make_inputs(store: Store, num: int) -> None:
    """Rollouts, verdicts and signals of `num` completions, as artifacts."""
    token_ids_N, offsets, _, rewards_R = workload(num, 8, 12.0)
    group = np.arange(num) // 8
    group_id = pa.array([f"0123456789ab-{g:06d}" for g in group.tolist()])
    rollout_id = pa.array([f"0123456789ab-{g:06d}-{i % 8:03d}" for i, g in enumerate(group.tolist())])
    signal_N = np.random.default_rng(1).random(token_ids_N.size, dtype=np.float32)
    floats, nothing = list_array(signal_N, offsets, FLOATS), pa.nulls(num, FLOATS)
    ids = {"rollout_id": rollout_id, "group_id": group_id}
    text = ("prompt_id", "text", "finish_reason", "policy", "sampler", "decoding")
    numbers = dict.fromkeys(("seed", "temperature", "top_p", "max_tokens", "epoch"), np.ones(num))
    rollouts = ids | {"token_ids": list_array(token_ids_N, offsets, TOKENS), "sampler_logprobs": nothing.fill_null([])}
    rollouts |= {"loss_mask": pa.nulls(num, FLAGS)} | numbers | {name: pa.repeat("same", num) for name in text}
    verdicts = ids | {"verifier": pa.repeat("v", num), "verifier_version": np.ones(num), "reward": rewards_R}
    verdicts |= {"status": pa.repeat("correct", num), "extracted_answer": pa.nulls(num, pa.string())}
    verdicts |= {"failure": pa.nulls(num, pa.string()), "num_attempts": pa.repeat(1, num)}
    unasked = dict.fromkeys(("trainer_logprobs", "kept_mass", "reference_logprobs"), nothing)
    signals = ids | unasked | {"entropies": floats, "values": floats}
    made = {"rollouts": rollouts, "verdicts": verdicts | {"seconds": np.zeros(num)}, "signals": signals}
    for name, columns in made.items():
        with store.staging(f"{name}k") as staging:
            staging.add_table(name, columns)
            store.commit(staging, name, f"{name}k", {"key": name})


def input_of(store: Store, name: str) -> Artifact:
    return Artifact(name, f"{name}k", store.path_of(name, f"{name}k"))


def run_stage(store: Store, estimator: str, *, keeps: bool = False) -> list[pa.Table]:
    """The stage without its contracts and its commit; the tables it wrote, if asked for."""
    names = ("rollouts", "verdicts", "signals") if estimator in SIGNALS else ("rollouts", "verdicts")
    with store.staging("creditk") as staging:
        context = Context(
            staging=staging, key="creditk", identity="", device="cpu", threads=1, progress=lambda *_: None
        )
        parts = {name: input_of(store, name).part(name) for name in names}
        credit.__wrapped__(context, **parts, estimator=estimator, config=CreditConfig())  # type: ignore[attr-defined]
        return [read_table(staging.path / f"{name}.parquet") for name in WRITTEN] if keeps else []


def read_inputs(store: Store, estimator: str) -> None:
    signals = {"signals": list(SIGNALS[estimator])} if estimator in SIGNALS else {}
    for name, columns in (READ | signals).items():
        input_of(store, name).part(name).read(columns)


def bare(store: Store, tables: list[pa.Table], estimator: str) -> None:
    read_inputs(store, estimator)
    for name, rows in zip(WRITTEN, tables, strict=True):
        columns = TABLES[name].columns
        floats = [c for c in columns if pa.types.is_list(c.type) and pa.types.is_floating(c.type.value_type)]
        pq.write_table(
            rows,
            store.root / "bare.parquet",
            compression="zstd",
            compression_level=1,
            use_dictionary=[c.name for c in columns if pa.types.is_string(c.type)],
            column_encoding={f"{c.name}.list.element": "BYTE_STREAM_SPLIT" for c in floats},
            row_group_size=ROW_GROUP_ROWS,
        )


def stored(store: Store, tables: list[pa.Table], estimator: str) -> None:
    read_inputs(store, estimator)
    with store.staging("copyk") as staging:
        for name, rows in zip(WRITTEN, tables, strict=True):
            staging.add_table(name, {column: rows.column(column) for column in rows.column_names})


def seconds(function: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Least CPU seconds (of all threads) and least wall seconds."""
    found = []
    for _ in range(repeats):
        cpu, wall = time.process_time(), time.perf_counter()
        function()
        found.append((time.process_time() - cpu, time.perf_counter() - wall))
    return min(cpu for cpu, _ in found), min(wall for _, wall in found)


def compare(store: Store, num: int, estimator: str, repeats: int) -> None:
    tables = run_stage(store, estimator, keeps=True)
    num_tokens = int(workload(num, 8, 12.0)[1][-1])
    ours = [seconds(lambda: run_stage(store, estimator), repeats)]  # A
    peers = {  # B B
        "bare": seconds(lambda: bare(store, tables, estimator), 2 * repeats),
        "stored": seconds(lambda: stored(store, tables, estimator), 2 * repeats),
    }
    ours.append(seconds(lambda: run_stage(store, estimator), repeats))  # A
    cpu, wall = min(cpu for cpu, _ in ours), min(wall for _, wall in ours)
    print(f"{num} completions, {num_tokens / num:.0f} tokens each, {estimator}; ns per token")
    for name, (its_cpu, its_wall) in peers.items():
        print(f"  {name:<8} CPU {its_cpu / num_tokens * 1e9:6.1f}  wall {its_wall / num_tokens * 1e9:6.1f}")
    print(f"  {'stage':<8} CPU {cpu / num_tokens * 1e9:6.1f}  wall {wall / num_tokens * 1e9:6.1f}")
    for name, (its_cpu, its_wall) in peers.items():
        cpus, walls = cpu / its_cpu, wall / its_wall
        print(f"  x {name:<8} CPU {cpus:.2f} ({met(cpus, 1.5)})  wall {walls:.2f} ({met(walls, 1.5)})")


def peak_mib() -> float:
    """Peak resident memory of this program: getrusage would count what its parent held before the exec."""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024


def print_memory(root: Path, estimator: str) -> None:
    """Peak memory of one run of the stage, in this process, above what it had before."""
    before = peak_mib()
    run_stage(Store(root), estimator)
    print(f"  {peak_mib() - before:.0f} MiB above {before:.0f} MiB of imports", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--completions", type=int, default=65_536)
    parser.add_argument("--estimator", default="tempo")
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--root", type=Path, help="inputs that are there already: measure memory alone")
    args = parser.parse_args()
    if args.root:
        print_memory(args.root, args.estimator)
        return
    for num in (args.completions, 4 * args.completions) if args.memory else (args.completions,):
        with tempfile.TemporaryDirectory() as folder:
            store = Store(Path(folder))
            store.open_for_writing()
            make_inputs(store, num)
            if args.memory:
                print(f"{num} completions, {args.estimator}:", flush=True)
                command = [sys.executable, __file__, "--root", folder, "--estimator", args.estimator]
                subprocess.run(command, check=True)
            else:
                compare(store, num, args.estimator, args.repeats)


if __name__ == "__main__":
    main()
