"""The estimators: one function each, from the rewards of whole groups to the terms of every token's advantage.

| estimator    | advantage of token t of completion i                                     | source           |
|--------------|--------------------------------------------------------------------------|------------------|
| tempo        | (r_i - mean(r) + V(s_{t+1}) - V(s_t)) / (std(r) + epsilon)                | arXiv 2509.18314 |
| tempo_loo    | the same with baselines that leave i out (below)                          | this project     |
| grpo         | (r_i - mean(r)) / (std(r) + epsilon)                                      | arXiv 2402.03300 |
| dr_grpo      | r_i - mean(r)                                                             | arXiv 2503.20783 |
| rloo         | r_i - mean of the others' r                                               | arXiv 2402.14740 |
| reinforce_pp | r_i - mean(r), whitened over the batch                                    | arXiv 2501.03262 |
| hepo         | grpo at the 20 % of the batch's tokens with the highest entropy, else 0   | arXiv 2506.01939 |
| prm_weighted | grpo / abs(D(s_{t+1}))                                                    | arXiv 2509.21154 |
| ppo          | GAE from a critic, whitened over the batch                                | arXiv 1707.06347 |

mean and std (unbiased, ddof=1) are over the completions of the group; V is the value of a prefix tree node, D(s) the
completions that pass it. A group of one completion, or of equal rewards, gives exactly 0 under every estimator but ppo
(its critic may err) and reinforce_pp when it whitens (the batch's mean is taken off every token).
"""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field

import numpy as np

from tasks.core.batch_statistics import Moments, TopShare
from tasks.core.completions import AdvantageConfig, Completions
from tasks.core.gae import generalized_advantages
from tasks.core.ragged import Float32, Float64, Int32, Int64

Statistics = Moments | TopShare


@dataclass(frozen=True, kw_only=True, eq=False)
class Terms:
    """Advantage of token t of completion i: base_R[i] + td_weight_R[i] * td[i, t], or dense_N where that is given."""

    base_R: Float64
    td_rollout_K: Int64 = field(default_factory=lambda: np.zeros(0, np.int64))
    td_position_K: Int32 = field(default_factory=lambda: np.zeros(0, np.int32))
    td_value_K: Float64 = field(default_factory=lambda: np.zeros(0))
    td_weight_R: Float64 | None = None
    """None: 0."""
    dense_N: Float32 | None = None
    returns_N: Float32 | None = None


def tempo(given: Completions, config: AdvantageConfig, _: Statistics | None) -> Terms:
    """(r_i - mean(r) + td_scale * td[i, t]) / (std(r) + epsilon), td = V(s_{t+1}) - V(s_t). arXiv 2509.18314.

    td is 0 but where completions part. It is clipped to +- td_clip and dropped where |D(s_{t+1})| < min_support; with
    td_normalization "td" it is divided by the unbiased std of the group's td at its trainable branch tokens (+ epsilon)
    instead, and left out where that std is 0 (one such token, or td alike at all: there is nothing to scale by).
    `normalize` = False takes std(r) out, from base and td; td's own std stays.
    Without signal every term is 0.
    """
    tree, value_M = given.tree, given.value_M
    assert tree is not None
    assert value_M is not None
    td_M = value_M - value_M[np.maximum(tree.node_parent_M, 0)]
    if config.td_clip:
        td_M = np.clip(td_M, -config.td_clip, config.td_clip)
    counts_M = tree.node_num_completions_M >= config.min_support
    td_K = np.where(counts_M, td_M, 0.0)[tree.breakpoint_node_K]
    scale_P = _std_scale(given, config)
    td_scale_P, has_scale_P = scale_P, given.has_signal_P
    if config.td_normalization == "td":
        counts_K = counts_M[tree.breakpoint_node_K]
        if given.loss_mask_N is not None:
            counts_K &= given.loss_mask_N[given.offsets[tree.breakpoint_rollout_K] + tree.breakpoint_position_K]
        std_P = _td_std(given, td_K[counts_K], tree.breakpoint_rollout_K[counts_K])
        td_scale_P, has_scale_P = std_P + config.epsilon, given.has_signal_P & (std_P > 0)
    weight_P = np.divide(config.td_scale, td_scale_P, out=np.zeros(scale_P.size), where=has_scale_P)
    kept = np.flatnonzero(td_K)
    return Terms(
        base_R=_scaled(given.centered_R, given, scale_P),
        td_rollout_K=tree.breakpoint_rollout_K[kept],
        td_position_K=tree.breakpoint_position_K[kept],
        td_value_K=td_K[kept],
        td_weight_R=given.spread(weight_P),
    )


def tempo_loo(given: Completions, config: AdvantageConfig, _: Statistics | None) -> Terms:
    """(r_i - mean of the others + [t is a branch token] td[i, t]) / (std(r) + epsilon), with both baselines free of i:
    td = V(s_{t+1}) - mean of r over D(s_t) without i. A branch token is one at which D changes (there |D(s_t)| >= 2).

    td does not telescope: V(s_{t+1}) still holds r_i, the baseline below it does not. tempo's td switches do not apply.
    Without signal every term is 0.
    """
    tree, value_M = given.tree, given.value_M
    assert tree is not None
    assert value_M is not None
    node_K = tree.breakpoint_node_K
    left_K = tree.node_parent_M[node_K]
    value_K = value_M[left_K]
    # mean without i = (n V - r_i) / (n - 1) = V + (V - r_i) / (n - 1): exact where all rewards of D(s_t) are equal
    others_K = value_K + (value_K - given.rewards_R[tree.breakpoint_rollout_K]) / (
        tree.node_num_completions_M[left_K] - 1
    )
    td_K = value_M[node_K] - others_K
    scale_P = _std_scale(given, config)
    kept = np.flatnonzero(td_K)
    return Terms(
        base_R=_scaled(rloo(given, config, None).base_R, given, scale_P),
        td_rollout_K=tree.breakpoint_rollout_K[kept],
        td_position_K=tree.breakpoint_position_K[kept],
        td_value_K=td_K[kept],
        td_weight_R=given.spread(np.divide(1.0, scale_P, out=np.zeros(scale_P.size), where=given.has_signal_P)),
    )


def grpo(given: Completions, config: AdvantageConfig, _: Statistics | None) -> Terms:
    """(r_i - mean(r)) / (std(r) + epsilon) at every token; without `normalize` r_i - mean(r). arXiv 2402.03300, 4.1.2.

    Without signal 0.
    """
    return Terms(base_R=_scaled(given.centered_R, given, _std_scale(given, config)))


def dr_grpo(given: Completions, config: AdvantageConfig, _: Statistics | None) -> Terms:
    """r_i - mean(r) at every token. arXiv 2503.20783. Without signal 0."""
    return Terms(base_R=given.centered_R)


def rloo(given: Completions, config: AdvantageConfig, _: Statistics | None) -> Terms:
    """r_i - mean of the others' r = (r_i - mean(r)) G / (G - 1) at every token. arXiv 2402.14740.

    Without signal 0, also for a completion that has no others.
    """
    factor_P = given.group_sizes / np.maximum(given.group_sizes - 1, 1)
    return Terms(base_R=given.centered_R * given.spread(factor_P))


def reinforce_pp(given: Completions, config: AdvantageConfig, statistics: Statistics | None) -> Terms:
    """r_i - mean(r) at every token, then (A - mean) / (std + epsilon) over the batch's trainable tokens.

    REINFORCE++ with the group's baseline, arXiv 2501.03262. A long completion weighs more in the batch's mean, so that
    this mean is not 0, and a group without signal gets -mean / (std + epsilon). 0 where the whole batch has no signal.
    Without `whiten` it is dr_grpo.
    """
    if statistics is None:
        return Terms(base_R=given.centered_R)
    return Terms(base_R=_whitened(given.centered_R, statistics, config))


def hepo(given: Completions, config: AdvantageConfig, statistics: Statistics | None) -> Terms:
    """grpo at the ceil(hepo_fraction * tokens) trainable tokens of the batch with the highest entropy, 0 elsewhere.

    "Beyond the 80/20 rule", arXiv 2506.01939: forking tokens alone are trained on. Of equal entropies at the threshold
    the batch's first tokens are taken, so their number is exact. Without signal 0.
    """
    assert isinstance(statistics, TopShare)
    assert given.entropies_N is not None
    chosen_N = np.ones(given.entropies_N.size, np.bool_) if given.loss_mask_N is None else given.loss_mask_N.copy()
    chosen_N[chosen_N] = statistics.choose(given.trainable(given.entropies_N))
    base_R = grpo(given, config, None).base_R
    dense_N = np.where(chosen_N, np.repeat(base_R.astype(np.float32), np.diff(given.offsets)), np.float32(0))
    return Terms(base_R=base_R, dense_N=dense_N)


def prm_weighted(given: Completions, config: AdvantageConfig, _: Statistics | None) -> Terms:
    """grpo's advantage divided by |D(s_{t+1})|, the number of completions that pass the token: lambda-GRPO.

    arXiv 2509.21154: GRPO's loss on a shared token counts once for each completion that shares it; dividing undoes it.
    A token that all G completions share gets a G-th of grpo's, one of a single completion all. Without signal 0.
    """
    tree = given.tree
    assert tree is not None
    base_R = grpo(given, config, None).base_R
    num_breakpoints_R = np.bincount(tree.breakpoint_rollout_K, minlength=base_R.size)
    # segments of constant D: one from each completion's first token (all of the group), one from each breakpoint
    first_R = np.arange(base_R.size) + np.cumsum(num_breakpoints_R) - num_breakpoints_R
    place_K = np.arange(tree.breakpoint_rollout_K.size) + tree.breakpoint_rollout_K + 1
    begin, count = np.empty((2, first_R.size + place_K.size), dtype=np.int64)
    begin[first_R], count[first_R] = given.offsets[:-1], given.spread(given.group_sizes)
    begin[place_K] = given.offsets[tree.breakpoint_rollout_K] + tree.breakpoint_position_K
    count[place_K] = tree.node_num_completions_M[tree.breakpoint_node_K]
    advantage = (np.repeat(base_R, num_breakpoints_R + 1) / count).astype(np.float32)
    return Terms(base_R=base_R, dense_N=np.repeat(advantage, np.diff(begin, append=given.offsets[-1])))


def ppo(given: Completions, config: AdvantageConfig, statistics: Statistics | None) -> Terms:
    """GAE(gae_gamma, gae_lambda) from a critic's values, whitened over the batch's trainable tokens. arXiv 1707.06347.

    returns_N = advantage before whitening + value: the critic's target. GAE runs over the trainable tokens of a
    completion as if they were adjacent, the reward at the last of them; a masked token gets 0, and its value as return.
    A perfect critic gives 0 without `whiten`. Credit does not need the group: one completion a prompt is enough.
    """
    assert given.values_N is not None
    raw = _raw_ppo(given, config)
    advantage = raw if statistics is None else _whitened(raw, statistics, config)
    dense_N = np.zeros(given.values_N.size, np.float32)
    returns_N = given.values_N.copy()
    mask = slice(None) if given.loss_mask_N is None else given.loss_mask_N
    dense_N[mask] = advantage
    returns_N[mask] += raw
    return Terms(base_R=np.zeros(given.rewards_R.size), dense_N=dense_N, returns_N=returns_N)


ESTIMATORS: dict[str, Callable[[Completions, AdvantageConfig, Statistics | None], Terms]] = {
    "tempo": tempo,
    "tempo_loo": tempo_loo,
    "grpo": grpo,
    "dr_grpo": dr_grpo,
    "rloo": rloo,
    "reinforce_pp": reinforce_pp,
    "hepo": hepo,
    "prm_weighted": prm_weighted,
    "ppo": ppo,
}
"""The estimators by name."""

SIGNALS: dict[str, tuple[str, ...]] = {"hepo": ("entropies",), "ppo": ("values",)}
"""What a model has to say of every token before an estimator can be computed: columns of the table `signals`."""

NEEDS_TREE = frozenset({"tempo", "tempo_loo", "prm_weighted"})
"""Estimators that read the prefix tree."""

HAS_TD = frozenset({"tempo", "tempo_loo"})
"""Estimators that give branch tokens credit of their own: sparse td beside the completion's base."""

DENSE = frozenset({"hepo", "prm_weighted", "ppo"})
"""Estimators whose advantages have no exact sparse form."""


def gather_statistics(
    estimator: str, config: AdvantageConfig, chunks: Callable[[], Iterable[Completions]]
) -> Statistics | None:
    """What an estimator has to know of the whole batch; None where that is nothing.

    `chunks()` starts a pass over the batch, in whole groups: one for the moments of reinforce_pp and ppo, two for
    hepo's share. TopShare counts ties down while it chooses: it serves one walk through the batch, in the same order.
    """
    if estimator == "hepo":
        top = TopShare(config.hepo_fraction)
        for count in (top.count_upper, top.count_lower):
            for given in chunks():
                assert given.entropies_N is not None
                count(given.trainable(given.entropies_N))
        top.close()
        return top
    if estimator not in ("reinforce_pp", "ppo") or not config.whiten:
        return None
    moments = Moments()
    for given in chunks():
        if estimator == "ppo":
            moments.add(_raw_ppo(given, config))
        else:
            moments.add(given.centered_R, given.num_trained_R)
    return moments


def check_signals(estimator: str, given: Collection[str]) -> None:
    """ValueError where an estimator needs a signal that is not given."""
    missing = [name for name in SIGNALS.get(estimator, ()) if name not in given]
    if missing:
        raise ValueError(
            f"{missing[0]}_N: expected one number per completion token for the estimator {estimator!r}, got none; its "
            f"formula needs them: compute them with a model (the stage signals does), or take another estimator"
        )


def _std_scale(given: Completions, config: AdvantageConfig) -> Float64:
    """std(r) + epsilon of each group; 1 without `normalize`: [P]."""
    return given.moments[1] + config.epsilon if config.normalize else np.ones(given.has_signal_P.size)


def _scaled(centered_R: Float64, given: Completions, scale_P: Float64) -> Float64:
    """centered_R / scale; 0 without signal, so that epsilon = 0 makes no NaN."""
    scaled_R: Float64 = centered_R / given.spread(np.where(given.has_signal_P, scale_P, 1.0))
    return scaled_R


def _whitened(values: Float64, statistics: Statistics, config: AdvantageConfig) -> Float64:
    """(values - mean) / (std + epsilon); 0 where the batch's values do not differ."""
    assert isinstance(statistics, Moments)
    return (values - statistics.mean) / (statistics.std + config.epsilon) if statistics.std else np.zeros(values.size)


def _raw_ppo(given: Completions, config: AdvantageConfig) -> Float64:
    """Advantages of the trainable tokens, before whitening."""
    assert given.values_N is not None
    offsets = np.append(0, np.cumsum(given.num_trained_R))
    values = given.trainable(given.values_N)
    return generalized_advantages(given.rewards_R, values, offsets, gamma=config.gae_gamma, lambda_=config.gae_lambda)


def _td_std(given: Completions, td_K: Float64, rollout_K: Int64) -> Float64:
    """Unbiased standard deviation of each group's td entries: [P]; 0 for fewer than two, or alike but for rounding."""
    group_K = np.repeat(np.arange(given.group_sizes.size), given.group_sizes)[rollout_K]
    count_P = np.bincount(group_K, minlength=given.group_sizes.size)
    mean_P = np.bincount(group_K, td_K, minlength=count_P.size) / np.maximum(count_P, 1)
    squares_P = np.bincount(group_K, (td_K - mean_P[group_K]) ** 2, minlength=count_P.size)
    std_P: Float64 = np.sqrt(squares_P / np.maximum(count_P - 1, 1))
    size_P = np.sqrt(np.bincount(group_K, td_K**2, minlength=count_P.size))
    return np.where(std_P > 1e-12 * size_P, std_P, 0.0)  # td is a difference of means: 0.3 - 0.2 is not 1.1 - 1.0
