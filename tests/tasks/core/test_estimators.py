"""Every estimator but tempo (test_advantage.py): one example with its arithmetic, and tempo's switches."""

from dataclasses import asdict
from typing import get_args

import numpy as np
import pytest

from tasks.config import CreditConfig, Estimator
from tasks.core.advantage import (
    ESTIMATORS,
    SIGNALS,
    AdvantageConfig,
    Advantages,
    compute_advantages,
    gather_statistics,
    make_completions,
)
from tests.tasks.core.groups import Group, flat, per_token


def credit(estimator: str, *groups: Group, signals: dict[str, list] | None = None, **config: object) -> Advantages:
    arrays = {name: np.array(signal) for name, signal in (signals or {}).items()}
    return compute_advantages(estimator, *flat(list(groups)), config=AdvantageConfig(**config), **arrays)  # type: ignore[arg-type]


# r = 0, 1, 5: mean 2, r - mean = -2, -1, 3, std sqrt((4 + 1 + 9)/2) = sqrt(7). Tokens 1 2, 1 3, 4.
THREE: Group = [([1, 2], 0.0), ([1, 3], 1.0), ([4], 5.0)]
STD = 7**0.5 + 1e-6


def test_the_configuration_offers_these_estimators_and_switches():
    assert get_args(Estimator) == tuple(ESTIMATORS)
    assert asdict(CreditConfig()) == asdict(AdvantageConfig())


def test_grpo_divides_by_the_unbiased_std():
    np.testing.assert_allclose(credit("grpo", THREE).base_R, np.array([-2, -1, 3]) / STD)
    assert credit("grpo", THREE, normalize=False).base_R.tolist() == [-2.0, -1.0, 3.0]
    np.testing.assert_allclose(credit("grpo", THREE, epsilon=7**0.5).base_R, np.array([-1, -0.5, 1.5]) / 7**0.5)


def test_dr_grpo_divides_by_nothing():
    assert per_token(credit("dr_grpo", THREE)) == [[-2.0, -2.0], [-1.0, -1.0], [3.0]]


def test_rloo_takes_the_mean_of_the_others():
    # 0 - (1 + 5)/2, 1 - (0 + 5)/2, 5 - (0 + 1)/2
    np.testing.assert_allclose(credit("rloo", THREE).base_R, [-3.0, -1.5, 4.5])


def test_reinforce_pp_whitens_r_minus_mean_over_the_tokens_of_the_batch():
    # per token -2 -2 -1 -1 3: mean -3/5, squares 2 (7/5)^2 + 2 (2/5)^2 + (18/5)^2 = (98 + 8 + 324)/25 = 17.2,
    # std sqrt(17.2/4) = sqrt(4.3)
    expected = (np.array([-2, -1, 3]) + 0.6) / (4.3**0.5 + 1e-6)
    np.testing.assert_allclose(credit("reinforce_pp", THREE).base_R, expected)
    assert credit("reinforce_pp", THREE, whiten=False).base_R.tolist() == [-2.0, -1.0, 3.0]


def test_reinforce_pp_takes_the_batchs_mean_off_a_group_without_signal_too():
    # five more tokens of 0: mean -3/10, squares (4 + 4 + 1 + 1 + 9) - 10 (3/10)^2 = 18.1, std sqrt(18.1/9)
    result = credit("reinforce_pp", THREE, [([7, 7, 7], 1.0), ([8, 8], 1.0)])
    np.testing.assert_allclose(result.base_R[3:], [0.3 / ((18.1 / 9) ** 0.5 + 1e-6)] * 2)


@pytest.mark.parametrize("epsilon", [1e-6, 1e-20])
def test_whitening_equal_advantages_gives_exactly_zero(epsilon: float):
    # r = 0 0 1 0 0 and the rewarded completion is empty: all 24 trainable tokens have 0 - 1/5, and nothing is left
    group: Group = [([1] * 3, 0.0), ([2] * 12, 0.0), ([], 1.0), ([3] * 4, 0.0), ([4] * 5, 0.0)]
    assert credit("reinforce_pp", group, epsilon=epsilon).advantages.tolist() == [0.0] * 24
    # a critic that expects 0.7 of every completion, and rewards of 0.1: r - V alike at every token
    alike = [[(tokens, 0.1) for tokens, _ in group]]
    values = {"values_N": [0.7] * 24}
    assert credit("ppo", *alike, signals=values, epsilon=epsilon).advantages.tolist() == [0.0] * 24


def test_tempo_loo_has_baselines_without_the_completion():
    # completion [1 2], r = 0. Others' mean 3: 0 - 3. Token 1: V(1) = 1/2, D(root) without it is {1, 5}: 1/2 - 3 = -5/2.
    # Token 2: V(1 2) = 0, D(1) without it is {1}: 0 - 1 = -1. Completion [4]: 5 - 1/2 and V(4) - mean{0, 1} = 5 - 1/2.
    result = credit("tempo_loo", THREE)
    np.testing.assert_allclose(result.td_value_K, [-2.5, -1.0, 0.5 - 2.5, 1.0, 4.5])
    expected = [[-3 - 2.5, -3 - 1], [-1.5 - 2, -1.5 + 1], [4.5 + 4.5]]
    for found, wanted in zip(per_token(result), expected, strict=True):
        np.testing.assert_allclose(found, np.array(wanted) / STD, rtol=1e-6)


def test_tempo_loo_says_nothing_where_all_share_a_token():
    # [9 1] and [9 2]: D does not change at token 9, so its advantage is that of rloo over the std: (1 - 0)/sqrt(1/2).
    result = credit("tempo_loo", [([9, 1], 1.0), ([9, 2], 0.0)])
    scale = 0.5**0.5 + 1e-6
    # at token 1: V = 1, the other's reward 0: td 1
    np.testing.assert_allclose(per_token(result), np.array([[1, 2], [-1, -2]]) / scale, rtol=1e-6)


def test_prm_weighted_divides_by_how_many_completions_pass_the_token():
    # token 1 is passed by two, the others by one each
    found = per_token(credit("prm_weighted", THREE))
    for row, wanted in zip(found, [[-2 / 2, -2], [-1 / 2, -1], [3]], strict=True):
        np.testing.assert_allclose(row, np.array(wanted) / STD, rtol=1e-6)


def test_prm_weighted_where_all_completions_share_a_token_gives_a_gth_of_grpo():
    # 9 is passed by both (one ends there), 2 by one; r - mean = +-1/2
    found = per_token(credit("prm_weighted", [([9], 1.0), ([9, 2], 0.0)], normalize=False))
    assert found == [[0.25], [-0.25, -0.5]]


def test_hepo_credits_exactly_the_share_with_the_highest_entropy():
    # 5 tokens, 40 %: ceil(2) = 2, the entropies 0.9 and 0.7
    signals = {"entropies_N": [0.1, 0.9, 0.7, 0.2, 0.3]}
    found = per_token(credit("hepo", THREE, signals=signals, hepo_fraction=0.4))
    np.testing.assert_allclose(np.concatenate(found), np.array([0, -2, -1, 0, 0]) / STD, rtol=1e-6)
    # 20.1 % of 5 tokens: ceil(1.005) = 2 again; 20 %: 1
    assert np.count_nonzero(credit("hepo", THREE, signals=signals, hepo_fraction=0.201).advantages) == 2
    assert np.count_nonzero(credit("hepo", THREE, signals=signals).advantages) == 1


def test_hepo_takes_the_first_of_equal_entropies():
    signals = {"entropies_N": [0.5, 0.5, 0.5, 0.5, 0.5]}
    found = credit("hepo", THREE, signals=signals, hepo_fraction=0.6).advantages  # ceil(3) = 3
    assert np.flatnonzero(found).tolist() == [0, 1, 2]


def test_ppo_is_gae_and_its_returns_are_the_critics_targets():
    # one completion of two tokens, r = 1, V = 1/4, 1/2. lambda 1: A = r - V = 3/4, 1/2, returns 1, 1.
    signals = {"values_N": [0.25, 0.5]}
    one: Group = [([3, 4], 1.0)]
    result = credit("ppo", one, signals=signals, whiten=False)
    assert (result.advantages.tolist(), result.returns_N.tolist()) == ([0.75, 0.5], [1.0, 1.0])
    # lambda 1/2: delta = V_1 - V_0 = 1/4 and 1 - 1/2 = 1/2; A_0 = 1/4 + 1/2 * 1/2 = 1/2; returns 3/4, 1
    result = credit("ppo", one, signals=signals, whiten=False, gae_lambda=0.5)
    assert (result.advantages.tolist(), result.returns_N.tolist()) == ([0.5, 0.5], [0.75, 1.0])
    # whitened: mean 5/8, std sqrt(2 (1/8)^2) = sqrt(1/32); the returns are not touched
    result = credit("ppo", one, signals=signals)
    np.testing.assert_allclose(result.advantages, np.array([1, -1]) / 8 / (32**-0.5 + 1e-6), rtol=1e-6)
    assert result.returns_N.tolist() == [1.0, 1.0]


def test_ppo_has_credit_without_a_groups_signal():
    result = credit("ppo", [([3], 1.0), ([4], 1.0)], signals={"values_N": [0.0, 0.5]}, whiten=False)
    assert per_token(result) == [[1.0], [0.5]]


# --- tempo's switches. V: root 2, [1] 1/2, leaves 0, 1, 5: td -3/2 -1/2; -3/2 +1/2; +3


def test_td_scale_multiplies_the_td_term_alone():
    result = credit("tempo", THREE, td_scale=4.0)
    np.testing.assert_allclose(per_token(result)[0], np.array([-2 - 6, -2 - 2]) / STD, rtol=1e-6)
    assert result.td_value_K.tolist() == [-1.5, -0.5, -1.5, 0.5, 3.0]


def test_td_clip_is_in_units_of_reward_and_comes_before_the_scale():
    result = credit("tempo", THREE, td_clip=1.0, td_scale=2.0)
    assert result.td_value_K.tolist() == [-1.0, -0.5, -1.0, 0.5, 1.0]
    np.testing.assert_allclose(per_token(result)[2], np.array([3 + 2]) / STD, rtol=1e-6)


def test_min_support_drops_td_into_nodes_of_fewer_completions():
    # only [1] has two completions
    result = credit("tempo", THREE, min_support=2)
    assert (result.td_rollout_K.tolist(), result.td_position_K.tolist()) == ([0, 1], [0, 0])
    assert credit("tempo", THREE, min_support=3).td_value_K.tolist() == []
    assert credit("tempo", THREE, min_support=3).advantages.tolist() == credit("grpo", THREE).advantages.tolist()


def test_td_may_be_divided_by_its_own_std():
    # td -3/2 -1/2 -3/2 1/2 3: mean 0, squares 9/4 + 1/4 + 9/4 + 1/4 + 9 = 14, std sqrt(14/4) = sqrt(3.5)
    result = credit("tempo", THREE, td_normalization="td")
    np.testing.assert_allclose(result.td_weight_R, [1 / (3.5**0.5 + 1e-6)] * 3)
    np.testing.assert_allclose(per_token(result)[2], [3 / STD + 3 / (3.5**0.5 + 1e-6)], rtol=1e-6)
    # `normalize` is of std(r) alone: base is r - mean, td has its own std all the same
    bare = credit("tempo", THREE, td_normalization="td", normalize=False)
    assert bare.base_R.tolist() == [-2.0, -1.0, 3.0]
    assert bare.td_weight_R.tolist() == result.td_weight_R.tolist()
    # one branch token ([7] ends inside [7 8]) has no std: no td
    alone = credit("tempo", [([7], 1.0), ([7, 8], 0.0)], td_normalization="td")
    assert alone.td_weight_R.tolist() == [0.0, 0.0]


@pytest.mark.parametrize(("rewards", "first"), [([10.0, 9.0, 1.0, 0.0], 4.5), ([1.0, 0.0, 1.0, 0.0], 0.0)])
def test_td_of_masked_tokens_does_not_enter_its_std(rewards: list[float], first: float):
    # 1 and 2 are masked, td there +-4.5 or 0; then td +-1/2 four times: std sqrt(4/4 / 3), weight sqrt(3) either way
    group = list(zip([[1, 5], [1, 6], [2, 5], [2, 6]], rewards, strict=True))
    result = credit("tempo", group, signals={"loss_mask_N": [False, True] * 4}, td_normalization="td", epsilon=0.0)
    assert sorted({abs(td) for td in result.td_value_K.tolist()}) == ([0.5, first] if first else [0.5])
    np.testing.assert_allclose(result.td_weight_R, [3**0.5] * 4)


def test_trainable_td_alike_but_for_rounding_has_no_std():
    # masked 1 and 2 part the group; 5 is trained on, and 6 is not: V(1 5) - V(1) = 0.3 - 0.2 and 1.1 - 1.0, alike but
    # for 1e-16, by which nothing is divided
    group: Group = [([1, 5], 0.3), ([1, 6], 0.1), ([2, 5], 1.1), ([2, 6], 0.9)]
    mask = {"loss_mask_N": [False, True, False, False] * 2}
    result = credit("tempo", group, signals=mask, td_normalization="td")
    assert len({td for td in result.td_value_K.tolist() if 0 < td < 0.15}) == 2
    assert result.td_weight_R.tolist() == [0.0] * 4


# --- bad input


def test_a_missing_or_wrong_signal_is_refused_before_any_work():
    with pytest.raises(ValueError, match=r"entropies_N: expected one number per completion token for the .* 'hepo'"):
        credit("hepo", THREE)
    with pytest.raises(ValueError, match="values_N: expected one number per completion token for the estimator 'ppo'"):
        credit("ppo", THREE, signals={"entropies_N": [0.0] * 5})
    with pytest.raises(ValueError, match=r"values_N: expected 5 numbers, one per completion token, got shape \(4,\)"):
        credit("ppo", THREE, signals={"values_N": [0.0] * 4})
    with pytest.raises(ValueError, match="entropies_N: expected finite numbers, got inf at token 2"):
        credit("hepo", THREE, signals={"entropies_N": [0.0, 0.0, np.inf, 0.0, 0.0]})
    with pytest.raises(ValueError, match=r"loss_mask_N: expected 5 booleans, .* got int64 of shape \(5,\)"):
        credit("grpo", THREE, signals={"loss_mask_N": [1, 1, 1, 1, 1]})
    with pytest.raises(ValueError, match=r"td_normalization: expected one of reward, td, got 'rewards'; .* 'reward'"):
        credit("tempo", THREE, td_normalization="rewards")


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_reward_that_is_not_finite_is_refused_under_every_estimator(estimator: str, bad: float):
    signals = {"entropies_N": [0.0] * 3, "values_N": [0.0] * 3}
    with pytest.raises(ValueError, match=r"rewards_R: expected finite rewards, got .* at index 1"):
        credit(estimator, [([1, 2], 1.0), ([3], bad)], signals=signals)
    two = flat([[([1], 1.0), ([2], 0.0)]])
    with pytest.raises(ValueError, match="rewards_R: expected 2 rewards, one per completion of offsets"):
        compute_advantages(estimator, *two[:3], np.zeros(3), entropies_N=np.zeros(2), values_N=np.zeros(2))


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_nothing_in_nothing_out(estimator: str):
    signals = {f"{name}_N": np.zeros(0, np.float32) for name in SIGNALS.get(estimator, ())}
    nothing = (np.zeros(0, np.int32), np.array([0]), np.array([0]), np.zeros(0))
    none = compute_advantages(estimator, *nothing, **signals)
    assert (none.advantages.tolist(), none.base_R.tolist(), none.td_offsets.tolist()) == ([], [], [0])
    empty: list[Group] = [[], [([], 1.0), ([], 0.0)], []]
    result = credit(estimator, *empty, signals={name: [] for name in signals})
    assert result.group_mean_P.tolist() == [0.0, 0.5, 0.0]
    assert result.advantages.tolist() == []
    assert none.moved() == result.moved() == (0.0, 0.0)


def test_a_batch_in_chunks_of_whole_groups_gives_what_it_gives_as_a_whole():
    groups: list[Group] = [THREE, [([7, 7, 7], 1.0), ([8, 8], 0.0)], [([1], 2.0)], [([2, 2], 0.5), ([2], 0.25)]]
    rng = np.random.default_rng(3)
    sizes = [sum(len(tokens) for tokens, _ in group) for group in groups]
    signal_N = rng.integers(0, 4, sum(sizes)).astype(np.float32)  # with ties
    for estimator in ("reinforce_pp", "hepo", "ppo"):
        signals = {"entropies_N": signal_N, "values_N": signal_N}
        whole = compute_advantages(estimator, *flat(groups), **signals)
        parts = [
            (group, {name: part[sum(sizes[:i]) : sum(sizes[: i + 1])] for name, part in signals.items()})
            for i, group in enumerate(groups)
        ]
        chunks = [make_completions(*flat([group])[1:], **own) for group, own in parts]
        statistics = gather_statistics(estimator, AdvantageConfig(), lambda chunks=chunks: chunks)
        each = [compute_advantages(estimator, *flat([group]), statistics=statistics, **own) for group, own in parts]
        np.testing.assert_allclose(np.concatenate([part.advantages for part in each]), whole.advantages, rtol=1e-6)
        assert (np.concatenate([part.advantages for part in each]) == 0).tolist() == (whole.advantages == 0).tolist()
