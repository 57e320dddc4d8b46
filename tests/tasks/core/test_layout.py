"""Layouts: which tokens the model computes, and what each of them may see."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.core.layout import LAYOUTS, Layout, build_layout

GROUPS = st.lists(
    st.tuples(
        st.lists(st.integers(3, 6), min_size=1, max_size=4),  # prompt
        st.lists(st.lists(st.integers(0, 2), max_size=5), min_size=1, max_size=5),  # completions, much alike
    ),
    min_size=1,
    max_size=4,
)


def arrays(groups: list) -> tuple[list[np.ndarray], list[np.ndarray], np.ndarray]:
    """Prompts, completions and group index, one entry a completion."""
    rows = [(prompt, completion, g) for g, (prompt, group) in enumerate(groups) for completion in group]
    prompts = [np.array(prompt, np.int32) for prompt, _, _ in rows]
    completions = [np.array(completion, np.int32) for _, completion, _ in rows]
    return prompts, completions, np.array([g for _, _, g in rows])


def seen_by(layout: Layout) -> list[list[int]]:
    """The tokens that each place of the layout may attend to, in order of their position."""
    ids, depth = layout.token_ids_BL.reshape(-1), layout.position_ids_BL.reshape(-1)
    if layout.suffixes is None:
        width = layout.token_ids_BL.shape[1]
        return [ids[place - place % width : place + 1].tolist() for place in range(ids.size)]
    seen: list[list[int]] = [[]] * ids.size
    query, key, index = layout.suffixes.query_offsets, layout.suffixes.key_offsets, layout.suffixes.key_index
    for s in range(query.size - 1):
        path = index[key[s] : key[s + 1]]
        for place in range(query[s], query[s + 1]):
            visible = path[: path.size - (query[s + 1] - 1 - place)]  # causal, aligned at the end
            assert visible[-1] == place
            assert depth[visible].tolist() == list(range(visible.size))  # a token's position is its depth
            seen[place] = ids[visible].tolist()
    return seen


@settings(deadline=None)
@given(groups=GROUPS, kind=st.sampled_from(LAYOUTS))
def test_each_completion_token_is_predicted_from_exactly_its_prompt_and_what_came_before(
    groups: list, kind: str
) -> None:
    prompts, completions, group_index_R = arrays(groups)
    layout = build_layout(kind, prompts, completions, group_index_R)
    seen, token = seen_by(layout), 0
    for prompt, completion in zip(prompts, completions, strict=True):
        for t in range(len(completion)):
            edge = layout.token_edge_N[token]
            parent = layout.parent_U[layout.edge_parent_E[edge]]
            assert seen[parent] == [*prompt.tolist(), *completion[:t].tolist()]
            assert layout.edge_token_E[edge] == completion[t]
            token += 1
    assert token == layout.token_edge_N.size
    assert (np.diff(layout.parent_U) > 0).all()
    assert (np.diff(layout.edge_parent_E) >= 0).all()


@settings(deadline=None)
@given(groups=GROUPS)
def test_a_tree_computes_each_prompt_once_and_each_distinct_prefix_once(groups: list) -> None:
    prompts, completions, group_index_R = arrays(groups)
    prefixes = {
        (g, tuple(completion[: t + 1].tolist()))
        for g, completion in zip(group_index_R, completions, strict=True)
        for t in range(len(completion))
    }
    tree = build_layout("tree", prompts, completions, group_index_R)
    assert tree.num_places == sum(len(prompt) for prompt, _ in groups) + len(prefixes)
    assert tree.edge_token_E.size == len(prefixes)
    packed = build_layout("packed", prompts, completions, group_index_R)
    assert packed.num_places == sum(len(p) + len(c) for p, c in zip(prompts, completions, strict=True))


def test_a_tree_by_hand() -> None:
    # prompt 9; completions 1 2 3, 1 2 4, 1 2 (a proper prefix), 1 2 3 (a duplicate), 5:
    # sorted 12 < 123 = 123 < 124 < 5; the row is 9 1 2 | 3 | 4 | 5, the duplicate adds nothing
    prompt = np.array([9], np.int32)
    completions = [np.array(c, np.int32) for c in ([1, 2, 3], [1, 2, 4], [1, 2], [1, 2, 3], [5])]
    layout = build_layout("tree", [prompt] * 5, completions, np.zeros(5, np.int64))
    assert layout.token_ids_BL.tolist() == [[9, 1, 2, 3, 4, 5]]
    assert layout.position_ids_BL.tolist() == [[0, 1, 2, 3, 3, 1]]
    assert layout.suffixes is not None
    assert layout.suffixes.query_offsets.tolist() == [0, 3, 4, 5, 6]
    assert layout.suffixes.key_index.tolist() == [0, 1, 2, 0, 1, 2, 3, 0, 1, 2, 4, 0, 5]
    assert layout.parent_U.tolist() == [0, 1, 2]  # 9 predicts 1 and 5; 1 predicts 2; 2 predicts 3 and 4
    assert layout.edge_token_E.tolist() == [1, 5, 2, 3, 4]
    assert layout.token_edge_N.tolist() == [0, 2, 3, 0, 2, 4, 0, 2, 0, 2, 3, 1]


def test_an_empty_prompt_and_an_unknown_layout_are_refused() -> None:
    one = np.array([1], np.int32)
    with pytest.raises(ValueError, match="nothing predicts its completion's first token"):
        build_layout("padded", [one[:0]], [one], np.zeros(1, np.int64))
    with pytest.raises(ValueError, match="expected one of padded, packed, tree, got 'trie'"):
        build_layout("trie", [one], [one], np.zeros(1, np.int64))
