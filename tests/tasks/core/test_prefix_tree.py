"""The prefix tree against a dict trie written from the definition: V(s) is the mean reward of what starts with s."""

import random
from dataclasses import fields

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tasks.core.prefix_tree import PrefixTree, build_prefix_tree, edge_token_ids, node_values
from tests.tasks.core.groups import Group, flat

Groups = list[Group]
EXTREME_TOKENS = [-(2**31), -1, 0, 1, 151_935, 2**31 - 1]


def build(groups: Groups, **options: int) -> PrefixTree:
    return build_prefix_tree(*flat(groups)[:3], **options)


@st.composite
def random_groups(draw: st.DrawFn) -> Groups:
    """Groups with duplicates, proper prefixes, shared prefixes, empty completions, one or no completions."""
    vocabulary = draw(st.sampled_from([2, 3, 50, 152_000]))
    rewards = draw(st.sampled_from([st.sampled_from([0.0, 1.0]), st.floats(-10, 10), st.sampled_from([0.1, -0.3])]))
    rng = random.Random(draw(st.integers(0, 2**32)))
    groups: Groups = []
    for size in draw(st.lists(st.integers(0, 9), max_size=5)):
        group: list[tuple[list[int], float]] = []
        for _ in range(size):
            donor = rng.choice(group)[0] if group and rng.random() < 0.7 else []
            kept = donor[: rng.choice([len(donor), rng.randint(0, len(donor))])]
            fresh = [rng.randrange(vocabulary) for _ in range(rng.choice([0, 0, 1, 3, 12, 40, 200]))]
            group.append((kept + fresh, draw(rewards)))
        groups.append(group)
    return groups


def trie_nodes(groups: Groups) -> dict[tuple[int, tuple[int, ...]], tuple[int, float, bool]]:
    """(group, path) -> (|D(s)|, V(s), is a branch) of the root, every end, and every prefix that two tokens follow."""
    nodes = {}
    for index, group in enumerate(groups):
        members: dict[tuple[int, ...], list[int]] = {}
        for i, (tokens, _) in enumerate(group):
            for depth in range(len(tokens) + 1):
                members.setdefault(tuple(tokens[:depth]), []).append(i)
        for path, d in members.items():
            following = {group[i][0][len(path)] for i in d if len(group[i][0]) > len(path)}
            if path == () or len(following) > 1 or any(len(group[i][0]) == len(path) for i in d):
                nodes[index, path] = (len(d), sum(group[i][1] for i in d) / len(d), len(following) > 1)
    return nodes


def trie_breakpoints(groups: Groups) -> list[tuple[int, int]]:
    """(r, t) where the set of completions that start with o_<t is not the set that start with o_<=t."""
    found, first = [], 0
    for group in groups:
        for i, (tokens, _) in enumerate(group):
            for t in range(len(tokens)):
                d = [sum(other[:depth] == tokens[:depth] for other, _ in group) for depth in (t, t + 1)]
                if d[0] != d[1]:
                    found.append((first + i, t))
        first += len(group)
    return found


def paths(tree: PrefixTree, token_ids_N: np.ndarray) -> list[tuple[int, tuple[int, ...]]]:
    """(group, tokens from the root) of every node, joined from the edges."""
    edge_tokens, edge_offsets = edge_token_ids(tree, token_ids_N)
    found: list[tuple[int, tuple[int, ...]]] = []
    for m, parent in enumerate(tree.node_parent_M.tolist()):
        edge = tuple(edge_tokens[edge_offsets[m] : edge_offsets[m + 1]].tolist())
        found.append((int(tree.node_group_M[m]), edge if parent < 0 else found[parent][1] + edge))
    return found


def assert_same(left: PrefixTree, right: PrefixTree, *, but: tuple[str, ...] = ()) -> None:
    for field in fields(PrefixTree):
        if field.name not in but:
            one, other = getattr(left, field.name), getattr(right, field.name)
            assert one.dtype == other.dtype, field.name
            np.testing.assert_array_equal(one, other, err_msg=field.name)


def test_a_small_tree_is_the_one_drawn_by_hand():
    # 1 2 3, 1 2 4, 1 2 (ends inside), 5: the root branches into [1 2] and [5]; [1 2] branches into [3] and [4].
    groups: Groups = [[([1, 2, 4], 1), ([5], 0), ([1, 2], 0), ([1, 2, 3], 1)]]
    tree = build(groups)
    assert paths(tree, flat(groups)[0]) == [(0, ()), (0, (1, 2)), (0, (1, 2, 3)), (0, (1, 2, 4)), (0, (5,))]
    assert tree.node_parent_M.tolist() == [-1, 0, 1, 1, 0]
    assert tree.node_depth_M.tolist() == [0, 2, 3, 3, 1]
    assert tree.node_num_completions_M.tolist() == [4, 3, 1, 1, 1]
    assert tree.node_is_branch_M.tolist() == [True, True, False, False, False]
    assert tree.leaf_node_R.tolist() == [3, 4, 1, 2]
    assert tree.sorted_rollout_R.tolist() == [2, 3, 0, 1]
    # D shrinks from 4 to 3 at token 0 of the first branch, from 3 to 1 at token 2; [1 2] has no breakpoint at its end.
    pairs = list(zip(tree.breakpoint_rollout_K.tolist(), tree.breakpoint_position_K.tolist(), strict=True))
    assert pairs == [(0, 0), (0, 2), (1, 0), (2, 0), (3, 0), (3, 2)]
    assert tree.breakpoint_node_K.tolist() == [1, 3, 4, 1, 1, 2]
    # V: root (1+0+0+1)/4, [1 2] (1+0+1)/3, then the single completions.
    np.testing.assert_allclose(node_values(tree, flat(groups)[3]), [0.5, 2 / 3, 1, 1, 0])


def test_an_end_before_one_next_token_changes_d_but_is_no_branch():
    # D(7) = both, D(7 8) = the longer one only: a breakpoint at t = 1, V going from (0+1)/2 to 1.
    tree = build([[([7], 0), ([7, 8], 1)]])
    assert tree.node_is_branch_M.tolist() == [False, False, False]
    assert (tree.breakpoint_rollout_K.tolist(), tree.breakpoint_position_K.tolist()) == ([1], [1])
    assert node_values(tree, np.array([0.0, 1.0])).tolist() == [0.5, 0.5, 1.0]


@given(random_groups())
@example([[([t], 1.0) for t in EXTREME_TOKENS], [([t, t], 0.0) for t in EXTREME_TOKENS]])
@example([[([], 0.5), ([], 1.0)], [], [([0] * 500, 1.0), ([0] * 500, 0.0), ([0] * 499 + [1], 0.0)]])
@settings(deadline=None, max_examples=200)
def test_nodes_and_values_are_those_of_the_dict_trie(groups: Groups):
    token_ids_N, _, _, rewards_R = flat(groups)
    tree = build(groups)
    expected = trie_nodes(groups)
    found = paths(tree, token_ids_N)
    assert found == sorted(expected)  # depth first, children by token id: tuples sort the same way
    assert tree.node_num_completions_M.tolist() == [expected[path][0] for path in found]
    assert tree.node_is_branch_M.tolist() == [expected[path][2] for path in found]
    np.testing.assert_allclose(node_values(tree, rewards_R), [expected[path][1] for path in found], atol=1e-12)
    assert tree.node_depth_M.tolist() == [len(path) for _, path in found]
    completions = [(g, tuple(tokens)) for g, group in enumerate(groups) for tokens, _ in group]
    assert [found[leaf] for leaf in tree.leaf_node_R] == completions


@given(random_groups())
@settings(deadline=None, max_examples=200)
def test_breakpoints_are_where_the_set_of_completions_changes(groups: Groups):
    token_ids_N = flat(groups)[0]
    tree = build(groups)
    rollouts, positions = tree.breakpoint_rollout_K.tolist(), tree.breakpoint_position_K.tolist()
    assert list(zip(rollouts, positions, strict=True)) == trie_breakpoints(groups)
    completions = [tokens for group in groups for tokens, _ in group]
    found = paths(tree, token_ids_N)
    # Token t is the first of the entered node's edge: the node left is o_<t.
    for r, t, node in zip(rollouts, positions, tree.breakpoint_node_K.tolist(), strict=True):
        left, entered = found[tree.node_parent_M[node]][1], found[node][1]
        assert (list(left), entered[t]) == (completions[r][:t], completions[r][t])


@given(random_groups())
@settings(deadline=None, max_examples=100)
def test_every_node_lists_the_completions_that_pass_it(groups: Groups):
    completions = [(g, tuple(tokens)) for g, group in enumerate(groups) for tokens, _ in group]
    tree = build(groups)
    for m, (group, path) in enumerate(paths(tree, flat(groups)[0])):
        start, count = int(tree.node_start_M[m]), int(tree.node_num_completions_M[m])
        passing = [r for r, (g, tokens) in enumerate(completions) if g == group and tokens[: len(path)] == path]
        assert sorted(tree.sorted_rollout_R[start : start + count].tolist()) == passing
        assert tree.node_first_rollout_M[m] in passing
    assert [completions[r] for r in tree.sorted_rollout_R] == sorted(completions)
    assert np.argsort(tree.leaf_node_R, kind="stable").tolist() == tree.sorted_rollout_R.tolist()


@given(random_groups(), st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=100)
def test_the_nodes_do_not_depend_on_the_order_of_the_completions(groups: Groups, rng: random.Random):
    shuffled = [rng.sample(group, len(group)) for group in groups]
    before, after = build(groups), build(shuffled)
    per_completion = ("node_first_rollout_M", "sorted_rollout_R", "leaf_node_R", "offsets")
    assert_same(before, after, but=(*per_completion, *(f.name for f in fields(PrefixTree) if f.name.endswith("_K"))))
    assert paths(before, flat(groups)[0]) == paths(after, flat(shuffled)[0])


@given(random_groups(), st.integers(1, 6))
@settings(deadline=None, max_examples=100)
def test_chunk_boundaries_do_not_show(groups: Groups, completions_per_chunk: int):
    assert_same(build(groups), build(groups, completions_per_chunk=completions_per_chunk))


@given(random_groups(), st.integers(0, 3), st.integers(0, 300))
@settings(deadline=None, max_examples=100)
def test_a_sliced_arrow_buffer_gives_the_same_tree(groups: Groups, before: int, after: int):
    token_ids_N, offsets, group_offsets, _ = flat(groups)
    padding = np.random.default_rng(0).integers(0, 2, before + after).astype(np.int32)
    buffer = np.concatenate([padding[:before], token_ids_N, padding[before:]])
    sliced = build_prefix_tree(buffer, offsets + before, group_offsets)
    assert_same(build(groups), sliced, but=("offsets",))


def test_identical_prompts_never_share_a_tree():
    tree = build([[([1, 2], 1)], [([1, 2], 0)]])
    assert tree.node_group_M.tolist() == [0, 0, 1, 1]
    assert tree.node_parent_M.tolist() == [-1, 0, -1, 2]
    assert node_values(tree, np.array([1.0, 0.0])).tolist() == [1.0, 1.0, 0.0, 0.0]


def test_a_staircase_of_300_prefixes_has_one_node_a_step():
    # Completion i is i zeros, so D(s_t) loses completion t at every token: the deepest tree 300 completions can make.
    tree = build([[([0] * i, float(i)) for i in range(300)]])
    assert tree.node_parent_M.tolist() == list(range(-1, 299))
    assert tree.node_num_completions_M.tolist() == list(range(300, 0, -1))
    assert tree.breakpoint_position_K.tolist() == [t for i in range(300) for t in range(i)]


def test_equal_rewards_give_exactly_that_value():
    # 0.1 seven times sums to 0.7 - 1e-16 in float64, whose seventh is not 0.1.
    tree = build([[([1], 0.1)] * 3 + [([2], 0.1)] * 4])
    assert sum([0.1] * 7) / 7 != 0.1
    assert node_values(tree, np.full(7, 0.1)).tolist() == [0.1, 0.1, 0.1]


GOOD = (np.array([1, 2, 3], dtype=np.int32), np.array([0, 2, 3]), np.array([0, 2]))


@pytest.mark.parametrize(
    ("position", "value", "message"),
    [
        (0, np.array([1, 2, 3]), "token_ids_N: expected a flat int32 array, got int64"),
        (0, np.array([1, 2], dtype=np.int32), r"offsets: expected them inside token_ids_N, \[0, 2\], got \[0, 3\]"),
        (1, np.array([0, 2, 1]), "offsets: expected offsets that never fall, got 2 then 1 at index 2"),
        (1, np.array([-1, 2, 3]), r"got \[-1, 3\]"),
        (1, np.array([], dtype=np.int64), "offsets: expected a flat integer array of one entry or more"),
        (1, np.array([0.0, 2.0, 3.0]), "got float64"),
        (2, np.array([0, 1]), "group_offsets: expected 0 to 2, got 0 to 1"),
        (2, np.array([1, 2]), "group_offsets: expected 0 to 2, got 1 to 2"),
        (2, np.array([0, 3, 2]), "group_offsets: expected offsets that never fall, got 3 then 2 at index 2"),
    ],
)
def test_buffers_that_contradict_each_other_are_refused_by_name(position: int, value: np.ndarray, message: str):
    buffers = [*GOOD[:position], value, *GOOD[position + 1 :]]
    with pytest.raises(ValueError, match=message):
        build_prefix_tree(*buffers)
