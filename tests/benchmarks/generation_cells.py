"""The cells of generation.py: models of three sizes, their prompts, and transformers' own `generate`."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import training_worker  # noqa: F401  (puts the repository on sys.path)
from numpy.typing import NDArray

from tasks.engines.policy import Policy, character_tokenizer, make_tiny_policy, save_policy


@dataclass(frozen=True, kw_only=True)
class Size:
    """A Qwen3 (hidden, layers; heads of 64 over the hidden size, half as many for keys and values) and its prompts."""

    hidden: int
    layers: int
    prompt: int
    """Tokens of a prompt."""
    completion: int
    """Tokens of a completion: nothing ends it before."""
    completions: int
    """In one call of a sampler; 0: 48 prompts, as in the quickstart."""


SIZES = {
    "tiny": Size(hidden=96, layers=3, prompt=0, completion=40, completions=0),
    "5M": Size(hidden=256, layers=6, prompt=256, completion=64, completions=96),
    "30M": Size(hidden=512, layers=9, prompt=256, completion=64, completions=32),
}
"""tiny is the built-in policy with prompts and completions of the quickstart's lengths (random weights never end)."""
VOCABULARY = 2048


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A place of the table."""

    model: str
    group: int

    @property
    def size(self) -> Size:
        return SIZES[self.model]

    @property
    def num_prompts(self) -> int:
        return self.size.completions // self.group or 48

    @property
    def num_completions(self) -> int:
        return self.num_prompts * self.group

    @property
    def name(self) -> str:
        return f"{self.model}/{self.group}"


CELLS = [Cell(model=model, group=group) for model in SIZES for group in (8, 16)]


def parse_cell(text: str) -> Cell:
    model, _, group = text.partition("/")
    if model not in SIZES or not group.isdigit() or not int(group):
        sys.exit(f"--cell: expected MODEL/G with MODEL one of {', '.join(SIZES)}, got {text!r}")
    return Cell(model=model, group=int(group))


def make_policy(model: str, seed: int, folder: Path) -> Policy:
    """Random weights, saved to `folder`; no token ends a completion, so that all samplers draw the same number."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    size = SIZES[model]
    if model == "tiny":
        policy = make_tiny_policy("0123456789+-*=;#", seed)
    else:
        config = Qwen3Config(
            vocab_size=VOCABULARY,
            hidden_size=size.hidden,
            intermediate_size=3 * size.hidden,
            num_hidden_layers=size.layers,
            num_attention_heads=size.hidden // 64,
            num_key_value_heads=size.hidden // 128,
            head_dim=64,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
        )
        torch.manual_seed(seed)
        policy = Policy(model=Qwen3ForCausalLM(config), tokenizer=character_tokenizer("x"), digest="")
    policy.model.eval()
    policy.tokenizer.eos_token = None
    for settings in (policy.model.config, policy.model.generation_config):
        settings.eos_token_id, settings.pad_token_id = None, policy.tokenizer.pad_token_id
    assert policy.eos_token_ids == []
    save_policy(policy, folder)
    policy.digest = f"{model}, seed {seed}"
    return policy


def make_prompts(cell: Cell, policy: Policy) -> list[NDArray[np.int32]]:
    """Random tokens; of the quickstart's lengths (4 to 6 one-digit terms, the operators between them, '=') for tiny."""
    rng = np.random.default_rng(cell.group)
    lengths = [cell.size.prompt or 2 * int(rng.integers(4, 7)) for _ in range(cell.num_prompts)]
    vocabulary = int(policy.model.config.vocab_size)
    return [rng.integers(3, vocabulary, length, dtype=np.int32) for length in lengths]


def generate(policy: Policy, prompts: Sequence[NDArray[np.int32]], group: int, max_tokens: int) -> int:
    """Tokens that transformers' `generate` drew, all prompts in one batch, no log-probabilities asked for."""
    import torch

    width = max(map(len, prompts))
    ids, mask = np.zeros((2, len(prompts), width), np.int64)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :], mask[row, width - len(prompt) :] = prompt, 1
    with torch.inference_mode():
        out = policy.model.generate(
            torch.from_numpy(ids),
            attention_mask=torch.from_numpy(mask),
            num_return_sequences=group,
            do_sample=True,
            top_k=0,  # of its default 50, as of top_p, nothing is wanted
            top_p=1.0,
            temperature=1.0,
            max_new_tokens=max_tokens,
        )
    return int(out[:, width:].numel())
