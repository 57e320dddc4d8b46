"""P2T: the prefix tree of every group's completions, and the value of each of its nodes.

Source: TEMPO, arXiv 2509.18314, Prefix-to-Tree (P2T). The tree of a group holds every exact token-id prefix of its
completions; D(s) is the set of completions that start with s, V(s) the mean reward over D(s). V changes along a
completion only where D does, so the tree is path-compressed: a node stands where completions part, or where one ends.

Ragged data travel in Arrow's list layout: `token_ids_N` int32, `offsets` int64[R+1], `group_offsets` int64[P+1].
Shapes: P prompts (groups), R completions, N tokens, M nodes, K breakpoints; A active completions, S segments, C runs.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.core.ragged import Bool, Float64, Int32, Int64, check_layout

# tests/benchmarks/credit.py --chunks: 5.2 ns per token at 2,048 (calls into numpy), 3.0 at 16,384, no better above.
COMPLETIONS_PER_CHUNK = 16_384
_TOKEN_BITS = 33  # 2**32 token ids and "ended"
_FIRST_WIDTH, _LAST_WIDTH = 8, 128  # tokens compared at once: most pairs part within 8 tokens, duplicates never do


@dataclass(frozen=True, kw_only=True, eq=False)
class PrefixTree:
    """The prefix trees of all groups, as flat arrays.

    Nodes are in depth-first order: groups in order, a parent before its children, children by token id. So the node
    arrays (but node_first_rollout_M) are the same for every order of a group's completions.
    """

    node_group_M: Int64
    """Group (index into the P prompts) of the node."""
    node_parent_M: Int64
    """Parent node; -1 for a root. Each group with a completion has one root: depth 0, an empty edge."""
    node_depth_M: Int32
    """Tokens from the root to the end of the node's edge."""
    node_first_rollout_M: Int64
    """A completion r that passes the node: its edge is token_ids_N[offsets[r] + depth(parent) : offsets[r] + depth]."""
    node_num_completions_M: Int32
    """|D(s)|: completions that pass the node or end at it."""
    node_is_branch_M: Bool
    """Whether two or more distinct next tokens follow. Ending is not a token: an end before one token is no branch."""
    node_start_M: Int64
    """D(s) = sorted_rollout_R[start : start + num_completions]."""
    sorted_rollout_R: Int64
    """The completions, groups in order, lexicographic by token ids in each; identical ones by index."""
    leaf_node_R: Int64
    """Node at which completion r ends: an inner node for a strict prefix of another, one node for identical ones."""
    breakpoint_rollout_K: Int64
    """Completion of each breakpoint (r, t): D(s_t) != D(s_{t+1}). Sorted by completion, then position."""
    breakpoint_position_K: Int32
    """t: index in its completion of the token whose addition changes D."""
    breakpoint_node_K: Int64
    """Node entered by token t; the node left is its parent."""
    offsets: Int64
    """The completions' offsets into `token_ids_N`, as given."""
    group_offsets: Int64
    """The groups' offsets into the completions, as given."""


def build_prefix_tree(
    token_ids_N: Int32, offsets: Int64, group_offsets: Int64, *, completions_per_chunk: int = COMPLETIONS_PER_CHUNK
) -> PrefixTree:
    """Build the prefix tree of every group (P2T) by splitting all groups at once, one round per tree level.

    A round takes a leader in each segment (completions that share a prefix), compares the others with it, ends the
    segment's node at their least common prefix and sorts by the token there: runs of equal tokens are the children.
    What stays with its leader keeps its common prefix, so each completion's shared tokens are compared once.

    Cost: O(shared tokens + completions * depth in nodes). `completions_per_chunk` changes the speed, never the result.
    Offsets need not start at 0 (a sliced Arrow array): tokens outside them are ignored. An empty completion ends at the
    root, an empty group has no node, no groups give empty arrays. ValueError if the buffers contradict each other.
    """
    token_ids_N, offsets, group_offsets = check_layout(token_ids_N, offsets, group_offsets)
    cuts = np.arange(completions_per_chunk, group_offsets[-1], completions_per_chunk)
    bounds = [0, *np.unique(np.searchsorted(group_offsets, cuts)).tolist(), group_offsets.size - 1]
    parts: list[dict[str, NDArray[Any]]] = []
    num_nodes = 0
    for low, high in pairwise(bounds):  # whole groups; the last chunk may be empty
        first, last = int(group_offsets[low]), int(group_offsets[high])
        nodes = _Nodes(token_ids_N, offsets[first : last + 1], group_offsets[low : high + 1] - first)
        nodes.split()
        parts.append(nodes.in_order(first_group=low, first_node=num_nodes, first_rollout=first))
        num_nodes += nodes.num
    arrays = parts[0] if len(parts) == 1 else {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}
    return PrefixTree(**arrays, offsets=offsets, group_offsets=group_offsets)


def node_values(tree: PrefixTree, rewards_R: Float64) -> Float64:
    """V(s) = mean of r_k over k in D(s), raw rewards (arXiv 2509.18314), for every node: float64 [M].

    The mean is clipped to the range of its rewards, so equal rewards give exactly that reward (0.1 seven times does not
    sum to 0.7) and their differences no rounding dust. V(root) is the group's mean.
    """
    reward_sorted_R = rewards_R[tree.sorted_rollout_R]
    value_M = reward_sorted_R[tree.node_start_M]
    many = np.flatnonzero(tree.node_num_completions_M > 1)
    if many.size:
        count = tree.node_num_completions_M[many]
        pairs = np.repeat(tree.node_start_M[many], 2)  # reduceat on (start, end) pairs: the ranges nest
        pairs[1::2] += count
        padded = np.append(reward_sorted_R, 0.0)  # reduceat wants every index, also the last end, inside
        mean = np.add.reduceat(padded, pairs)[0::2] / count
        low, high = np.minimum.reduceat(padded, pairs)[0::2], np.maximum.reduceat(padded, pairs)[0::2]
        value_M[many] = np.clip(mean, low, high)
    return value_M


def edge_ranges(tree: PrefixTree) -> tuple[Int64, Int64]:
    """Where every node's edge begins in `token_ids_N`, and its length: int64 [M] each; a root's edge is empty."""
    parent_depth_M = np.where(tree.node_parent_M < 0, 0, tree.node_depth_M[tree.node_parent_M])
    return tree.offsets[tree.node_first_rollout_M] + parent_depth_M, (tree.node_depth_M - parent_depth_M).astype(
        np.int64
    )


def edge_token_ids(tree: PrefixTree, token_ids_N: Int32) -> tuple[Int32, Int64]:
    """The tokens of every node's edge as a list array: flat int32 and offsets int64 [M+1]; a root's edge is empty."""
    begin_M, length_M = edge_ranges(tree)
    edge_offsets = np.append(0, np.cumsum(length_M))
    shift_M = begin_M - edge_offsets[:-1]
    return token_ids_N[np.arange(edge_offsets[-1]) + np.repeat(shift_M, length_M)], edge_offsets


class _Nodes:
    """Node arrays in order of creation (level by level), grown by `split`, put in order by `in_order`."""

    def __init__(self, token_ids_N: Int32, offsets: Int64, group_offsets: Int64) -> None:
        padding = _LAST_WIDTH if token_ids_N.size < _LAST_WIDTH else 0  # room for one block
        self.token_ids_N = np.ascontiguousarray(np.pad(token_ids_N, (0, padding)) if padding else token_ids_N)
        self.begin_R, self.length_R = offsets[:-1], np.diff(offsets)
        self.group = np.flatnonzero(np.diff(group_offsets))
        self.num = self.num_roots = self.group.size
        capacity = 2 * self.length_R.size + self.num  # at most as many branches as ends, and the roots
        self.columns = np.zeros((6, capacity), dtype=np.int64)
        self.start, self.count, self.parent, self.depth, self.num_breakpoints, self.same_start = self.columns
        self.is_branch = np.zeros(capacity, dtype=np.bool_)
        self.start[: self.num] = group_offsets[self.group]
        self.count[: self.num] = np.diff(group_offsets)[self.group]
        self.parent[: self.num] = -1
        self.order_R = np.arange(self.length_R.size)
        self.leaf_R = np.zeros(self.length_R.size, dtype=np.int64)

    def split(self) -> None:
        """Split every segment, one round a level, until each is one completion or identical ones."""
        node_S = np.arange(self.num)
        member_A, slot_A = self.order_R.copy(), self.order_R.copy()
        lcp_A = np.full(member_A.size, -1)  # common prefix with the segment's leader; -1: not compared yet
        while node_S.size:
            count_S = self.count[node_S]
            segment_A = np.repeat(np.arange(node_S.size), count_S)
            first_S = np.cumsum(count_S) - count_S
            leader_S = member_A[first_S]
            if node_S[0] >= self.num_roots:  # a root ends at depth 0, whatever its completions share
                self._compare(node_S, segment_A, leader_S, member_A, lcp_A)
                self.depth[node_S] = np.minimum.reduceat(lcp_A, first_S)
            depth_A = self.depth[node_S][segment_A]
            token_A = self.token_ids_N.take(self.begin_R[member_A] + depth_A, mode="clip") + np.int64(2**31 + 1)
            token_A[self.length_R[member_A] == depth_A] = 0  # ended: before every token
            key_A = (segment_A << _TOKEN_BITS) + token_A
            sort_A = np.argsort(key_A, kind="stable")  # stable: a leader stays the first of its run
            key_A, member_A, lcp_A = key_A[sort_A], member_A[sort_A], lcp_A[sort_A]
            self.order_R[slot_A] = member_A
            first_C = np.flatnonzero(np.append(True, key_A[1:] != key_A[:-1]))
            count_C = np.diff(first_C, append=key_A.size)
            segment_C, leader_C = key_A[first_C] >> _TOKEN_BITS, member_A[first_C]
            is_child_C = (key_A[first_C] & (2**_TOKEN_BITS - 1)) > 0
            node_C = self._add_children(node_S, segment_C, is_child_C, slot_A[first_C], count_C)
            self.leaf_R[member_A] = np.repeat(node_C, count_C)  # deeper levels overwrite it
            lcp_A[np.repeat(leader_C != leader_S[segment_C], count_C)] = -1
            lcp_A[first_C] = self.length_R[leader_C]
            self.depth[node_C[is_child_C]] = lcp_A[first_C[is_child_C]]  # holds for a child of one completion
            open_C = is_child_C & (count_C > 1)
            open_A = np.repeat(open_C, count_C)
            node_S, member_A, slot_A, lcp_A = node_C[open_C], member_A[open_A], slot_A[open_A], lcp_A[open_A]

    def _compare(self, node_S: Int64, segment_A: Int64, leader_S: Int64, member_A: Int64, lcp_A: Int64) -> None:
        """Fill in the unknown entries of `lcp_A`. The parent's prefix and one token are known to be shared."""
        todo = np.flatnonzero(lcp_A < 0)
        segment, member = segment_A[todo], member_A[todo]
        leader, known = leader_S[segment], self.depth[self.parent[node_S]][segment] + 1
        limit = np.minimum(self.length_R[leader], self.length_R[member])
        left, right = self.begin_R[leader] + known, self.begin_R[member] + known
        lcp_A[todo] = known + _common_length(self.token_ids_N, left, right, limit - known)

    def _add_children(self, node_S: Int64, segment_C: Int64, is_child_C: Bool, slot_C: Int64, count_C: Int64) -> Int64:
        """New nodes for the runs that are children; returns each run's node (its segment's, for the run that ended)."""
        node_C = node_S[segment_C]
        parent, start, count = node_C[is_child_C], slot_C[is_child_C], count_C[is_child_C]
        self.is_branch[node_S] = np.bincount(segment_C[is_child_C], minlength=node_S.size) > 1
        new = slice(self.num, self.num + parent.size)
        self.start[new], self.count[new], self.parent[new] = start, count, parent
        self.num_breakpoints[new] = self.num_breakpoints[parent] + (count != self.count[parent])
        self.same_start[new] = np.where(start == self.start[parent], self.same_start[parent] + 1, 0)
        node_C[is_child_C] = np.arange(new.start, new.stop)
        self.num = new.stop
        return node_C

    def in_order(self, *, first_group: int, first_node: int, first_rollout: int) -> dict[str, NDArray[Any]]:
        """Depth-first order without a sort: nodes by their first completion, ancestors that share it first."""
        starts_at = np.bincount(self.start[: self.num], minlength=self.order_R.size)
        rank = (np.cumsum(starts_at) - starts_at)[self.start[: self.num]] + self.same_start[: self.num]
        created = np.empty(self.num, dtype=np.int64)
        created[rank] = np.arange(self.num)
        start, count, parent, depth, num_breakpoints, _ = self.columns[:, created]
        parent_M, leaf_R, depth_M = rank[parent], rank[self.leaf_R], depth.astype(np.int32)
        rollout_K, node_K = _breakpoints(parent_M, num_breakpoints, leaf_R)
        return {
            "node_group_M": self.group[np.cumsum(parent < 0) - 1] + first_group,
            "node_parent_M": np.where(parent < 0, -1, parent_M + first_node),
            "node_depth_M": depth_M,
            "node_first_rollout_M": self.order_R[start] + first_rollout,
            "node_num_completions_M": count.astype(np.int32),
            "node_is_branch_M": self.is_branch[created],
            "node_start_M": start + first_rollout,
            "sorted_rollout_R": self.order_R + first_rollout,
            "leaf_node_R": leaf_R + first_node,
            "breakpoint_rollout_K": rollout_K + first_rollout,
            "breakpoint_position_K": depth_M[parent_M[node_K]],
            "breakpoint_node_K": node_K + first_node,
        }


def _breakpoints(parent_M: Int64, num_breakpoints_M: Int64, leaf_node_R: Int64) -> tuple[Int64, Int64]:
    """Completion and node of every breakpoint, climbing from the last nodes, one level a round.

    num_breakpoints_M counts from root to node: D shrinks at every node but a root's child that takes all completions.
    """
    node, left = leaf_node_R, num_breakpoints_M[leaf_node_R]
    rollout_K, slot = np.repeat(np.arange(node.size), left), np.cumsum(left) - 1
    node_K = np.empty(rollout_K.size, dtype=np.int64)
    while (alive := np.flatnonzero(left)).size:
        node, slot, left = node[alive], slot[alive], left[alive]
        node_K[slot] = node
        node, slot, left = parent_M[node], slot - 1, left - 1
    return rollout_K, node_K


def _common_length(token_ids_N: Int32, left: Int64, right: Int64, limit: Int64) -> Int64:
    """Length of the common prefix of token_ids_N[left:] and token_ids_N[right:], at most `limit`, for each pair."""
    common = np.zeros(left.size, dtype=np.int64)
    alive, width = np.flatnonzero(limit), _FIRST_WIDTH
    while alive.size:
        done = common[alive]
        differs = _rows(token_ids_N, left[alive] + done, width) != _rows(token_ids_N, right[alive] + done, width)
        first = differs.argmax(axis=1)
        is_equal = ~differs[np.arange(alive.size), first]
        first[is_equal] = width
        common[alive] = done + first
        alive = alive[is_equal & (common[alive] < limit[alive])]
        width = min(4 * width, _LAST_WIDTH)
    return np.minimum(common, limit)


def _rows(token_ids_N: Int32, begin: Int64, width: int) -> Int32:
    """token_ids_N[begin : begin + width] for each begin; past the buffer's end the last token repeats (never used)."""
    last = token_ids_N.size - width
    # every run of `width` tokens as a row: rows copy faster than elements, and sliding_window_view costs 30 us a call
    runs: Int32 = np.ndarray((last + 1, width), np.int32, token_ids_N.data, strides=(4, 4))
    late = np.flatnonzero(begin > last)
    rows: Int32 = runs[np.minimum(begin, last) if late.size else begin]
    if not late.size:
        return rows
    rows[late] = token_ids_N.take(begin[late, None] + np.arange(width), mode="clip")
    return rows
