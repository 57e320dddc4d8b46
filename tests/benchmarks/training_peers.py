"""The peers as workers, in .venv-peers: python training_peers.py NAME FOLDER MICRO_BATCH_TOKENS.

TRL: GRPOTrainer's own training loop, from `on_step_begin` to `on_step_end` (forward, loss, backward, gradient norm,
optimiser step); only `_generate_and_score_completions` is replaced, by the batch. As favourable to it as its options
allow, and comparable: fp32 (its default here is bf16), no gradient checkpointing (its default is on), no logging, one
iteration, token-level advantages (which its loss accepts for subclasses), "dapo" (token mean over the whole batch),
beta 0, temperature 1. Its micro-batches are the largest divisor of the batch within the same token budget. What
differs: its old logprobs are its own, detached (ratio exactly 1), ours are the sampler's; no dual clip (nothing is
clipped on policy); its fused AdamW. Without Triton its chunked head works on every position, prompt and padding
included (`compact` in trl/trainer/utils.py), and it makes the logits again for the gradient.

prefix-grouper: the package lays out each group as prompt + completions and splits attention into the prompt's and the
completions'. Its masks hold padding only (flash-attention adds causality by itself): with SDPA they are given
bottom-right causality here, without which its logprobs are silently wrong. Head, loss and optimiser are what its README
leaves to the user: full logits, at the positions that predict completion tokens only, autograd, the clipped surrogate.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from training_cells import Inputs, load_inputs
from training_worker import Link, Meter, one_thread, save_gradient, serve
from transformers import AttentionInterface, AttentionMaskInterface, AutoTokenizer, Qwen3ForCausalLM, TrainerCallback

LEARNING_RATE, MAX_GRAD_NORM = 1e-6, 1e9


def rows_of(inputs: Inputs) -> tuple[torch.Tensor, ...]:
    """prompt ids [R, P], completion ids [R, T] padded on the right, their mask, token advantages [R, T]."""
    lengths = [len(completion) for completion in inputs.completions]
    ids, mask, advantages = (
        np.zeros((len(lengths), max(lengths)), dtype) for dtype in (np.int64, np.int64, np.float32)
    )
    for r, values in enumerate(np.split(inputs.advantages_N, inputs.ends[:-1])):
        ids[r, : lengths[r]], mask[r, : lengths[r]] = inputs.completions[r], 1
        advantages[r, : lengths[r]] = values
    prompts = np.stack(inputs.row_prompts).astype(np.int64)
    return tuple(torch.from_numpy(array) for array in (prompts, ids, mask, advantages))


class Steps(TrainerCallback):  # type: ignore[misc]
    """Makes TRL's loop a worker: a command is awaited before each step and answered after it."""

    def __init__(self, folder: Path) -> None:
        self.link, self.meter, self.folder, self.losses = Link(), Meter(), folder, []
        self.link.say({"ready": True})
        self.link.wait()

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.losses.clear()
        self.meter.start(with_memory=self.link.command == "memory")

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if self.link.command == "first":
            save_gradient(model, self.folder / "trl.safetensors")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.link.say(self.meter.stop() | {"loss": float(sum(self.losses))})
        control.should_training_stop = self.link.wait() == "exit"


def trl_config(folder: Path, micro_batch: int, accumulation: int) -> Any:
    """TRL's settings that make its step comparable: see above."""
    from trl import GRPOConfig

    return GRPOConfig(
        output_dir=str(folder / "trl"),
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=accumulation,
        num_generations=micro_batch * accumulation,  # of no effect on the step; must divide the batch and be above 1
        num_iterations=1,
        loss_type="dapo",
        beta=0.0,
        temperature=1.0,
        epsilon=0.2,
        epsilon_high=0.28,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        max_grad_norm=MAX_GRAD_NORM,
        max_steps=10_000,
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=True,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_num_workers=0,
    )


def trl(folder: Path, micro_batch_tokens: int) -> None:
    from datasets import Dataset
    from trl import GRPOTrainer

    inputs = load_inputs(folder / "batch.npz")
    prompts, completions, mask, advantages = rows_of(inputs)
    num_rows = len(prompts)
    fitting = max(micro_batch_tokens // (prompts.shape[1] + completions.shape[1]), 1)
    micro_batch = max(d for d in range(1, num_rows + 1) if num_rows % d == 0 and d <= fitting)

    class Trainer(GRPOTrainer):  # type: ignore[misc]
        def _generate_and_score_completions(self, *_: Any) -> dict[str, torch.Tensor]:
            return {
                "prompt_ids": prompts,
                "prompt_mask": torch.ones_like(prompts),
                "completion_ids": completions,
                "completion_mask": mask,
                "advantages": advantages,
                "num_items_in_batch": mask.sum(),
            }

        def compute_loss(self, *args: Any, **kwargs: Any) -> torch.Tensor:
            loss: torch.Tensor = super().compute_loss(*args, **kwargs)
            steps.losses.append(loss.detach())
            return loss

    trainer = Trainer(
        model=Qwen3ForCausalLM.from_pretrained(folder / "policy", dtype=torch.float32),
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=trl_config(folder, micro_batch, num_rows // micro_batch),
        train_dataset=Dataset.from_dict({"prompt": ["x"] * num_rows}),
        processing_class=AutoTokenizer.from_pretrained(folder / "policy"),
    )
    steps = Steps(folder)
    trainer.add_callback(steps)
    trainer.train()


def attend(
    module: Any, query: Any, key: Any, value: Any, attention_mask: Any, prefix_grouper: Any, masks: Any, **kwargs: Any
) -> tuple[torch.Tensor, None]:
    """prefix-grouper's split attention over SDPA. The prompts of a batch have one length, so theirs is plain causal."""

    def sdpa(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, padding: torch.Tensor) -> torch.Tensor:
        mask = None if q.shape[2] == k.shape[2] else masks
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None)
        return out.transpose(1, 2)

    return prefix_grouper.forward(sdpa, query, key, value), None


def grouper_logprobs(model: Any, inputs: Inputs, groups: list[int]) -> torch.Tensor:
    """log p [N'] of the tokens of these groups' completions."""
    from prefix_grouper import PrefixGrouper

    rows = np.flatnonzero(np.isin(inputs.group_index_R, groups))
    completions = [inputs.completions[r] for r in rows]
    prompts = torch.from_numpy(np.stack([inputs.prompts[g] for g in groups]).astype(np.int64))
    lengths = [len(completion) for completion in completions]
    ids = torch.zeros(len(rows), max(lengths), dtype=torch.int64)
    for row, completion in zip(ids, completions, strict=True):
        row[: len(completion)] = torch.from_numpy(completion)
    mask = torch.arange(ids.shape[1]) < torch.tensor(lengths)[:, None]
    sizes = [int((inputs.group_index_R == g).sum()) for g in groups]
    grouper = PrefixGrouper.from_ungrouped_masks(torch.ones_like(prompts), mask, sizes, "cpu")
    whole, size, longest = torch.ones_like(prompts), prompts.shape[1], ids.shape[1]
    positions = torch.arange(size).expand_as(prompts), size + torch.arange(longest).expand_as(ids)
    causal = torch.ones(longest, size + longest, dtype=torch.bool).tril(size)
    hidden = model.base_model(
        input_ids=grouper.concat_input(prompts, whole, ids, mask),
        position_ids=grouper.concat_input(positions[0], whole, positions[1], mask),
        use_cache=False,
        prefix_grouper=grouper,
        masks=causal & grouper.suffix_attn_mask[:, None, None, :],
    ).last_hidden_state
    _, _, after, after_mask = grouper.split_output(hidden, include_prefix_last=1)
    logits = model.lm_head(after[:, :-1][after_mask[:, 1:]])
    return torch.log_softmax(logits, dim=-1).gather(1, ids[mask][:, None])[:, 0]


def whole_groups(inputs: Inputs, budget: int) -> list[list[int]]:
    """Groups in order, cut so that groups * longest is within the budget: prefix-grouper pads to the longest."""
    lengths = [len(completion) for completion in inputs.completions]
    widths_P = [len(prompt) for prompt in inputs.prompts] + np.bincount(inputs.group_index_R, lengths)
    micro_batches: list[list[int]] = []
    for g in range(len(widths_P)):
        last = [*micro_batches[-1], g] if micro_batches else []
        if last and len(last) * widths_P[last].max() <= budget:
            micro_batches[-1] = last
        else:
            micro_batches.append([g])
    return micro_batches


def prefix_grouper(folder: Path, micro_batch_tokens: int) -> None:
    AttentionInterface.register("prefix_grouper", attend)
    AttentionMaskInterface.register("prefix_grouper", lambda *args, **kwargs: None)
    inputs = load_inputs(folder / "batch.npz")
    model = Qwen3ForCausalLM.from_pretrained(
        folder / "policy", dtype=torch.float32, attn_implementation="prefix_grouper"
    ).eval()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0, foreach=True)
    micro_batches = whole_groups(inputs, micro_batch_tokens)
    of_token = np.repeat(inputs.group_index_R, [len(c) for c in inputs.completions])

    def update() -> tuple[float, list[torch.Tensor]]:
        optimizer.zero_grad(set_to_none=True)
        loss, logprobs = 0.0, []
        for groups in micro_batches:
            chosen = np.isin(of_token, groups)
            logprobs_N = grouper_logprobs(model, inputs, groups)
            ratio_N = (logprobs_N - torch.from_numpy(inputs.sampler_logprobs_N[chosen])).exp()
            advantages_N = torch.from_numpy(inputs.advantages_N[chosen])
            surrogate_N = torch.minimum(advantages_N * ratio_N, advantages_N * ratio_N.clamp(0.8, 1.28))
            part = -surrogate_N.sum() / len(of_token)
            part.backward()
            loss += part.item()
            logprobs.append(logprobs_N.detach())
        torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
        optimizer.step()
        return loss, logprobs

    def save(result: tuple[float, list[torch.Tensor]]) -> dict[str, Any]:
        save_gradient(model, folder / "prefix-grouper.safetensors")
        error = torch.cat(result[1]).numpy() - inputs.sampler_logprobs_N
        return {"loss": result[0], "logprob_error": float(np.abs(error).max())}

    serve(update, save)


if __name__ == "__main__":
    one_thread()
    {"trl": trl, "prefix-grouper": prefix_grouper}[sys.argv[1]](Path(sys.argv[2]), int(sys.argv[3]))
