"""Policies as Hugging Face checkpoints: the built-in tiny one, loading, saving, and the one kept in memory."""

import ctypes
import functools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
from transformers.utils import logging as transformers_logging

transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Names of glibc's malloc.h."""
TINY_PARAMETERS = 5_000_000
"""Below this many parameters one thread is faster than several (4-16x on a busy machine)."""


@dataclass
class Policy:
    """A model with its tokenizer, in memory. `digest` is that of its committed checkpoint ("" before a save)."""

    model: Any
    tokenizer: Any
    digest: str

    @property
    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def device(self) -> torch.device:
        device: torch.device = next(self.model.parameters()).device
        return device

    @property
    def eos_token_ids(self) -> list[int]:
        """Tokens that end a completion: the generation config's, and the tokenizer's."""
        configured = self.model.generation_config.eos_token_id
        ids = configured if isinstance(configured, list) else [configured]
        return sorted({int(i) for i in [*ids, self.tokenizer.eos_token_id] if i is not None})

    @property
    def context_length(self) -> int:
        return int(self.model.config.max_position_embeddings)


def make_tiny_policy(characters: str, seed: int) -> Policy:
    """A new Qwen3 of 0.45 M parameters (hidden 96, 3 layers, 3 heads of 32, tied) over a character vocabulary."""
    tokenizer = character_tokenizer(characters)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=3,
        num_key_value_heads=3,
        head_dim=32,  # one that every attention kernel of vLLM takes
        max_position_embeddings=512,
        rope_parameters={"rope_type": "default", "rope_theta": 100.0},  # contexts of tens of tokens
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return Policy(model=model, tokenizer=tokenizer, digest="")


def character_tokenizer(characters: str) -> PreTrainedTokenizerFast:
    """One token per character, after <pad>, <eos> and <unk>; decoding joins them without spaces."""
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<eos>", "<unk>", *characters])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", model_max_length=512
    )


_in_memory: list[Policy] = []
"""The policy used last, at most one: a stage that needs the same weights again does not load them."""


def load_policy(folder: Path, digest: str, device: torch.device) -> Policy:
    """The policy of a committed checkpoint on `device`, in fp32 and evaluation mode; from memory when it is there."""
    if _in_memory and _in_memory[0].digest == digest and _in_memory[0].device == device:
        return _in_memory[0]
    forget_policy()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    for name in ("final_logit_softcapping", "logit_scale", "logits_scaling"):
        if getattr(model.config, name, None) not in (None, 1, 1.0):
            raise ValueError(
                f"{type(model).__name__} transforms its logits ({name}); log-probabilities here are taken from the "
                "plain output head, so it would be trained wrongly. Use a model without it (Qwen, Llama, SmolLM, ...)"
            )
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    for name in ("is_local", "local_files_only"):  # how it was loaded; save_pretrained would make it part of what it is
        tokenizer.init_kwargs.pop(name, None)
    policy = Policy(model=model.to(device).eval(), tokenizer=tokenizer, digest=digest)
    keep_policy(policy)
    return policy


def keep_policy(policy: Policy) -> None:
    """Make `policy` the one kept in memory."""
    _in_memory[:] = [policy]


def forget_policy() -> None:
    """Drop the policy kept in memory: before its weights are changed, and when they cannot be trusted."""
    _in_memory.clear()


def save_policy(policy: Policy, folder: Path) -> None:
    """Write a checkpoint that `from_pretrained` reads: safetensors, configuration, tokenizer; no local paths."""
    policy.model.config._name_or_path = ""
    policy.model.generation_config._from_model_config = False
    policy.model.save_pretrained(folder)
    policy.tokenizer.save_pretrained(folder)


def vocabulary(tokenizer: Any) -> tuple[list[int], list[str]]:
    """Every token id and what it decodes to on its own."""
    ids = list(range(len(tokenizer)))
    return ids, [tokenizer.decode([i]) for i in ids]


def choose_device(device: str) -> torch.device:
    """`auto` takes CUDA where there is one."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(device)


def configure_cpu(threads: int, num_parameters: int) -> None:
    """Set torch's CPU threads (as given, or 1 for tiny models and every core for others); flush denormals to zero.

    A young model's activations hold denormal numbers, on which a CPU is 10 times slower: flushing them halved the time
    of the tiny model's first updates (0.74 s to 0.36 s) and changes only magnitudes below 1.2e-38.
    """
    for kind in (np.float32, np.float64):
        str(np.finfo(kind))  # numpy looks once, and would warn that denormal numbers are gone
    torch.set_flush_denormal(True)
    torch.set_num_threads(threads or (1 if num_parameters < TINY_PARAMETERS else _num_cores()))
    _keep_freed_memory()


@functools.cache
def _keep_freed_memory() -> None:
    """Have glibc reuse the tensors of one micro-batch for the next; nothing with another C library.

    As it comes, glibc returns large blocks to the system when they are freed, and every new tensor faults its pages in
    again: 0.1 s of a quickstart step. The process holds on to its peak instead, as with jemalloc or tcmalloc.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(M_MMAP_THRESHOLD, 32 << 20)  # the most that glibc takes
    mallopt(M_TRIM_THRESHOLD, 1 << 30)


def _num_cores() -> int:
    """Cores this process may use; all of them on systems that do not say (macOS, Windows)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
