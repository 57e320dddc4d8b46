"""The training step: padded, packed and tree rows against prefix-grouper and TRL, same weights and batch, one thread.

    python tests/benchmarks/training.py --setup-peers                 once: .venv-peers, with training_peers.txt
    python tests/benchmarks/training.py                               the cells that the goals name (about half an hour)
    python tests/benchmarks/training.py --quick | --grid              two cells | all of them
    python tests/benchmarks/training.py --cell 256/128/8 --cell 256/64/8/shared --vocab 32768
    python tests/benchmarks/training.py --head                        the output head alone (training_head.py)

One update = gradient of the clipped surrogate (token mean, no KL, per-token advantages) on the cell's batch, its norm,
one AdamW step; fp32. Model and batch: training_cells.py. What the peers do and what differs: training_peers.py. Each
contender is a process of its own that answers one request at a time; all run with one thread and the same settings of
malloc and denormal numbers. First every contender's gradient is compared with that of padded (norm of the difference at
most 1e-5 of the gradient's for ours, 1e-4 for the peers), then memory is measured, then time: A B B A.

    tokens/s   prompt + completion tokens of all completions, each prompt once per completion, padding never: the same
               number for every contender; over median CPU seconds (the median wall seconds stand beside them)
    peak       resident memory during an update, less what was resident before it (weights, gradients, moments)
    GEMM       FLOPs that the contender's layout needs (none twice, head at completion tokens only) per CPU second, of
               the speed of the model's own matrix products, measured in the same rounds
    FLOPs      FLOPs of padded / FLOPs of this layout: the speed-up over padded that its sharing allows
"""

import argparse
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from training_cells import BATCH_TOKENS, Cell, Flops, Inputs, make_inputs, make_policy, padded_rows
from training_goals import goals
from training_worker import ROOT, Contender, one_thread, workers

from tasks.engines.policy import Policy
from tasks.engines.trainer import completion_logprobs

PEERS = ROOT / ".venv-peers"
PEER_PYTHON = PEERS / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
LAYOUTS = ("padded", "packed", "tree", "auto")
PEER_NAMES = ("prefix-grouper", "trl")
GOAL_CELLS = ["256/128/8", "512/64/8", "256/64/8", "32/512/8", "1024/64/16", "64/128/4", "256/128/1"]
GRID = [f"{p}/{c}/{g}" for p in (32, 256, 1024) for c in (64, 512) for g in (4, 16)]
QUICK = ["256/128/8", "256/64/8/shared"]
TOLERANCE = dict.fromkeys(LAYOUTS, 1e-5) | dict.fromkeys(PEER_NAMES, 1e-4)


def setup_peers() -> None:
    """Make .venv-peers: the peers' pinned versions, everything else as in constraints.txt."""
    venv.create(PEERS, with_pip=True)
    requirements = Path(__file__).with_name("training_peers.txt")
    command = [PEER_PYTHON, "-m", "pip", "install", "-q", "-r", requirements, "-c", ROOT / "constraints.txt"]
    subprocess.run(command, check=True)


def parse_cell(text: str, is_ragged: bool) -> Cell:
    numbers, shared = text.split("/")[:3], text.split("/")[3:]
    if len(numbers) != 3 or not all(number.isdigit() for number in numbers) or shared not in ([], ["shared"]):
        sys.exit(f"--cell: expected PROMPT/COMPLETION/G or PROMPT/COMPLETION/G/shared, got {text!r}")
    prompt, completion, group = map(int, numbers)
    return Cell(prompt=prompt, completion=completion, group=group, is_shared=bool(shared), is_ragged=is_ragged)


def commands(folder: Path, names: list[str], micro_batch_tokens: int) -> dict[str, list[str]]:
    """How each contender is started."""

    def command(name: str) -> list[str]:
        python, script = (PEER_PYTHON, "training_peers") if name in PEER_NAMES else (sys.executable, "training_ours")
        return [str(python), str(Path(__file__).with_name(f"{script}.py")), name, str(folder), str(micro_batch_tokens)]

    return {name: command(name) for name in names}


def check_gradients(folder: Path, contenders: dict[str, Contender]) -> dict[str, dict[str, Any]]:
    """One update each; exits where a gradient, loss or log-probability is not that of the first contender."""
    answers = {name: contender.ask("first") for name, contender in contenders.items()}
    first = next(iter(contenders))
    expected = load_file(folder / f"{first}.safetensors")
    norm = torch.stack([g.double().square().sum() for g in expected.values()]).sum().sqrt()
    for name, answer in answers.items():
        got = load_file(folder / f"{name}.safetensors")
        assert got.keys() == expected.keys(), f"{name}: other parameters: {got.keys() ^ expected.keys()}"
        error = torch.stack([(got[k].double() - g.double()).square().sum() for k, g in expected.items()]).sum().sqrt()
        answer["gradient_error"] = float(error / norm)
        differs = abs(answer["loss"] - answers[first]["loss"]), answer.get("logprob_error", 0.0)
        if not (answer["gradient_error"] <= TOLERANCE[name] and max(differs) <= 1e-4):
            sys.exit(f"{name} computes something else than {first}: {answer}, {first}: {answers[first]}")
    return answers


def gemm_seconds(policy: Policy, num_tokens: int) -> tuple[float, float]:
    """FLOPs and CPU seconds of the products, forward and backward, of one layer's matrices and of the head's, alone."""
    shapes = [tuple(p.shape) for name, p in policy.model.named_parameters() if p.dim() == 2 and ".layers.0." in name]
    flops = seconds = 0.0
    for out, into in [*shapes, tuple(policy.model.get_output_embeddings().weight.shape)]:
        x, w, y = torch.randn(num_tokens, into), torch.randn(out, into), torch.randn(num_tokens, out)
        begin = time.process_time()
        for _ in range(3):
            x @ w.T, y @ w, y.T @ x
        flops, seconds = flops + 3 * 6.0 * num_tokens * out * into, seconds + time.process_time() - begin
    return flops, seconds


def measure(cell: Cell, names: list[str], args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Figures of every contender, by name; equality first."""
    with tempfile.TemporaryDirectory(prefix="tempo-training-") as name:
        folder = Path(name)
        policy, inputs = make_policy(args.vocab, args.layers, folder / "policy"), make_inputs(cell, args.vocab)
        rows = inputs.row_prompts, inputs.completions
        inputs.sampler_logprobs_N[:] = completion_logprobs(policy, *rows, 1.0, micro_batch_tokens=BATCH_TOKENS)[0]
        inputs.save(folder / "batch.npz")
        seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
        speeds: list[float] = []
        with workers(commands(folder, names, args.micro_batch_tokens), folder) as contenders:
            answers = check_gradients(folder, contenders)
            peaks = {name: contender.ask("memory")["peak_bytes"] for name, contender in contenders.items()}
            for turn in range(2 * args.rounds):
                for contender in list(contenders.values())[:: -1 if turn % 2 else 1]:
                    answer = contender.ask("time")
                    seconds[contender.name].append((answer["cpu_seconds"], answer["wall_seconds"]))
                flops, taken = gemm_seconds(policy, 1024)
                speeds.append(flops / taken)
    clocks = {
        name: {"cpu": median(s[0] for s in taken), "wall": median(s[1] for s in taken)}
        for name, taken in seconds.items()
    }
    return {
        name: figures(answers[name].get("layout", name), inputs, policy, args.micro_batch_tokens)
        | clocks[name]
        | {"gemm": max(speeds), "peak": peaks[name], "error": answers[name]["gradient_error"]}
        for name in names
    }


def figures(layout: str, inputs: Inputs, policy: Policy, budget: int) -> dict[str, Any]:
    """What does not need the clock."""
    flops = Flops.of(policy.model)
    needed = {
        "padded": flops.padded(inputs, padded_rows(inputs, budget)),
        "trl": flops.padded(inputs, [np.arange(len(inputs.completions))]),
        "packed": flops.packed(inputs),
        "prefix-grouper": flops.grouped(inputs),
        "tree": flops.tree(inputs),
    }
    return {
        "tokens": inputs.linear_tokens,
        "flops": needed[layout],
        "flop_ratio": needed["padded"] / needed[layout],
        "layout": layout,
    }


def report(cell: Cell, measured: dict[str, dict[str, Any]], args: argparse.Namespace) -> None:
    """The cell's table and what the goals say of it."""
    any_row, error = next(iter(measured.values())), max(row["error"] for row in measured.values())
    print(
        f"\n{cell.name}, {args.layers} layers, V {args.vocab}: {cell.num_groups} groups, {any_row['tokens']} tokens; ",
        end="",
    )
    print(f"GEMM {any_row['gemm'] / 1e9:.0f} GFLOP/s; gradients equal to {error:.0e}")
    titles = ("tokens/s", "CPU s", "wall s", "peak MB", "GEMM", "x padded", "x TRL", "FLOPs")
    print(" " * 16 + "".join(f"{title:>9}" for title in titles))
    for name, row in measured.items():
        ratios = [f"{measured[of]['cpu'] / row['cpu']:.2f}" if of in measured else "-" for of in ("padded", "trl")]
        label = f"auto: {row['layout']}" if name == "auto" else name
        print(
            f"{label:<16}{row['tokens'] / row['cpu']:9.0f}{row['cpu']:9.2f}{row['wall']:9.2f}{row['peak'] / 2**20:9.0f}"
            f"{row['flops'] / row['cpu'] / row['gemm']:9.0%}{ratios[0]:>9}{ratios[1]:>9}{row['flop_ratio']:9.2f}"
        )
    for line in goals(cell, measured, args.vocab):
        print(f"  {line}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--setup-peers", action="store_true", help="install TRL and prefix-grouper, then stop")
    parser.add_argument("--cell", action="append", default=[], help="PROMPT/COMPLETION/G[/shared]; may be repeated")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--grid", action="store_true", help="the goals' cells and prompt x completion x G around them")
    parser.add_argument("--head", action="store_true", help="the output head alone")
    parser.add_argument("--contenders", default=",".join((*LAYOUTS, *PEER_NAMES)), help="the first is the measure")
    parser.add_argument("--vocab", type=int, default=2048)
    parser.add_argument("--layers", type=int, default=6, help="of the model: see make_policy")
    parser.add_argument("--equal-lengths", action="store_true", help="no ragged completions")
    parser.add_argument("--micro-batch-tokens", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=2, help="rounds of A B B A")
    args = parser.parse_args()
    if args.setup_peers:
        return setup_peers()
    names = args.contenders.split(",")
    if any(name in PEER_NAMES for name in names) and not PEER_PYTHON.exists():
        sys.exit(f"{PEERS} does not exist: run with --setup-peers, or with --contenders {','.join(LAYOUTS)}")
    one_thread()
    if args.head:
        from training_head import head_table

        return head_table(str(PEER_PYTHON), args.rounds)
    chosen = args.cell or (QUICK if args.quick else [])
    if not chosen:
        both = [[cell] if cell.endswith("/1") else [cell, f"{cell}/shared"] for cell in GOAL_CELLS + GRID * args.grid]
        chosen = [cell for pair in both for cell in pair]
    for text in chosen:
        cell = parse_cell(text, not args.equal_lengths)
        report(cell, measure(cell, names, args), args)
    return None


if __name__ == "__main__":
    main()
