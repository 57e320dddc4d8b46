"""The layouts on one GPU: a 0.6 B-parameter Qwen3 (random weights) under autocast to bf16, gradients compared first.

    python tests/benchmarks/training_cuda.py

Completions have half to all of C tokens and share their first 8 with the one before them. One update = the objective's
gradient and its norm (the optimiser's step is the same for every layout); micro-batches of 16,384 places; the best of
four. A gradient is compared with that of padded rows in fp32, and at first on a tiny model in fp32 throughout.
"""

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tasks.core.objective import Objective
from tasks.engines.batch import Batch
from tasks.engines.passes import training_passes
from tasks.engines.policy import Policy
from tasks.engines.trainer import policy_update

LAYOUTS = ("padded", "packed", "tree", "auto")
CELLS = ((256, 512, 8, 4, False), (1024, 512, 8, 4, True), (1024, 2048, 7, 3, True))
"""Prompt, completion, G, groups, checkpointed activations."""
TINY = {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "head_dim": 16}
LARGE = {"vocab_size": 151_936, "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28}


def make_policy(num_heads: int, **shape: int) -> Policy:
    heads = {"num_attention_heads": num_heads, "num_key_value_heads": num_heads // 2}
    config = AutoConfig.for_model("qwen3", **shape, **heads, max_position_embeddings=8192, tie_word_embeddings=True)
    torch.manual_seed(0)
    with torch.device("cuda"):
        return Policy(
            model=AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval(), tokenizer=None, digest=""
        )


def make_batch(prompt: int, completion: int, group: int, num_groups: int, vocabulary: int) -> Batch:
    rng = np.random.default_rng(0)
    prompts, completions = [], []
    for _ in range(num_groups):
        asked = rng.integers(3, vocabulary, prompt).astype(np.int32)
        for k in range(group):
            tokens = rng.integers(3, vocabulary, rng.integers(completion // 2, completion + 1)).astype(np.int32)
            if k:
                tokens[:8] = completions[-1][:8]
            prompts.append(asked)
            completions.append(tokens)
    return Batch(
        prompts=prompts,
        completions=completions,
        group_index_R=np.repeat(np.arange(num_groups), group),
        sampler_logprobs=[np.full(len(c), -np.log(vocabulary), np.float32) for c in completions],
        advantages=[rng.normal(size=len(c)).astype(np.float32) for c in completions],
    )


def update(policy: Policy, batch: Batch, layout: str, precision: str, budget: int = 16_384) -> tuple[float, float]:
    """Seconds, and the most GiB held."""
    optimizer = torch.optim.SGD(policy.model.parameters(), lr=0.0)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    how: dict[str, Any] = {"micro_batch_tokens": budget, "max_grad_norm": 1e9, "layout": layout, "precision": precision}
    started = time.perf_counter()
    policy_update(policy, optimizer, batch, Objective(max_tokens=4096), **how)
    torch.cuda.synchronize()
    return time.perf_counter() - started, torch.cuda.max_memory_allocated() / 2**30


def gradient(policy: Policy) -> torch.Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in policy.model.parameters()])


def main() -> None:
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    policy, batch = make_policy(4, **TINY), make_batch(20, 30, 6, 4, TINY["vocab_size"])
    update(policy, batch, "padded", "fp32")
    exact = gradient(policy)
    for layout in LAYOUTS[1:]:
        update(policy, batch, layout, "fp32")
        print(f"fp32, tiny, {layout}: {(gradient(policy) - exact).norm() / exact.norm():.1e} from padded's gradient")
    policy = make_policy(16, **LARGE, head_dim=128)
    for prompt, completion, group, num_groups, is_checkpointed in CELLS:
        batch = make_batch(prompt, completion, group, num_groups, LARGE["vocab_size"])
        num_tokens = sum(map(len, batch.prompts)) + sum(map(len, batch.completions))
        print(f"\n{prompt}/{completion} G {group}, {num_groups} groups{', checkpointed' * is_checkpointed}")
        padded = None
        with training_passes(policy.model, gradient_checkpointing=is_checkpointed):
            update(policy, batch, "padded", "fp32", 8192)
            exact = gradient(policy)
            for layout in LAYOUTS:
                update(policy, batch, layout, "bf16")
                found = [update(policy, batch, layout, "bf16") for _ in range(4)]
                cosine = torch.nn.functional.cosine_similarity(gradient(policy), exact, dim=0)
                seconds = min(taken for taken, _ in found)
                padded = padded or seconds
                print(
                    f"{layout:<7} {seconds:6.3f} s  {num_tokens / seconds:9,.0f} tokens/s  "
                    f"{padded / seconds:5.2f} x padded  {found[0][1]:5.1f} GiB  cosine to fp32's gradient {cosine:.4f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
