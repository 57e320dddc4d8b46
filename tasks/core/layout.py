"""Layouts: how prompts and completions lie in the rows that a model reads, each shared prefix once where that is asked.

| layout | rows                              | a token's keys                         | tokens computed              |
|--------|-----------------------------------|----------------------------------------|------------------------------|
| padded | a completion a row, padded        | its row up to itself                   | rows * longest row           |
| packed | one row, completions end to end   | its prompt and completion up to itself | sum of all lengths           |
| tree   | one row, the groups' prefix trees | its path from the prompt to itself     | prompts + edges of the trees |

A tree lies flat in depth-first order: the prompt, then for each completion (lexicographic) the tokens after its common
prefix with the one before it. The tokens that a completion adds are its *suffix*; its queries are that suffix, its keys
the path from the prompt's first token. A token's position id is its depth, so rotary embeddings do not notice.

The output head needs one row of hidden states per *parent* (the place that predicts a token) and one log-probability
per *edge* (parent, token); completions that share an edge share both. Shapes: B rows, L length, S suffixes, U parents,
E edges, N completion tokens in the order of the completions given.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tasks.core.prefix_tree import PrefixTree, build_prefix_tree

Int64 = NDArray[np.int64]
Sequences = Sequence[NDArray[np.int32]]

LAYOUTS = ("padded", "packed", "tree")


@dataclass(frozen=True, kw_only=True, eq=False)
class Suffixes:
    """Which places of the one flat row attend to which: suffix s holds the places query_offsets[s:s+2]."""

    query_offsets: Int64
    """[S+1]; suffixes are contiguous and in order."""
    key_offsets: Int64
    """[S+1] into key_index: the path of the suffix, which ends with the suffix itself."""
    key_index: Int64
    """Place in the row of every key, path after path."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Layout:
    """Rows for the model, and where in them each completion token is predicted."""

    token_ids_BL: Int64
    position_ids_BL: Int64
    suffixes: Suffixes | None
    """None: causal attention in each row (padded); else B = 1."""
    parent_U: Int64
    """Places (b * L + l), ascending, whose hidden state predicts a token."""
    edge_parent_E: Int64
    """Index into the U parents of each edge, ascending."""
    edge_token_E: Int64
    """Token id of each edge."""
    token_edge_N: Int64
    """Edge of every completion token."""

    @property
    def num_places(self) -> int:
        """Tokens the model computes, padding included."""
        return self.token_ids_BL.size


def build_layout(kind: str, prompts: Sequences, completions: Sequences, group_index_R: Int64) -> Layout:
    """Lay out R completions, prompts[r] before completions[r]. Completions with one group_index share their prompt.

    For `tree` the completions of a group must be adjacent, and a group's prompts be equal. Completions may be empty;
    prompts may not (nothing would predict the first token): ValueError, as for another name than those of LAYOUTS.
    """
    if min((len(prompt) for prompt in prompts), default=1) == 0:
        raise ValueError(
            "expected prompts of one token or more, got an empty one; nothing predicts its completion's first token: "
            "start it with the tokenizer's beginning-of-sequence token"
        )
    if kind == "padded":
        return _padded(prompts, completions)
    if kind == "packed":
        return _flat(prompts, completions, np.arange(len(completions)))
    if kind == "tree":
        return _flat(prompts, completions, np.asarray(group_index_R))
    raise ValueError(f"layout: expected one of {', '.join(LAYOUTS)}, got {kind!r}")


def suffix_lengths(tree: PrefixTree) -> Int64:
    """Tokens that each completion adds to its tree, in the order of tree.sorted_rollout_R: int64 [R].

    The common prefix with the completion before it ends where the two part: at the parent of the first node that
    begins with the later one. No node begins with a duplicate: it adds nothing.
    """
    length_R = np.diff(tree.offsets)[tree.sorted_rollout_R]
    shared_R = length_R.copy()
    is_root = tree.node_parent_M < 0
    shared_R[tree.node_start_M[is_root]] = 0
    begins = ~is_root & (tree.node_start_M != tree.node_start_M[np.maximum(tree.node_parent_M, 0)])
    shared_R[tree.node_start_M[begins]] = tree.node_depth_M[tree.node_parent_M[begins]]
    return length_R - shared_R


def group_tree(completions: Sequences, group_index_R: Int64) -> PrefixTree:
    """The prefix trees of completions whose groups are adjacent."""
    offsets = np.append(0, np.cumsum([len(completion) for completion in completions]))
    starts = np.flatnonzero(np.diff(group_index_R, prepend=group_index_R[0] - 1))
    tokens = np.concatenate([*completions, np.zeros(0, np.int32)]).astype(np.int32, copy=False)
    return build_prefix_tree(tokens, offsets.astype(np.int64), np.append(starts, len(completions)))


def _padded(prompts: Sequences, completions: Sequences) -> Layout:
    """Rows are prompt + completion; causal attention never looks to the right, so the padding needs no mask."""
    rows = [np.concatenate([prompt, completion]) for prompt, completion in zip(prompts, completions, strict=True)]
    ids_BL = np.zeros((len(rows), max(len(row) for row in rows)), dtype=np.int64)
    for b, row in enumerate(rows):
        ids_BL[b, : len(row)] = row
    lengths_B = np.array([len(completion) for completion in completions], dtype=np.int64)
    begin_B = np.arange(len(rows)) * ids_BL.shape[1] + np.array([len(prompt) for prompt in prompts], dtype=np.int64)
    place_N: Int64 = np.repeat(begin_B, lengths_B) + _within(lengths_B)
    return Layout(
        token_ids_BL=ids_BL,
        position_ids_BL=np.broadcast_to(np.arange(ids_BL.shape[1]), ids_BL.shape),
        suffixes=None,
        parent_U=place_N - 1,
        edge_parent_E=np.arange(place_N.size),
        edge_token_E=ids_BL.reshape(-1)[place_N],
        token_edge_N=np.arange(place_N.size),
    )


def _flat(prompts: Sequences, completions: Sequences, group_index_R: Int64) -> Layout:
    """One row of prefix trees; groups of one completion each are plain packing."""
    tree = group_tree(completions, group_index_R)
    own_R, is_first_R = suffix_lengths(tree), np.zeros(len(completions), dtype=np.bool_)
    is_first_R[tree.group_offsets[:-1]] = True
    ids: list[NDArray[np.int32]] = []
    paths: list[Int64] = []
    depths: list[Int64] = []
    prompt_size, place = 0, 0
    for r, own, is_first in zip(tree.sorted_rollout_R.tolist(), own_R.tolist(), is_first_R.tolist(), strict=True):
        suffix = completions[r][len(completions[r]) - own :]
        if is_first:  # the first suffix of a group holds the prompt too
            prompt_size, suffix = len(prompts[r]), np.concatenate([prompts[r], suffix])
        shared = prompt_size + len(completions[r]) - len(suffix)
        before = paths[-1][:shared] if shared else np.zeros(0, np.int64)
        ids.append(suffix)
        paths.append(np.concatenate([before, np.arange(place, place + len(suffix))]))
        depths.append(np.arange(shared, shared + len(suffix)))
        place += len(suffix)
    of_completion = dict(zip(tree.sorted_rollout_R.tolist(), paths, strict=True))
    parent_N = np.concatenate([of_completion[r][len(prompts[r]) - 1 : -1] for r in range(len(completions))])
    place_N = np.concatenate([of_completion[r][len(prompts[r]) :] for r in range(len(completions))])
    return _with_edges(np.concatenate(ids), np.concatenate(depths), _suffixes(ids, paths), parent_N, place_N)


def _suffixes(ids: list[NDArray[np.int32]], paths: list[Int64]) -> Suffixes:
    """Suffixes without a token (duplicates) have no query and are left out."""
    kept = [path for suffix, path in zip(ids, paths, strict=True) if len(suffix)]
    return Suffixes(
        query_offsets=np.append(0, np.cumsum([len(suffix) for suffix in ids if len(suffix)])).astype(np.int64),
        key_offsets=np.append(0, np.cumsum([len(path) for path in kept])).astype(np.int64),
        key_index=np.concatenate(kept),
    )


def _with_edges(ids: NDArray[np.int32], depth: Int64, suffixes: Suffixes, parent_N: Int64, place_N: Int64) -> Layout:
    """Edges by parent, then place; a place in the row is the end of one edge, so duplicates fall together."""
    place_E, first_N, edge_N = np.unique(place_N, return_index=True, return_inverse=True)
    order_E = np.lexsort((place_E, parent_N[first_N]))
    rank_E = np.empty_like(order_E)
    rank_E[order_E] = np.arange(order_E.size)
    parent_U, edge_parent_E = np.unique(parent_N[first_N][order_E], return_inverse=True)
    return Layout(
        token_ids_BL=ids[None].astype(np.int64),
        position_ids_BL=depth[None],
        suffixes=suffixes,
        parent_U=parent_U,
        edge_parent_E=edge_parent_E.astype(np.int64),
        edge_token_E=ids[place_E[order_E]].astype(np.int64),
        token_edge_N=rank_E[edge_N],
    )


def _within(lengths: Int64) -> Int64:
    """0, 1, ... within each run of the given lengths."""
    return np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
