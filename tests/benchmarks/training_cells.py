"""The batches of training.py: their shapes, the model that is trained on them, and the FLOPs that each layout needs."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import training_worker  # noqa: F401  (puts the repository on sys.path)
from numpy.typing import NDArray

from tasks.engines.policy import Policy, character_tokenizer, save_policy

BATCH_TOKENS = 8_192
"""A cell holds as many groups as fit into this many prompt and completion tokens, at least one and at most eight."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A place of the table: prompt and longest completion in tokens, completions a group."""

    prompt: int
    completion: int
    group: int
    is_shared: bool = False
    """Completions begin like an earlier one of their group for an exponential number of tokens, on average a quarter
    of the longest. Otherwise groups share their prompt only."""
    is_ragged: bool = True
    """Lengths uniform between half of the longest and the longest, as sampled ones differ; else all the longest."""

    @property
    def num_groups(self) -> int:
        return max(1, min(8, BATCH_TOKENS // (self.group * (self.prompt + self.completion))))

    @property
    def name(self) -> str:
        return f"{self.prompt}/{self.completion} G {self.group}{' shared' if self.is_shared else ''}"


@dataclass(frozen=True)
class Inputs:
    """A batch as every contender gets it: R completions, their tokens flat [N], and one number a token each."""

    prompts: list[NDArray[np.int32]]
    """One a group."""
    completions: list[NDArray[np.int32]]
    group_index_R: NDArray[np.int64]
    sampler_logprobs_N: NDArray[np.float32]
    advantages_N: NDArray[np.float32]

    @property
    def row_prompts(self) -> list[NDArray[np.int32]]:
        return [self.prompts[g] for g in self.group_index_R]

    @property
    def ends(self) -> NDArray[np.int64]:
        return np.cumsum([len(completion) for completion in self.completions])

    @property
    def linear_tokens(self) -> int:
        """Prompt and completion tokens, each prompt once per completion, padding never: what tokens/s counts."""
        return sum(len(self.prompts[g]) + len(c) for g, c in zip(self.group_index_R, self.completions, strict=True))

    def save(self, path: Path) -> None:
        lengths = np.array([len(completion) for completion in self.completions])
        rest = {name: value for name, value in asdict(self).items() if name not in ("prompts", "completions")}
        np.savez(path, prompts=np.stack(self.prompts), tokens=np.concatenate(self.completions), lengths=lengths, **rest)


def load_inputs(path: Path) -> Inputs:
    stored = np.load(path)
    return Inputs(
        list(stored["prompts"]),
        np.split(stored["tokens"], np.cumsum(stored["lengths"])[:-1]),
        *(stored[name] for name in ("group_index_R", "sampler_logprobs_N", "advantages_N")),
    )


def make_inputs(cell: Cell, vocabulary: int, *, seed: int = 0) -> Inputs:
    """Random tokens and advantages; the sampler's logprobs are filled in later, from the model."""
    rng = np.random.default_rng(seed)
    prompts = [rng.integers(3, vocabulary, cell.prompt, dtype=np.int32) for _ in range(cell.num_groups)]
    completions: list[NDArray[np.int32]] = []
    for i in range(cell.num_groups * cell.group):
        length = int(rng.integers(cell.completion // 2, cell.completion + 1)) if cell.is_ragged else cell.completion
        tokens = rng.integers(3, vocabulary, length, dtype=np.int32)
        if cell.is_shared and i % cell.group:
            donor = completions[i - int(rng.integers(1, i % cell.group + 1))]
            shared = min(length, donor.size, int(rng.exponential(cell.completion / 4)))
            tokens[:shared] = donor[:shared]
        completions.append(tokens)
    num_tokens = sum(len(completion) for completion in completions)
    return Inputs(
        prompts,
        completions,
        np.repeat(np.arange(cell.num_groups), cell.group),
        np.zeros(num_tokens, np.float32),
        rng.standard_normal(num_tokens).astype(np.float32),
    )


def make_policy(vocabulary: int, num_layers: int, folder: Path) -> Policy:
    """A Qwen3 of hidden 256, 4 heads of 64, 2 key-value heads, feed-forward 768, tied embedding; saved to `folder`.

    0.79 M parameters a layer, 256 a token of the vocabulary. 5.2 M are 6 layers with 2,048 tokens (the head is a tenth
    of the model) or 4 layers with 8,192 (four tenths): Qwen3-0.6B has a quarter, Qwen3-1.7B a sixth in its head.
    """
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    tokenizer = character_tokenizer("x")
    config = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    policy = Policy(model=Qwen3ForCausalLM(config).eval(), tokenizer=tokenizer, digest="")
    save_policy(policy, folder)
    return policy


def padded_rows(inputs: Inputs, budget: int) -> list[NDArray[np.int64]]:
    """The padded layout's micro-batches: completions by length, rows * longest row within the budget."""
    widths = np.array([len(p) + len(c) for p, c in zip(inputs.row_prompts, inputs.completions, strict=True)])
    rows: list[list[int]] = []
    for r in np.argsort(-widths, kind="stable").tolist():
        if rows and (len(rows[-1]) + 1) * widths[rows[-1][0]] <= budget:
            rows[-1].append(r)
        else:
            rows.append([r])
    return [np.array(part) for part in rows]


@dataclass(frozen=True)
class Flops:
    """Floating-point operations of forward and backward, nothing computed twice."""

    weights: int
    """Parameters of the layers' matrices."""
    head: int
    """vocabulary * hidden."""
    attention: int
    """layers * heads * head size."""

    @classmethod
    def of(cls, model: Any) -> "Flops":
        config = model.config
        layers = sum(p.numel() for name, p in model.named_parameters() if p.dim() == 2 and "embed" not in name)
        width = config.num_attention_heads * config.head_dim
        return cls(layers, config.vocab_size * config.hidden_size, config.num_hidden_layers * width)

    def count(self, depths: NDArray[np.int64], head_rows: int) -> float:
        """6 per weight and token; 12 per attended key (two products, thrice); `depths`: position of every token."""
        keys = float(depths.sum() + depths.size)
        return 6.0 * self.weights * depths.size + 12.0 * self.attention * keys + 6.0 * self.head * head_rows

    def padded(self, inputs: Inputs, rows: list[NDArray[np.int64]]) -> float:
        """Micro-batches of rows (indices of completions), each as wide as its longest; the head where it is needed."""
        widths = np.array([len(p) + len(c) for p, c in zip(inputs.row_prompts, inputs.completions, strict=True)])
        depths = [np.tile(np.arange(widths[part].max()), len(part)) for part in rows]
        return self.count(np.concatenate(depths), len(inputs.advantages_N))

    def packed(self, inputs: Inputs) -> float:
        """Every row as long as it is."""
        widths = [len(p) + len(c) for p, c in zip(inputs.row_prompts, inputs.completions, strict=True)]
        return self.count(np.concatenate([np.arange(width) for width in widths]), len(inputs.advantages_N))

    def grouped(self, inputs: Inputs) -> float:
        """Each group's prompt once, its completions apart (prefix-grouper)."""
        depths = [np.arange(len(prompt)) for prompt in inputs.prompts]
        depths += [
            len(inputs.prompts[g]) + np.arange(len(c))
            for g, c in zip(inputs.group_index_R, inputs.completions, strict=True)
        ]
        return self.count(np.concatenate(depths), len(inputs.advantages_N))

    def tree(self, inputs: Inputs) -> float:
        """Each prefix once; one row of the head per prefix that anything follows. A split tree is not counted."""
        depths, head_rows = [np.arange(len(prompt)) for prompt in inputs.prompts], 0
        for g, prompt in enumerate(inputs.prompts):
            before: NDArray[np.int32] = np.zeros(0, np.int32)
            nodes, leaves = 0, 0
            own = [c for c, of in zip(inputs.completions, inputs.group_index_R, strict=True) if of == g]
            for completion in sorted(own, key=list):
                least = min(len(before), len(completion))
                differs = np.flatnonzero(before[:least] != completion[:least])
                common = int(differs[0]) if differs.size else least
                leaves += 0 if common == len(before) and len(before) else 1
                nodes += len(completion) - common
                depths.append(len(prompt) + np.arange(common, len(completion)))
                before = completion
            head_rows += 1 + nodes - leaves  # the prompt's end and every node, but the leaves, predict a token
        return self.count(np.concatenate(depths), head_rows)
