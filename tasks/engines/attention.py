"""Owner-suffix attention: transformers models read prefix trees and packed rows, unpatched.

Registered with transformers under one name. A model whose configuration names it calls `attend` in every layer; the
layout's `Suffixes` pass through the model as keyword arguments. Each suffix's queries see the keys on its path, causal
and aligned at the end: there is no mask over the whole row, and never more work than without sharing. The gather's
backward adds up over the branches. Rows without suffixes (padded) get the usual causal attention.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from tasks.core.layout import Layout, Suffixes, build_layout

NAME = "owner_suffix"


@dataclass(frozen=True)
class Paths:
    """A layout's `Suffixes` on the device, with what attention needs in every layer computed once."""

    num_queries: list[int]
    """Own tokens of each suffix."""
    num_keys: list[int]
    """Tokens on the path of each suffix; path after path they are `key_index`."""
    key_index: Tensor
    query_offsets: Tensor
    key_offsets: Tensor
    masks: dict[tuple[int, int], Tensor]
    """Causal masks aligned at the end, by their number of queries and keys; filled as they are needed."""


def paths_on(device: torch.device, suffixes: Suffixes) -> Paths:
    """The suffixes as tensors."""
    return Paths(
        num_queries=np.diff(suffixes.query_offsets).tolist(),
        num_keys=np.diff(suffixes.key_offsets).tolist(),
        key_index=torch.from_numpy(suffixes.key_index).to(device),
        query_offsets=torch.from_numpy(suffixes.query_offsets).to(device, torch.int32),
        key_offsets=torch.from_numpy(suffixes.key_offsets).to(device, torch.int32),
        masks={},
    )


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    paths: Paths | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention over the paths: query [1, heads, T, D], key and value [1, key heads, T, D]; gives [1, T, heads, D]."""
    if paths is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    strange = [name for name in ("softcap", "s_aux", "position_bias", "sliding_window") if kwargs.get(name) is not None]
    if attention_mask is not None or strange:
        raise NotImplementedError(", ".join(strange) or "a mask of its own")
    if torch.is_autocast_enabled(query.device.type):  # rotary embeddings leave fp32; cast before the keys are gathered
        kind = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(kind), key.to(kind), value.to(kind)
    if query.is_cuda and query.dtype in (torch.bfloat16, torch.float16):
        return _attend_varlen(query, key, value, scaling, paths), None
    if query.shape[1] != key.shape[1]:
        key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
    own = query.split(paths.num_queries, dim=2)
    key, value = _along_paths(key, paths), _along_paths(value, paths)
    keys, values = key.split(paths.num_keys, dim=2), value.split(paths.num_keys, dim=2)
    out = []
    for query_s, key_s, value_s in zip(own, keys, values, strict=True):
        mask = _mask(paths, query_s.shape[2], key_s.shape[2])
        out.append(scaled_dot_product_attention(query_s, key_s, value_s, mask, is_causal=mask is None, scale=scaling))
    return torch.cat(out, dim=2).transpose(1, 2).contiguous(), None


def _along_paths(states: Tensor, paths: Paths) -> Tensor:
    """Keys or values [1, heads, T, D] path after path; as they are where every path is its suffix (packed rows)."""
    if len(paths.key_index) == states.shape[2]:
        return states
    gathered: Tensor = _Gather.apply(states, paths.key_index)
    return gathered


class _Gather(torch.autograd.Function):
    """index_select along dimension 2, whose backward sums over the branches in fp32 also where the states are bf16.

    The advantages of a group sum to 0, so the branches' gradients nearly cancel: summed in bf16 the rest is noise.
    """

    @staticmethod
    def forward(ctx: Any, states: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.shape = states.shape
        return states.index_select(2, index)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        kind = torch.promote_types(gradient.dtype, torch.float32)
        summed = torch.zeros(ctx.shape, dtype=kind, device=gradient.device)
        return summed.index_add_(2, index, gradient.to(kind)).to(gradient.dtype), None


def _mask(paths: Paths, num_queries: int, num_keys: int) -> Tensor | None:
    """bool [queries, keys]: the last query sees every key, each one before it one key less; None if the two agree."""
    if num_queries == num_keys:
        return None
    found = paths.masks.get((num_queries, num_keys))
    if found is None:
        shape = (num_queries, num_keys)
        found = torch.ones(shape, dtype=torch.bool, device=paths.key_index.device).tril(num_keys - num_queries)
        paths.masks[shape] = found
    return found


def _attend_varlen(query: Tensor, key: Tensor, value: Tensor, scaling: float | None, paths: Paths) -> Tensor:
    """One flash-attention call for all suffixes: queries as they lie, keys and values gathered path after path."""
    from torch.nn.attention.varlen import varlen_attn

    keys, values = (_along_paths(x, paths)[0].transpose(0, 1) for x in (key, value))
    out = varlen_attn(
        query[0].transpose(0, 1),
        keys,
        values,
        paths.query_offsets,
        paths.key_offsets,
        max(paths.num_queries),
        max(paths.num_keys),
        scale=scaling,
        window_size=(-1, 0),  # causal, aligned at the end of the keys
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return out[None]


@contextmanager
def owner_suffix_attention(model: Any) -> Iterator[None]:
    """Have the model's layers call `attend` within the block; forward and backward (checkpointing) belong inside."""
    config = model.config
    before = config._attn_implementation
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before


def layout_attention(model: Any, layout: Layout) -> AbstractContextManager[None]:
    """The attention that the layout needs: the model's own for padded rows."""
    return nullcontext() if layout.suffixes is None else owner_suffix_attention(model)


def refusal(model: Any) -> str | None:
    """Why the model cannot read packed or tree rows, or None: its layers must all be plain causal attention.

    What its configuration does not say is found out by a tree of five tokens, once per model in memory.
    """
    config, name = model.config, type(model).__name__
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    if kinds:
        return f"{name} has layers of {', '.join(sorted(kinds))}"
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        return f"{name} has a sliding window of {config.sliding_window} tokens"
    if not getattr(model, "_supports_attention_backend", False):
        return f"{name} does not call transformers' attention interface"
    if any(getattr(config, key, 0) for key in ("attention_dropout", "attn_pdrop", "hidden_dropout", "resid_pdrop")):
        return f"{name} has dropout, which would differ between the copies of a shared prefix"
    if model.device.type == "meta":
        return None
    if model not in _probed:
        _probed[model] = _probe(model)
    return _probed[model]


_probed: WeakKeyDictionary[Any, str | None] = WeakKeyDictionary()
"""What `_probe` found of each model."""


@torch.no_grad()
def _probe(model: Any) -> str | None:
    """Whether the hidden states of a small tree are those of padded rows: None, or what differs."""
    prompt, completions = np.array([1, 2], np.int32), [np.array([3, 4], np.int32), np.array([3, 5], np.int32)]
    found = {}
    for kind in ("padded", "tree"):
        layout = build_layout(kind, [prompt] * 2, completions, np.zeros(2, np.int64))
        ids_BL, place_BL = (torch.tensor(x, device=model.device) for x in (layout.token_ids_BL, layout.position_ids_BL))
        extra = {} if layout.suffixes is None else {"paths": paths_on(model.device, layout.suffixes)}
        try:
            with owner_suffix_attention(model) if extra else nullcontext():
                states_BLH = model.base_model(ids_BL, position_ids=place_BL, use_cache=False, **extra)[0]
        except (NotImplementedError, RuntimeError, TypeError, ValueError) as error:
            return f"{type(model).__name__} computes attention in a way of its own ({error})"
        states_UH = states_BLH.reshape(-1, states_BLH.shape[-1])[torch.from_numpy(layout.parent_U).to(model.device)]
        parent_N = layout.edge_parent_E[layout.token_edge_N]
        found[kind] = states_UH[torch.from_numpy(parent_N).to(model.device)].float()
    difference = (found["tree"] - found["padded"]).abs().max() / found["padded"].abs().max().clamp(min=1e-12)
    return f"{type(model).__name__} gives other hidden states for a tree" if difference > 0.01 else None


AttentionInterface.register(NAME, attend)
