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

from tasks.core.prefix_tree import build_prefix_tree
from tasks.core.ragged import Int64, within

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

    A group's completions need not be adjacent; for `tree` its prompts must be equal. Completions may be empty; prompts
    may not (nothing would predict the first token): ValueError, as for another name than those of LAYOUTS.
    """
    if min((len(prompt) for prompt in prompts), default=1) == 0:
        raise ValueError(
            "expected prompts of one token or more, got an empty one; nothing predicts its completion's first token: "
            "start it with the tokenizer's beginning-of-sequence token"
        )
    if kind == "padded":
        return _padded(prompts, completions)
    if kind == "packed":
        return lay_out_trees(prompts, completions, packed_order(completions))
    if kind == "tree":
        return lay_out_trees(prompts, completions, tree_order(completions, group_index_R))
    raise ValueError(f"layout: expected one of {', '.join(LAYOUTS)}, got {kind!r}")


@dataclass(frozen=True, kw_only=True, eq=False)
class TreeOrder:
    """A completions in the order in which their trees lie flat: groups together, lexicographic in each."""

    rows_A: Int64
    """Which completion each is."""
    own_A: Int64
    """Tokens it adds to its group's tree: those after its common prefix with the one before it."""
    is_first_A: NDArray[np.bool_]
    """Whether it is the first of its group, and brings the prompt."""

    def sizes(self, prompts: Sequences) -> Int64:
        """Places that each adds to the row."""
        prompt_A = np.array([len(prompts[r]) for r in self.rows_A.tolist()], dtype=np.int64)
        return self.own_A + prompt_A * self.is_first_A

    def where(self, chosen_A: NDArray[np.bool_]) -> "TreeOrder":
        """Whole groups of it."""
        return TreeOrder(rows_A=self.rows_A[chosen_A], own_A=self.own_A[chosen_A], is_first_A=self.is_first_A[chosen_A])

    def cut(self, begin: int, end: int, first_length: int) -> "TreeOrder":
        """A part of it, as an order of its own over those completions; a group that is cut starts anew in each part.

        `first_length`: tokens of the completion at `begin`, all of which it now adds.
        """
        own_a, is_first_a = self.own_A[begin:end].copy(), self.is_first_A[begin:end].copy()
        own_a[0], is_first_a[0] = first_length, True
        return TreeOrder(rows_A=np.arange(end - begin), own_A=own_a, is_first_A=is_first_a)


def packed_order(completions: Sequences) -> TreeOrder:
    """Every completion on its own, as they come."""
    lengths = np.array([len(completion) for completion in completions], dtype=np.int64)
    return TreeOrder(rows_A=np.arange(lengths.size), own_A=lengths, is_first_A=np.ones(lengths.size, np.bool_))


def tree_order(completions: Sequences, group_index_R: Int64) -> TreeOrder:
    """The order of the groups' prefix trees.

    The common prefix with the completion before it ends where the two part: at the parent of the first node that
    begins with the later one. No node begins with a duplicate: it adds nothing.
    """
    if not len(completions):
        return packed_order(completions)
    rows_A = np.argsort(group_index_R, kind="stable")
    offsets = np.append(0, np.cumsum([len(completions[r]) for r in rows_A], dtype=np.int64))
    tokens = np.concatenate([completions[r] for r in rows_A]).astype(np.int32, copy=False)
    group_A = np.asarray(group_index_R)[rows_A]
    starts = np.flatnonzero(np.diff(group_A, prepend=group_A[0] - 1))
    tree = build_prefix_tree(tokens, offsets, np.append(starts, rows_A.size))
    length_A = np.diff(offsets)[tree.sorted_rollout_R]
    shared_A = length_A.copy()
    is_root = tree.node_parent_M < 0
    shared_A[tree.node_start_M[is_root]] = 0
    begins = ~is_root & (tree.node_start_M != tree.node_start_M[np.maximum(tree.node_parent_M, 0)])
    shared_A[tree.node_start_M[begins]] = tree.node_depth_M[tree.node_parent_M[begins]]
    is_first_A = np.zeros(rows_A.size, dtype=np.bool_)
    is_first_A[starts] = True
    return TreeOrder(rows_A=rows_A[tree.sorted_rollout_R], own_A=length_A - shared_A, is_first_A=is_first_A)


def _padded(prompts: Sequences, completions: Sequences) -> Layout:
    """Rows are prompt + completion; causal attention never looks to the right, so the padding needs no mask."""
    rows = [np.concatenate([prompt, completion]) for prompt, completion in zip(prompts, completions, strict=True)]
    ids_BL = np.zeros((len(rows), max(len(row) for row in rows)), dtype=np.int64)
    for b, row in enumerate(rows):
        ids_BL[b, : len(row)] = row
    lengths_B = np.array([len(completion) for completion in completions], dtype=np.int64)
    begin_B = np.arange(len(rows)) * ids_BL.shape[1] + np.array([len(prompt) for prompt in prompts], dtype=np.int64)
    place_N: Int64 = np.repeat(begin_B, lengths_B) + within(lengths_B)
    return Layout(
        token_ids_BL=ids_BL,
        position_ids_BL=np.broadcast_to(np.arange(ids_BL.shape[1]), ids_BL.shape),
        suffixes=None,
        parent_U=place_N - 1,
        edge_parent_E=np.arange(place_N.size),
        edge_token_E=ids_BL.reshape(-1)[place_N],
        token_edge_N=np.arange(place_N.size),
    )


def lay_out_trees(prompts: Sequences, completions: Sequences, order: TreeOrder) -> Layout:
    """One row of prefix trees, by the completions' order; groups of one completion each are plain packing."""
    ids: list[NDArray[np.int32]] = []
    paths: list[Int64] = []
    depths: list[Int64] = []
    prompt_size, place = 0, 0
    for r, own, is_first in zip(order.rows_A.tolist(), order.own_A.tolist(), order.is_first_A.tolist(), strict=True):
        suffix = completions[r][len(completions[r]) - own :]
        if is_first:  # the first suffix of a group holds the prompt too
            prompt_size, suffix = len(prompts[r]), np.concatenate([prompts[r], suffix])
        assert len(prompts[r]) == prompt_size
        shared = prompt_size + len(completions[r]) - len(suffix)
        before = paths[-1][:shared] if shared else np.zeros(0, np.int64)
        ids.append(suffix)
        paths.append(np.concatenate([before, np.arange(place, place + len(suffix))]))
        depths.append(np.arange(shared, shared + len(suffix)))
        place += len(suffix)
    of_completion = dict(zip(order.rows_A.tolist(), paths, strict=True))
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
