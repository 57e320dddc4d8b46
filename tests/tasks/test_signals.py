"""What models say of stored tokens, the critic's warm-up, and a loop with a critic that goes on to the bit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tasks.config import CriticConfig, Experiment, SamplerConfig, TrainConfig
from tasks.critic import first_critic
from tasks.engines import policy as engine
from tasks.signals import signals, wanted_signals

Loop = Any  # the class of conftest.py, which a test module cannot import
BOTH = pytest.mark.parametrize("backbone", ["own", "shared"])
CONFIG = CriticConfig(learning_rate=1e-3)


def ask(
    loop: Loop,
    wanted: tuple[str, ...],
    rollouts: str = "rollouts",
    name: str = "signals",
    top_p: float = 1.0,
    **models: str,
) -> None:
    """`models`: argument of the stage = the artifact that holds it."""
    part = {"critic": "critic"}
    given = {kind: loop.part(models[kind], part.get(kind, "checkpoint")) if kind in models else None
             for kind in ("policy", "reference", "critic")}  # fmt: skip
    rows = {"prompts": loop.part("prompts", "prompts"), "rollouts": loop.part(rollouts, "rollouts")}
    loop(name, signals, wanted=wanted, **given, **rows, temperature=1.0, top_p=top_p, precision="fp32")


def add_critic(loop: Loop, backbone: str) -> None:
    loop("critic", first_critic, policy=loop.part("policy", "checkpoint"), backbone=backbone, seed=9)


@pytest.mark.parametrize(
    ("estimator", "train", "wanted"),
    [
        ("tempo", {}, ()),
        ("rloo", {}, ()),
        ("hepo", {}, ("entropies",)),
        ("ppo", {}, ("values",)),
        ("tempo", {"kl_coefficient": 0.1}, ("reference_logprobs",)),
        ("ppo", {"kl_coefficient": 0.1, "importance_sampling": "token"},
         ("trainer_logprobs", "reference_logprobs", "values")),
    ],
)  # fmt: skip
def test_a_step_asks_models_for_what_its_estimator_and_objective_need_and_for_nothing_else(estimator, train, wanted):
    assert wanted_signals(Experiment(run="x", estimator=estimator, train=TrainConfig(**train))) == wanted


def test_the_kept_mass_is_asked_for_where_importance_weights_undo_a_nucleus() -> None:
    def wanted(top_p: float, importance_sampling: str) -> tuple[str, ...]:
        train = TrainConfig(importance_sampling=importance_sampling)  # type: ignore[arg-type]
        return wanted_signals(Experiment(run="x", sampler=SamplerConfig(top_p=top_p), train=train))

    assert wanted(0.9, "token") == wanted(0.9, "sequence") == ("trainer_logprobs", "kept_mass")
    assert wanted(1.0, "token") == ("trainer_logprobs",)
    assert wanted(0.9, "none") == ()  # steps = 0: nothing trains on it


def test_the_policy_that_sampled_says_what_the_sampler_said_and_what_nobody_asked_for_is_null(fresh: Loop) -> None:
    fresh.sample("rollouts", "policy", step=1)
    ask(fresh, ("trainer_logprobs", "entropies"), policy="policy")
    for said, sampled in zip(fresh.rows("signals", "signals"), fresh.rows("rollouts", "rollouts"), strict=True):
        assert said["rollout_id"] == sampled["rollout_id"]
        assert said["trainer_logprobs"] == pytest.approx(sampled["sampler_logprobs"], abs=1e-5)
        # a distribution over 19 tokens has at most log 19 = 2.94 nats
        assert all(0 < entropy <= np.log(19) + 1e-5 for entropy in said["entropies"])
        assert said["values"] is said["reference_logprobs"] is said["kept_mass"] is None


def test_the_reference_goes_on_saying_what_it_said_while_the_policy_moves(fresh: Loop) -> None:
    fresh.sample("rollouts", "policy", step=1)
    fresh.judge("verdicts", "rollouts")
    fresh.credit("credit", "rollouts", "verdicts")
    fresh.train("training", "policy", "rollouts", "credit")
    ask(fresh, ("trainer_logprobs", "reference_logprobs"), policy="training", reference="policy")
    moved = []
    for said, sampled in zip(fresh.rows("signals", "signals"), fresh.rows("rollouts", "rollouts"), strict=True):
        assert said["reference_logprobs"] == pytest.approx(sampled["sampler_logprobs"], abs=1e-5)
        moved.append(np.abs(np.subtract(said["trainer_logprobs"], sampled["sampler_logprobs"])).max())
    assert min(moved) > 1e-3


@BOTH
def test_the_value_before_the_first_token_is_the_prompt_s_and_so_the_same_in_the_whole_group(
    fresh: Loop, backbone: str
) -> None:
    fresh.sample("rollouts", "policy", step=1)
    add_critic(fresh, backbone)
    ask(fresh, ("values",), critic="critic", **({"policy": "policy"} if backbone == "shared" else {}))
    rows = fresh.rows("signals", "signals")
    firsts: dict[str, list[float]] = {}
    for row, sampled in zip(rows, fresh.rows("rollouts", "rollouts"), strict=True):
        assert len(row["values"]) == len(sampled["token_ids"])
        firsts.setdefault(row["group_id"], []).append(row["values"][0])
    assert len(firsts) == 6
    assert all(np.ptp(values) < 1e-5 for values in firsts.values())
    assert np.ptp([values[0] for values in firsts.values()]) > 1e-3  # other prompts, other values


def ppo_step(loop: Loop, step: int, backbone: str, *, policy: str, critic: str, is_warmup: bool = False) -> None:
    loop.sample(f"rollouts {step}", policy, step=step)
    loop.judge(f"verdicts {step}", f"rollouts {step}")
    models = {"critic": critic} | ({"policy": policy} if backbone == "shared" else {})
    ask(loop, ("values",), f"rollouts {step}", f"signals {step}", **models)
    loop.credit(f"credit {step}", f"rollouts {step}", f"verdicts {step}", "ppo", signals=f"signals {step}")
    loop.train(
        f"training {step}", policy, f"rollouts {step}", f"credit {step}", critic=critic, signals=f"signals {step}",
        optimizer=policy if step > 1 else None, critic_config=CONFIG, is_critic_warmup=is_warmup,
    )  # fmt: skip


def ppo_loop(loop: Loop, backbone: str) -> None:
    """A step in which only the critic learns, and one in which both do."""
    loop.start()
    add_critic(loop, backbone)
    ppo_step(loop, 1, backbone, policy="policy", critic="critic", is_warmup=True)
    ppo_step(loop, 2, backbone, policy="training 1", critic="training 1")


@pytest.fixture(scope="module", params=["own", "shared"])
def ppo(request: pytest.FixtureRequest, make_loop: Callable[..., Loop], tmp_path_factory: Any) -> tuple[Loop, str]:
    """A loop with a critic of each kind, run once for the module."""
    loop = make_loop(tmp_path_factory.mktemp("ppo"))
    ppo_loop(loop, request.param)
    return loop, request.param


def test_while_the_critic_warms_up_the_policy_is_bit_equal_and_then_both_learn(ppo: tuple[Loop, str]) -> None:
    loop, _ = ppo
    digests = loop.digests
    policies = [digests[f"{name}/checkpoint"] for name in ("policy", "training 1", "training 2")]
    assert policies[0] == policies[1]
    assert policies[1] != policies[2]
    critics = [digests[f"{name}/critic"] for name in ("critic", "training 1", "training 2")]
    assert len(set(critics)) == 3
    warm, both = loop.rows("training 1", "updates"), loop.rows("training 2", "updates")
    assert {row["phase"] for row in warm} == {"critic_warmup"}
    assert {row["phase"] for row in both} == {"training"}
    assert all(row["loss"] == row["value_loss"] and row["entropy"] is None for row in warm)
    figures = ("value_loss", "value_clip_fraction", "explained_variance", "critic_grad_norm")
    assert all(row[name] is not None for row in warm + both for name in figures)
    # at the first update of a step nothing has moved since the values were stored: the loss is 1/2 mean (V - R)^2
    update = both[0]["num_completions"]
    assert update == 12
    groups = {row["group_id"] for row in loop.rows("training 2", "update_groups") if row["update"] == 0}
    pairs = zip(loop.rows("signals 2", "signals"), loop.rows("credit 2", "advantages"), strict=True)
    errors = [np.subtract(s["values"], a["token_returns"]) for s, a in pairs if a["group_id"] in groups]
    assert both[0]["value_loss"] == pytest.approx(0.5 * np.mean(np.concatenate(errors) ** 2), rel=1e-4)


def test_a_loop_with_a_critic_goes_on_to_the_bit_whatever_is_in_memory(
    ppo: tuple[Loop, str], make_loop: Callable[..., Loop], tmp_path: Path
) -> None:
    straight, backbone = ppo

    def forget_all() -> None:  # as in a process of its own
        engine.forget_policy()
        torch.manual_seed(int.from_bytes(np.random.default_rng().bytes(4), "big"))

    alone = make_loop(tmp_path / "alone", between=forget_all)
    ppo_loop(alone, backbone)
    assert alone.digests == straight.digests
