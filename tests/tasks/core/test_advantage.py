"""The theorems of TEMPO (arXiv 2509.18314), with their arithmetic; the other estimators: test_estimators.py."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.core.advantage import DENSE, ESTIMATORS, AdvantageConfig, Advantages, compute_advantages
from tasks.core.prefix_tree import build_prefix_tree
from tests.tasks.core.groups import Group, flat, per_token

SPARSE = [name for name in ESTIMATORS if name not in DENSE]


def credit(estimator: str, *groups: Group, **config: float | bool) -> Advantages:
    return compute_advantages(estimator, *flat(list(groups)), config=AdvantageConfig(**config))


def td_by_definition(group: Group) -> list[list[float]]:
    """V(s_{t+1}) - V(s_t), V(s) the mean reward of the completions that start with s, looked up in a dict trie."""
    rewards_at: dict[tuple[int, ...], list[float]] = {}
    for tokens, reward in group:
        for depth in range(len(tokens) + 1):
            rewards_at.setdefault(tuple(tokens[:depth]), []).append(reward)
    value = {path: sum(rewards) / len(rewards) for path, rewards in rewards_at.items()}
    return [[value[tuple(o[: t + 1])] - value[tuple(o[:t])] for t in range(len(o))] for o, _ in group]


@st.composite
def random_group(draw: st.DrawFn, rewards: st.SearchStrategy[float], *, sizes: tuple[int, int] = (0, 9)) -> Group:
    """Completions that share prefixes: duplicates, proper prefixes, empty ones, one or none."""
    vocabulary = draw(st.sampled_from([2, 3, 50, 152_000]))
    rng = random.Random(draw(st.integers(0, 2**32)))
    group: Group = []
    for _ in range(draw(st.integers(*sizes))):
        donor = rng.choice(group)[0] if group and rng.random() < 0.7 else []
        kept = donor[: rng.choice([len(donor), rng.randint(0, len(donor))])]
        fresh = [rng.randrange(vocabulary) for _ in range(rng.choice([0, 1, 3, 12, 40]))]
        group.append((kept + fresh, draw(rewards)))
    return group


BINARY = st.sampled_from([0.0, 1.0])
REAL = st.floats(-10, 10).map(lambda x: round(x, 3))


@given(st.lists(random_group(st.one_of(BINARY, REAL)), max_size=4), st.booleans())
@settings(deadline=None, max_examples=200)
def test_tempo_is_the_papers_formula_on_a_dict_trie(groups: list[Group], normalize: bool):
    expected = []
    for group in groups:
        rewards = [reward for _, reward in group]
        has_signal = len(set(rewards)) > 1
        mean = np.mean(rewards) if group else 0.0
        scale = np.std(rewards, ddof=1) + 1e-6 if has_signal and normalize else 1.0
        for (_, reward), td in zip(group, td_by_definition(group), strict=True):
            expected += [(reward - mean + delta) / scale if has_signal else 0.0 for delta in td]
    result = credit("tempo", *groups, normalize=normalize)
    assert result.advantages.dtype == np.float32
    np.testing.assert_allclose(result.advantages, expected, rtol=1e-6, atol=1e-6)


EOS = 151_645


@given(random_group(REAL, sizes=(1, 9)))
@settings(deadline=None, max_examples=100)
def test_1_td_sums_to_reward_minus_mean_where_identical_completions_have_identical_rewards(group: Group):
    reward_of = {tuple(tokens): reward for tokens, reward in group}
    group = [
        ([*tokens, EOS], reward_of[tuple(tokens)]) for tokens, _ in group
    ]  # EOS: no completion ends inside another
    result = credit("tempo", group)
    # The values along completion i telescope: V(end) - V(root) = r_i - mean(r).
    total_R = np.bincount(result.td_rollout_K, weights=result.td_value_K, minlength=len(group))
    rewards_R = np.array([reward for _, reward in group])
    np.testing.assert_allclose(total_R, rewards_R - rewards_R.mean(), atol=1e-12)


@given(random_group(REAL, sizes=(1, 9)))
@settings(deadline=None, max_examples=100)
def test_1_td_sums_to_the_value_of_the_end_minus_mean_even_where_a_completion_ends_inside_another(group: Group):
    # D(o_i) then holds what goes on from o_i too: [7] with 1 and [7 8] with 0 give V(7) = 1/2 = mean, so [7] has no td.
    result = credit("tempo", group)
    ends = [[reward for other, reward in group if other[: len(tokens)] == tokens] for tokens, _ in group]
    total_R = np.bincount(result.td_rollout_K, weights=result.td_value_K, minlength=len(group))
    mean = np.mean([reward for _, reward in group])
    np.testing.assert_allclose(total_R, [np.mean(rewards) - mean for rewards in ends], atol=1e-12)


@given(random_group(REAL, sizes=(2, 9)))
@settings(deadline=None, max_examples=100)
def test_2_td_sums_to_zero_over_the_completions_that_go_on_from_a_node(group: Group):
    result = credit("tempo", group)
    tree = result.tree
    assert tree is not None
    # sum over D(s) of V(child of i) - V(s) = |D(s)| V(s) - |D(s)| V(s) = 0. A completion that ends at s has no next
    # token; counted with the r - V(s) it would have got from an EOS, the sum is 0 there too.
    td_M = np.zeros(tree.node_depth_M.size)
    for r, t, td in zip(result.td_rollout_K, result.td_position_K, result.td_value_K, strict=True):
        k = np.flatnonzero((tree.breakpoint_rollout_K == r) & (tree.breakpoint_position_K == t))[0]
        td_M[tree.node_parent_M[tree.breakpoint_node_K[k]]] += td
    rewards_R = np.array([reward for _, reward in group])
    ended_M = np.zeros(td_M.size)
    np.add.at(ended_M, tree.leaf_node_R, rewards_R - result.value_M[tree.leaf_node_R])
    np.testing.assert_allclose(td_M + ended_M, 0.0, atol=1e-12)


@pytest.mark.parametrize("estimator", [*SPARSE, "prm_weighted"])
@pytest.mark.parametrize("normalize", [True, False])
def test_3_equal_rewards_give_exactly_zero(estimator: str, normalize: bool):
    # 0.1 seven times: the sum's seventh is not 0.1, so only max == min shows that there is no signal.
    group = [([1, 2, 3], 0.1), ([1, 2, 4], 0.1), ([5], 0.1), ([1], 0.1), ([], 0.1), ([5], 0.1), ([6], 0.1)]
    result = credit(estimator, group, [([1, 2], 0.7)], normalize=normalize, epsilon=0.0)
    assert result.advantages.tolist() == [0.0] * 12
    assert result.base_R.tolist() == [0.0] * 8
    assert result.td_value_K.tolist() == []
    assert (result.group_mean_P.tolist(), result.group_std_P.tolist()) == ([0.1, 0.7], [0.0, 0.0])


@given(random_group(REAL, sizes=(2, 9)))
@settings(deadline=None, max_examples=100)
def test_3_where_one_next_token_follows_tempo_equals_grpo(group: Group):
    tempo, grpo = credit("tempo", group), credit("grpo", group)
    tree = tempo.tree
    assert tree is not None
    is_breakpoint_N = np.zeros(tempo.advantages.size, dtype=bool)
    is_breakpoint_N[tempo.offsets[tree.breakpoint_rollout_K] + tree.breakpoint_position_K] = True
    assert tempo.advantages[~is_breakpoint_N].tolist() == grpo.advantages[~is_breakpoint_N].tolist()


def test_4_at_most_g_minus_1_tokens_have_td_and_a_comb_reaches_that():
    # 0 0 0 ... against completions that leave it at token 0, 1, ..., 6: each takes one completion out of D.
    comb = [([0] * i + [1] + [2] * 30, 0.0) for i in range(7)] + [([0] * 40, 1.0)]
    result = credit("tempo", comb)
    assert np.diff(result.td_offsets).tolist() == [1, 2, 3, 4, 5, 6, 7, 7]  # G - 1 = 7
    # Along the survivor V = 1/8, 1/7, ..., 1/1.
    own = result.td_value_K[result.td_offsets[7] :]
    np.testing.assert_allclose(own, [1 / (n - 1) - 1 / n for n in range(8, 1, -1)])


@given(random_group(BINARY, sizes=(1, 9)))
@settings(deadline=None, max_examples=100)
def test_4_at_most_g_minus_1_tokens_have_td(group: Group):
    assert np.diff(credit("tempo", group).td_offsets).max() <= len(group) - 1


def test_5_if_all_differ_at_token_0_the_advantage_there_is_twice_grpos():
    # V(s_1) = r_i, V(s_0) = mean: r_i - mean + (r_i - mean). mean 1/4, std sqrt((3/4)^2 + 3 (1/4)^2)/sqrt(3) = 1/2.
    group = [([token, 9, 9], float(token == 3)) for token in range(4)]
    tempo, grpo = per_token(credit("tempo", group)), per_token(credit("grpo", group))
    np.testing.assert_allclose(grpo[3], [1.5, 1.5, 1.5], rtol=1e-5)
    np.testing.assert_allclose(tempo[3], [3.0, 1.5, 1.5], rtol=1e-5)
    np.testing.assert_allclose(tempo, np.array(grpo) * [2, 1, 1], rtol=1e-6)


@given(random_group(BINARY, sizes=(2, 9)))
@settings(deadline=None, max_examples=200)
def test_6_one_token_gets_at_most_1_plus_half_g_times_grpo(group: Group):
    result = credit("tempo", group)
    bound_N = (1 + len(group) / 2) * np.abs(credit("grpo", group).advantages)
    assert (np.abs(result.advantages) <= bound_N * (1 + 1e-6) + 1e-6).all()


def test_7_the_sign_flips_for_a_correct_completion_that_enters_a_bad_child():
    # G = 8, six correct: mean 3/4, std sqrt((6 (1/4)^2 + 2 (3/4)^2) / 7) = 0.4629. Child 1 holds one correct of three.
    group = [([1, 10], 1.0), ([1, 11], 0.0), ([1, 12], 0.0)] + [([2, 20 + i], 1.0) for i in range(5)]
    grpo, tempo = per_token(credit("grpo", group))[0], per_token(credit("tempo", group))[0]
    assert grpo[0] == pytest.approx((1 - 3 / 4) / 0.4629, abs=1e-4) == pytest.approx(0.54, abs=5e-3)
    assert tempo[0] == pytest.approx((1 - 3 / 4 + 1 / 3 - 3 / 4) / 0.4629, abs=1e-4) == pytest.approx(-0.36, abs=5e-3)
    # At the next token it leaves the two wrong ones: td = 1 - 1/3.
    assert tempo[1] == pytest.approx((1 - 3 / 4 + 1 - 1 / 3) / 0.4629, abs=1e-4)


@given(random_group(REAL, sizes=(1, 9)), st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=100)
def test_8_the_order_of_the_completions_does_not_matter(group: Group, rng: random.Random):
    order = rng.sample(range(len(group)), len(group))
    before = per_token(credit("tempo", group))
    after = per_token(credit("tempo", [group[i] for i in order]))
    for place, i in enumerate(order):
        np.testing.assert_allclose(after[place], before[i], rtol=1e-6, atol=1e-6)


def test_a_strict_prefix_gives_td_to_what_goes_on_and_nothing_to_itself():
    # V(7) = (1 + 0)/2; the longer one goes on to V(7 8) = 0: td -1/2 at t = 1. mean 1/2, not normalised.
    assert per_token(credit("tempo", [([7], 1.0), ([7, 8], 0.0)], normalize=False)) == [[0.5], [-0.5, -1.0]]


def test_identical_completions_with_different_rewards_share_their_value():
    # V is the mean of the two to the very end, so no token has td and only the base differs.
    result = credit("tempo", [([1, 2], 1.0), ([1, 2], 0.0)], normalize=False)
    assert per_token(result) == [[0.5, 0.5], [-0.5, -0.5]]
    assert result.td_offsets.tolist() == [0, 0, 0]


@given(st.lists(random_group(st.one_of(BINARY, REAL)), max_size=4), st.sampled_from(SPARSE))
@settings(deadline=None, max_examples=100)
def test_the_sparse_form_says_the_same_as_the_dense_one(groups: list[Group], estimator: str):
    result = credit(estimator, *groups)
    for i, dense in enumerate(per_token(result) if groups and result.base_R.size else []):
        entries = slice(result.td_offsets[i], result.td_offsets[i + 1])
        assert (result.td_rollout_K[entries] == i).all()
        assert (np.diff(result.td_position_K[entries]) > 0).all()
        assert (result.td_value_K[entries] != 0).all()
        rebuilt = np.full(len(dense), result.base_R[i])
        rebuilt[result.td_position_K[entries]] += result.td_weight_R[i] * result.td_value_K[entries]
        np.testing.assert_array_equal(rebuilt.astype(np.float32), dense)


def test_a_tree_already_built_is_used_and_one_not_wanted_is_not_built():
    token_ids_N, offsets, group_offsets, rewards_R = flat([[([1, 2], 1.0), ([1, 3], 0.0)]])
    tree = build_prefix_tree(token_ids_N, offsets, group_offsets)
    for estimator in [*SPARSE, "prm_weighted"]:
        given_tree = compute_advantages(estimator, token_ids_N, offsets, group_offsets, rewards_R, tree=tree)
        assert given_tree.tree is tree
        assert given_tree.value_M is not None
        assert given_tree.value_M.tolist() == [0.5, 0.5, 1.0, 0.0]
        without = compute_advantages(estimator, token_ids_N, offsets, group_offsets, rewards_R, with_tree=False)
        assert (without.tree is None) == (estimator not in ("tempo", "tempo_loo", "prm_weighted"))
        assert without.advantages.tolist() == given_tree.advantages.tolist()


def test_a_sliced_arrow_buffer_gives_the_same_advantages_laid_out_from_0():
    token_ids_N, offsets, group_offsets, rewards_R = flat([[([1, 2], 1.0), ([1, 3], 0.0)], [([1], 0.0), ([2], 1.0)]])
    whole = compute_advantages("tempo", token_ids_N, offsets, group_offsets, rewards_R)
    padded = np.concatenate([np.array([1, 3], dtype=np.int32), token_ids_N, np.array([3], dtype=np.int32)])
    sliced = compute_advantages("tempo", padded, offsets + 2, group_offsets, rewards_R)
    assert sliced.advantages.tolist() == whole.advantages.tolist()
    assert sliced.offsets.tolist() == [0, 2, 4, 5, 6]
    second = compute_advantages("tempo", token_ids_N, offsets[2:], np.array([0, 2]), rewards_R[2:])
    assert second.advantages.tolist() == whole.advantages[4:].tolist()


def test_errors_name_the_fact_and_the_remedy():
    token_ids_N, offsets, group_offsets, rewards_R = flat([[([1, 2], 1.0), ([1, 3], 0.0)]])
    with pytest.raises(ValueError, match=r"estimator: expected one of tempo, .* got 'gpro'; did you mean 'grpo'"):
        compute_advantages("gpro", token_ids_N, offsets, group_offsets, rewards_R)
    with pytest.raises(ValueError, match="rewards_R: expected 2 rewards, one per completion of offsets, got shape"):
        compute_advantages("tempo", token_ids_N, offsets, group_offsets, rewards_R[:1])
    with pytest.raises(ValueError, match="rewards_R: expected finite rewards, got nan at index 1"):
        compute_advantages("tempo", token_ids_N, offsets, group_offsets, np.array([1.0, np.nan]))
    with pytest.raises(ValueError, match="offsets: expected offsets that never fall"):
        compute_advantages("grpo", token_ids_N, np.array([0, 3, 2]), group_offsets, rewards_R, with_tree=False)
    other = build_prefix_tree(token_ids_N, np.array([0, 1, 4]), group_offsets)
    with pytest.raises(ValueError, match="tree: expected the prefix tree of these 2 completions"):
        compute_advantages("tempo", token_ids_N, offsets, group_offsets, rewards_R, tree=other)
