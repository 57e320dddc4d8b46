"""The output head alone, 1,024 rows: our one pass against TRL's chunked log-probability and against full logits.

Started by `training.py --head`, one process a contender: python training_head.py NAME FOLDER VOCABULARY HIDDEN. From
hidden states and weight to log-probability and entropy of each row's target, the clipped surrogate on policy, and the
gradients of hidden states and weight; fp32, one thread; gradients equal to 1e-5 before anything is timed.

TRL: `trl.kernels.ChunkedLogProbFunction` with the chunk and the outputs of GRPOTrainer (tiles of 4,096 rows x 32,768
tokens, entropy included); without Triton its tiles are folded by torch, and made again for the gradient: four matrix
products where three are needed. The rest of its time goes by elements and weighs less the wider the hidden state is.
Memory: what the pass adds to weights and gradients, which are there before it.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from training_worker import one_thread, serve, workers

ROWS = 1024
SHAPES = [(32_768, 256), (32_768, 1024), (151_936, 256), (151_936, 1024)]
OVER_TRL, MEMORY_CHUNKS = 2.5, 2


def one_pass(weight: torch.Tensor, hidden: torch.Tensor, targets: torch.Tensor, loss: Callable[..., Any]) -> float:
    """tasks.engines.head: every row is a parent with one edge, which one token takes."""
    from tasks.core.layout import Layout
    from tasks.engines.head import head_pass

    each = np.arange(ROWS)
    layout = Layout(
        token_ids_BL=np.zeros((1, ROWS), np.int64),
        position_ids_BL=each[None],
        suffixes=None,
        parent_U=each,
        edge_parent_E=each,
        edge_token_E=targets.numpy(),
        token_edge_N=each,
    )
    head = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    head.weight = weight
    result = head_pass(SimpleNamespace(get_output_embeddings=lambda: head), hidden, layout, loss, 1.0)
    hidden.grad = result.cotangent_UH
    return float(result.loss)


def chunked(weight: torch.Tensor, hidden: torch.Tensor, targets: torch.Tensor, loss: Callable[..., Any]) -> float:
    from trl.kernels import ChunkedLogProbFunction
    from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE as CHUNK

    logprobs_N, entropy_N, *_ = ChunkedLogProbFunction.apply(
        hidden, weight, None, targets, 1.0, CHUNK, None, 1.0, ("log_probs", "entropy")
    )
    value = loss(logprobs_N, entropy_N, torch.arange(ROWS))
    value.backward()
    return float(value)


def full(weight: torch.Tensor, hidden: torch.Tensor, targets: torch.Tensor, loss: Callable[..., Any]) -> float:
    logprobs_NV = torch.log_softmax(hidden @ weight.T, dim=-1)
    with torch.no_grad():
        entropy_N = -(logprobs_NV.exp() * logprobs_NV).sum(dim=-1)
    value = loss(logprobs_NV.gather(1, targets[:, None])[:, 0], entropy_N, torch.arange(ROWS))
    value.backward()
    return float(value)


CONTENDERS = {"one pass": one_pass, "TRL chunked": chunked, "full logits": full}


def worker(name: str, folder: Path, vocabulary: int, width: int) -> None:
    """The same random head, hidden states, targets, advantages in every process."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.nn.Parameter(0.02 * torch.randn(vocabulary, width, generator=generator))
    hidden = torch.randn(ROWS, width, generator=generator).requires_grad_()
    targets = torch.randint(vocabulary, (ROWS,), generator=generator)
    advantages_N = torch.randn(ROWS, generator=generator)
    with torch.no_grad():
        sampler_N = torch.cat(
            [
                torch.log_softmax(rows @ weight.T, dim=-1).gather(1, of[:, None])[:, 0]
                for rows, of in zip(hidden.split(64), targets.split(64), strict=True)
            ]
        )

    def loss(logprobs_n: torch.Tensor, entropy_n: torch.Tensor, index_n: torch.Tensor) -> torch.Tensor:
        ratio_n = (logprobs_n - sampler_N[index_n]).exp()
        gain_n = torch.minimum(advantages_N[index_n] * ratio_n, advantages_N[index_n] * ratio_n.clamp(0.8, 1.28))
        return -gain_n.sum() / ROWS

    def update() -> float:
        weight.grad = hidden.grad = None
        return CONTENDERS[name](weight, hidden, targets, loss)

    def save(value: float) -> dict[str, Any]:
        torch.save({"weight": weight.grad, "hidden": hidden.grad}, folder / f"{name}.pt")
        return {"loss": value}

    serve(update, save)


def head_table(peer_python: str, rounds: int) -> None:
    """One line a contender for every shape, and the goals."""
    import tempfile

    for vocabulary, width in SHAPES:
        with tempfile.TemporaryDirectory(prefix="tempo-head-") as name:
            _shape(Path(name), peer_python, vocabulary, width, rounds)


def _shape(folder: Path, peer_python: str, vocabulary: int, width: int, rounds: int) -> None:
    def command(name: str) -> list[str]:
        python = peer_python if name == "TRL chunked" else sys.executable
        return [python, __file__, name, str(folder), str(vocabulary), str(width)]

    seconds: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    limits: list[float] = []
    with workers({name: command(name) for name in CONTENDERS}, folder) as contenders:
        answers = {name: contender.ask("first") for name, contender in contenders.items()}
        expected = torch.load(folder / "full logits.pt")
        for name in CONTENDERS:
            for key, gradient in torch.load(folder / f"{name}.pt").items():
                error = float((gradient - expected[key]).norm() / expected[key].norm())
                if not error <= 1e-5:
                    sys.exit(f"{name}: the gradient of the {key} differs from that of full logits by {error:.1e}")
        assert len({round(answer["loss"], 4) for answer in answers.values()}) == 1, answers
        peaks = {name: contender.ask("memory")["peak_bytes"] for name, contender in contenders.items()}
        for turn in range(2 * rounds):
            for contender in list(contenders.values())[:: -1 if turn % 2 else 1]:
                seconds[contender.name].append(contender.ask("time")["cpu_seconds"])
            limits.append(_products(vocabulary, width))
    _report(vocabulary, width, {name: median(times) for name, times in seconds.items()}, peaks, min(limits))


def _products(vocabulary: int, width: int) -> float:
    """CPU seconds of the three products that no head can do without."""
    import time

    weight, hidden, tile = torch.randn(vocabulary, width), torch.randn(ROWS, width), torch.randn(ROWS, vocabulary)
    begin = time.process_time()
    torch.mm(hidden, weight.T, out=tile)
    torch.mm(tile, weight)
    torch.mm(tile.T, hidden)
    return time.process_time() - begin


def _report(vocabulary: int, width: int, taken: dict[str, float], peaks: dict[str, float], limit: float) -> None:
    from tasks.engines.head import MAX_LOGITS

    print(f"\nhead alone: V {vocabulary}, hidden {width}, {ROWS} rows; its three products alone {limit:.2f} CPU s")
    for name, value in taken.items():
        speed, of_limit = taken["TRL chunked"] / value, limit / value
        print(
            f"{name:<14}{value:8.2f} CPU s{peaks[name] / 2**20:8.0f} MB{speed:8.2f} x TRL{of_limit:8.0%} of the limit"
        )
    speed = taken["TRL chunked"] / taken["one pass"]
    allowed = MEMORY_CHUNKS * max(MAX_LOGITS["cpu"] // vocabulary, 1) * vocabulary * 4 / 2**20
    used, verdicts = peaks["one pass"] / 2**20, {True: "met", False: "MISSED"}
    print(f"  one pass over TRL >= {OVER_TRL:g}x: {speed:.2f}x, {verdicts[speed >= OVER_TRL]}")
    print(
        f"  its memory <= 2 chunks of logits, {allowed:.0f} MB: {used:.0f} MB, {verdicts[used <= allowed]}", flush=True
    )


if __name__ == "__main__":
    one_thread()
    worker(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
