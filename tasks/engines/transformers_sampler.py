"""Sampling with transformers: prompts batched by length, prefilled once, their KV cache repeated for every sample."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tasks.core.sampling import draw_tokens
from tasks.engines.policy import Policy
from tasks.engines.sampler import Samples, SamplingParams, completion_limits

COMPACTION_SHARE = 0.75
"""Finished rows leave the batch once less than this share of it is still running: the cache copy is then worth it."""


class TransformersSampler:
    """The `Sampler` of a policy held in this process."""

    name = "transformers"

    def __init__(self, policy: Policy, *, batch_tokens: int) -> None:
        self.policy = policy
        self.batch_tokens = batch_tokens

    @torch.inference_mode()
    def sample(
        self,
        prompts: Sequence[NDArray[np.int32]],
        *,
        num_samples: int,
        seeds_R: NDArray[np.int64],
        params: SamplingParams,
        progress: Callable[[int, int], Any] = lambda done, total: None,
    ) -> Samples:
        """See `Sampler.sample`."""
        limits_P = completion_limits(prompts, params.max_tokens, self.policy.context_length)
        total = len(prompts) * num_samples
        rows: list[tuple[NDArray[np.int32], NDArray[np.float32], bool]] = [None] * total  # type: ignore[list-item]
        done = 0
        for batch in self._batches([len(prompt) for prompt in prompts], num_samples, limits_P):
            indices_R = (batch[:, None] * num_samples + np.arange(num_samples)).ravel()
            limits_R = np.repeat(limits_P[batch], num_samples)
            uniforms_RT = _uniforms(seeds_R[indices_R], int(limits_R.max()), params.temperature)
            asked = [prompts[p] for p in batch]
            tokens_RT, logprobs_RT = self._complete(asked, torch.from_numpy(limits_R), uniforms_RT, params)
            for row, index in enumerate(indices_R):
                rows[index] = self._row(tokens_RT[row], logprobs_RT[row])
            done += len(indices_R)
            progress(done, total)
        lengths = [len(tokens) for tokens, _, _ in rows]
        return Samples(
            token_ids_N=np.concatenate([tokens for tokens, _, _ in rows] or [np.zeros(0, np.int32)]),
            offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            sampler_logprobs_N=np.concatenate([logprobs for _, logprobs, _ in rows] or [np.zeros(0, np.float32)]),
            is_truncated_R=np.array([is_truncated for _, _, is_truncated in rows], dtype=bool),
        )

    def _batches(self, lengths: list[int], num_samples: int, limits_P: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """Prompt indices in batches of like lengths, longest first (memory is then known at once)."""
        batches, batch = [], []
        for index in np.argsort(-np.array(lengths), kind="stable"):
            width = lengths[batch[0] if batch else index] + limits_P[index]  # the shortest prompt has the most room
            if batch and (len(batch) + 1) * num_samples * width > self.batch_tokens:
                batches.append(np.array(batch))
                batch = []
            batch.append(int(index))
        return [*batches, np.array(batch)] if batch else batches

    def _complete(
        self, prompts: list[NDArray[np.int32]], limits_R: Tensor, uniforms_RT: Tensor, params: SamplingParams
    ) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Tokens [R, T] (-1 after the end) and log-probabilities [R, T] of one batch; T is the largest limit."""
        device, model = self.policy.device, self.policy.model
        num_samples = len(limits_R) // len(prompts)
        ids_BL, mask_BL = _left_pad(prompts, self.policy.tokenizer.pad_token_id or 0, device)
        positions_BL = (mask_BL.cumsum(dim=1) - 1).clamp(min=0)
        out = model(ids_BL, attention_mask=mask_BL, position_ids=positions_BL, use_cache=True, logits_to_keep=1)
        cache, logits_RV = out.past_key_values, out.logits[:, -1].repeat_interleave(num_samples, dim=0)
        cache.batch_repeat_interleave(num_samples)
        mask_RL = mask_BL.repeat_interleave(num_samples, dim=0)
        next_position_R = mask_RL.sum(dim=1)
        num_rows, most_tokens = uniforms_RT.shape
        tokens_RT = torch.full((num_rows, most_tokens), -1, dtype=torch.int64, device=device)
        logprobs_RT = torch.zeros((num_rows, most_tokens), dtype=torch.float32, device=device)
        uniforms_RT, limits_R = uniforms_RT.to(device), limits_R.to(device)
        eos = torch.tensor(self.policy.eos_token_ids, dtype=torch.int64, device=device)
        rows = torch.arange(num_rows, device=device)
        is_running = torch.ones(num_rows, dtype=torch.bool, device=device)
        for t in range(most_tokens):
            drawn, logprobs = draw_tokens(
                logits_RV, uniforms_RT[rows, t], temperature=params.temperature, top_p=params.top_p
            )
            tokens_RT[rows[is_running], t] = drawn[is_running]
            logprobs_RT[rows[is_running], t] = logprobs[is_running]
            is_running = is_running & ~torch.isin(drawn, eos) & (limits_R[rows] > t + 1)
            if not is_running.any():
                break
            if is_running.float().mean() < COMPACTION_SHARE:
                kept = is_running.nonzero()[:, 0]
                cache.batch_select_indices(kept)
                rows, drawn, mask_RL, next_position_R = rows[kept], drawn[kept], mask_RL[kept], next_position_R[kept]
                is_running = is_running[kept]
            mask_RL = torch.cat([mask_RL, mask_RL.new_ones(len(rows), 1)], dim=1)
            out = model(
                drawn[:, None],
                attention_mask=mask_RL,
                # rows that have ended go on until they are taken out, but at no position beyond the context
                position_ids=next_position_R[:, None].clamp(max=self.policy.context_length - 1),
                past_key_values=cache,
                use_cache=True,
            )
            logits_RV, next_position_R = out.logits[:, -1], next_position_R + 1
        return tokens_RT.to(torch.int32).cpu().numpy(), logprobs_RT.cpu().numpy()

    def _row(
        self, tokens_T: NDArray[np.int32], logprobs_T: NDArray[np.float32]
    ) -> tuple[NDArray[np.int32], NDArray[np.float32], bool]:
        length = int((tokens_T >= 0).sum())
        return tokens_T[:length], logprobs_T[:length], int(tokens_T[length - 1]) not in self.policy.eos_token_ids


def _left_pad(prompts: list[NDArray[np.int32]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask [B, L], the prompts' ends aligned."""
    width = max(len(prompt) for prompt in prompts)
    ids, mask = np.full((len(prompts), width), pad, np.int64), np.zeros((len(prompts), width), np.int64)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :], mask[row, width - len(prompt) :] = prompt, 1
    return torch.from_numpy(ids).to(device), torch.from_numpy(mask).to(device)


def _uniforms(seeds_R: NDArray[np.int64], num_tokens: int, temperature: float) -> Tensor:
    """[R, T] uniform numbers, row i from its own stream Philox(seed_i); not needed for greedy decoding."""
    if temperature == 0:
        return torch.zeros(len(seeds_R), num_tokens, dtype=torch.float64)
    streams = [np.random.Generator(np.random.Philox(key=int(seed))).random(num_tokens) for seed in seeds_R]
    return torch.from_numpy(np.stack(streams))
