"""What holds of the estimators whatever the groups: brute force, order, scale and origin of rewards, signal, mask."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.core.advantage import ESTIMATORS, AdvantageConfig, Advantages, compute_advantages
from tests.tasks.core.groups import Group, flat, per_token

Signals = dict[str, np.ndarray]


@st.composite
def random_groups(draw: st.DrawFn) -> list[Group]:
    """Ragged groups with duplicates, proper prefixes, empty completions, one or none; binary and real rewards."""
    rng = random.Random(draw(st.integers(0, 2**32)))
    vocabulary = rng.choice([3, 50, 152_000])
    reward = rng.choice([lambda: float(rng.random() < 0.5), lambda: round(rng.uniform(-10, 10), 3)])
    groups: list[Group] = []
    for _ in range(rng.randrange(4)):
        group: Group = []
        for _ in range(rng.choice([0, 1, 2, 5, 9])):
            donor = rng.choice(group)[0] if group and rng.random() < 0.7 else []
            kept = donor[: rng.choice([len(donor), rng.randint(0, len(donor))])]
            group.append((kept + [rng.randrange(vocabulary) for _ in range(rng.choice([0, 1, 3, 12]))], reward()))
        groups.append(group)
    return groups


def signals_of(groups: list[Group], seed: int = 0) -> Signals:
    num = sum(len(tokens) for group in groups for tokens, _ in group)
    rng = np.random.default_rng(seed)
    return {"entropies_N": rng.permutation(num).astype(np.float32), "values_N": rng.normal(size=num)}


def credit(estimator: str, groups: list[Group], *, arrays: Signals | None = None, **config: object) -> Advantages:
    arrays = signals_of(groups) if arrays is None else arrays
    return compute_advantages(estimator, *flat(groups), config=AdvantageConfig(**config), **arrays)  # type: ignore[arg-type]


def passing(group: Group, tokens: list[int], depth: int) -> list[int]:
    """D(s): the completions that start with the first `depth` tokens."""
    return [j for j, (other, _) in enumerate(group) if other[:depth] == tokens[:depth]]


@given(random_groups())
@settings(deadline=None, max_examples=150)
def test_tempo_loo_and_prm_weighted_are_their_formulas_on_the_sets_of_completions(groups: list[Group]):
    loo, prm = [], []
    for group in groups:
        rewards = [reward for _, reward in group]
        has_signal = len(set(rewards)) > 1
        scale = np.std(rewards, ddof=1) + 1e-6 if has_signal else 1.0
        for i, (tokens, reward) in enumerate(group):
            for t in range(len(tokens)):
                here, there = passing(group, tokens, t), passing(group, tokens, t + 1)
                others = [r for j, r in enumerate(rewards) if j != i] or [reward]
                total = reward - np.mean(others)
                if here != there:
                    total += np.mean([rewards[j] for j in there]) - np.mean([rewards[j] for j in here if j != i])
                loo.append(total / scale if has_signal else 0.0)
                prm.append((reward - np.mean(rewards)) / scale / len(there) if has_signal else 0.0)
    np.testing.assert_allclose(credit("tempo_loo", groups).advantages, loo, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(credit("prm_weighted", groups).advantages, prm, rtol=1e-6, atol=1e-6)


@given(random_groups(), st.randoms(use_true_random=False), st.sampled_from(list(ESTIMATORS)))
@settings(deadline=None, max_examples=150)
def test_the_order_of_the_completions_does_not_matter(groups: list[Group], rng: random.Random, estimator: str):
    arrays = signals_of(groups)
    lengths = [len(tokens) for group in groups for tokens, _ in group]
    parts = {name: np.split(array, np.cumsum(lengths)[:-1]) for name, array in arrays.items() if lengths}
    order, first = [], 0
    for group in groups:
        order += [first + i for i in rng.sample(range(len(group)), len(group))]
        first += len(group)
    everyone = [completion for group in groups for completion in group]
    moved = iter([everyone[i] for i in order])
    shuffled = [[next(moved) for _ in group] for group in groups]
    before = per_token(credit(estimator, groups, arrays=arrays))
    own = {name: np.concatenate([part[i] for i in order]) for name, part in parts.items()} or arrays
    after = per_token(credit(estimator, shuffled, arrays=own))
    for place, i in enumerate(order):
        np.testing.assert_allclose(after[place], before[i], rtol=1e-5, atol=1e-5)


# The scale of rewards divides out where std(r) does; their origin always does: r - mean(r) and V - V know no origin.
SCALE_FREE = ("tempo", "tempo_loo", "grpo", "hepo", "prm_weighted", "reinforce_pp")
LINEAR = ("dr_grpo", "rloo")


@given(random_groups(), st.sampled_from([0.5, 3.0]), st.sampled_from([-2.0, 0.0, 7.0]))
@settings(deadline=None, max_examples=50)
def test_rewards_times_a_plus_b_change_nothing_or_only_the_scale(groups: list[Group], a: float, b: float):
    other = [[(tokens, a * reward + b) for tokens, reward in group] for group in groups]
    for estimator in (*SCALE_FREE, *LINEAR):
        factor = a if estimator in LINEAR else 1.0
        before, after = credit(estimator, groups, epsilon=1e-12), credit(estimator, other, epsilon=1e-12)
        np.testing.assert_allclose(after.advantages, factor * before.advantages, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("estimator", [name for name in ESTIMATORS if name != "ppo"])
def test_one_completion_or_equal_rewards_give_exactly_zero(estimator: str):
    groups: list[Group] = [[([1, 2, 3], 0.1), ([1, 2, 4], 0.1), ([5], 0.1), ([], 0.1), ([5], 0.1)], [([1, 2], 0.7)]]
    for normalize in (True, False):
        result = credit(estimator, groups, normalize=normalize, epsilon=0.0)
        assert result.advantages.tolist() == [0.0] * 10
        assert result.moved() == (0.0, 0.0)


@given(random_groups(), st.integers(0, 99))
@settings(deadline=None, max_examples=60)
def test_a_masked_token_has_no_advantage_and_the_others_keep_theirs(groups: list[Group], seed: int):
    arrays = signals_of(groups)
    mask_N = np.random.default_rng(seed).random(arrays["values_N"].size) < 0.6
    for estimator in ("tempo", "tempo_loo", "grpo", "dr_grpo", "rloo", "prm_weighted"):  # without batch statistics
        whole = credit(estimator, groups, arrays=arrays)
        masked = credit(estimator, groups, arrays=arrays | {"loss_mask_N": mask_N})
        assert masked.advantages.tolist() == np.where(mask_N, whole.advantages, 0).tolist()
        td, base = masked.moved()
        if estimator not in ("tempo", "tempo_loo"):
            assert td == 0
            np.testing.assert_allclose(base, np.abs(masked.advantages).sum(dtype=np.float64), rtol=1e-5)


@given(random_groups(), st.integers(0, 99), st.booleans())
@settings(deadline=None, max_examples=60)
def test_batch_statistics_see_trainable_tokens_only(groups: list[Group], seed: int, whiten: bool):
    # The same as if the masked tokens were not there at all: hepo's share, whitening, and GAE over adjacent tokens.
    arrays = signals_of(groups)
    mask_N = np.random.default_rng(seed).random(arrays["values_N"].size) < 0.6
    kept, place = [], 0
    for group in groups:
        kept.append([])
        for tokens, reward in group:
            mask = mask_N[place : place + len(tokens)]
            kept[-1].append(([token for token, is_kept in zip(tokens, mask, strict=True) if is_kept], reward))
            place += len(tokens)
    for estimator in ("reinforce_pp", "hepo", "ppo"):
        masked = credit(estimator, groups, arrays=arrays | {"loss_mask_N": mask_N}, whiten=whiten, gae_lambda=0.9)
        own = {name: array[mask_N] for name, array in arrays.items()}
        alone = credit(estimator, kept, arrays=own, whiten=whiten, gae_lambda=0.9)
        np.testing.assert_allclose(masked.advantages[mask_N], alone.advantages, rtol=1e-6, atol=1e-6)
        assert not masked.advantages[~mask_N].any()
        if estimator == "ppo":
            assert masked.returns_N is not None
            np.testing.assert_allclose(masked.returns_N[mask_N], alone.returns_N, rtol=1e-6, atol=1e-6)
            np.testing.assert_array_equal(masked.returns_N[~mask_N], arrays["values_N"].astype(np.float32)[~mask_N])


def test_td_counts_on_every_trainable_segment():
    # 1 | 8 (tool output, masked) | 2 and 1 | 9 (masked) | 3, 4: D changes at token 0, at the masked token, never after.
    # r = 1, 0, 0: V(root) 1/3, V(1) 1/2, V(1 8) 1. td of the first completion: 1/6 at token 0, 1/2 at the masked one.
    group: Group = [([1, 8, 2], 1.0), ([1, 9, 3], 0.0), ([4], 0.0)]
    mask_N = np.array([True, False, True] * 2 + [True])
    result = credit("tempo", [group], arrays={"loss_mask_N": mask_N}, normalize=False)
    first = per_token(result)[0]
    np.testing.assert_allclose(first, [2 / 3 + 1 / 6, 0, 2 / 3], rtol=1e-6)
    assert first[1] == 0
    np.testing.assert_allclose(result.td_value_K[:2], [1 / 6, 1 / 2])  # the tree's td is kept: it still telescopes
    # a branch in the second segment: 7 | 5 (masked) | 1 and 7 | 5 | 2: td +-1/2 at the last token
    second = credit(
        "tempo", [[([7, 5, 1], 1.0), ([7, 5, 2], 0.0)]], arrays={"loss_mask_N": mask_N[:6]}, normalize=False
    )
    assert per_token(second) == [[0.5, 0.0, 1.0], [-0.5, 0.0, -1.0]]
    # moved: td 1/2 + 1/2 over base 4 trainable tokens of 1/2
    assert second.moved() == (1.0, 2.0)
