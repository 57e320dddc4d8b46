"""The stored queries that compare verdicts and credit, on rows written by hand and counted by hand."""

from typing import Any

import pytest

from storage.catalog import named_query, open_catalog, run_query

TOKENS = 2


def verdicts(verifier: str, statuses: dict[str, str], answers: dict[str, str] | None = None) -> dict[str, Any]:
    """Correct is worth 1, a timeout nothing, all else 0. The first letter of a rollout's name is its group."""
    num = len(statuses)
    return {
        "rollout_id": list(statuses),
        "group_id": [rollout[0] for rollout in statuses],
        "verifier": [verifier] * num,
        "verifier_version": [1] * num,
        "status": list(statuses.values()),
        "reward": [None if status == "timeout" else float(status == "correct") for status in statuses.values()],
        "extracted_answer": [(answers or {}).get(rollout) for rollout in statuses],
        "failure": [None] * num,
        "num_attempts": [1] * num,
        "seconds": [0.0] * num,
    }


def advantages(rows: dict[str, tuple[float, float, dict[int, float]]], **columns: Any) -> dict[str, Any]:
    """Base advantage, td's weight and td by position of each rollout; a group with bases beside 0 has a signal."""
    num = len(rows)
    signal = {rollout[0] for rollout, (base, _, _) in rows.items() if base}
    return {
        "rollout_id": list(rows),
        "group_id": [rollout[0] for rollout in rows],
        "estimator": ["tempo"] * num,
        "estimator_version": [1] * num,
        "reward": [0.0] * num,
        "group_mean": [0.0] * num,
        "group_std": [float(rollout[0] in signal) for rollout in rows],
        "base_advantage": [base for base, _, _ in rows.values()],
        "td_weight": [weight for _, weight, _ in rows.values()],
        "td_positions": [list(td) for _, _, td in rows.values()],
        "td_values": [list(td.values()) for _, _, td in rows.values()],
        "leaf_node": [0] * num,
        "token_advantages": [None] * num,
        "token_returns": [None] * num,
        "num_trained_tokens": [TOKENS] * num,
        "num_branch_tokens": [1] * num,
        "divergence": [0] * num,
    } | columns


def rollouts(names: list[str], loss_mask: list[list[bool] | None]) -> dict[str, Any]:
    num = len(names)
    text = ("prompt_id", "text", "finish_reason", "policy", "sampler", "decoding")
    return {name: ["x"] * num for name in text} | {
        "rollout_id": names,
        "group_id": [name[0] for name in names],
        "token_ids": [[0] * TOKENS] * num,
        "sampler_logprobs": [[-1.0] * TOKENS] * num,
        "loss_mask": loss_mask,
        "seed": [0] * num,
        "epoch": [0] * num,
        "temperature": [1.0] * num,
        "top_p": [1.0] * num,
        "max_tokens": [9] * num,
    }


def log(data_root: Any, key: str, judged: dict[str, Any], credited: dict[str, Any], **place: Any) -> None:
    """Verdicts and the advantages made of them. Of a recredit, the verdicts' label names the verifier alone."""
    label = place.pop("label", "")
    judges = data_root.commit(f"v{key}", stage="verification", verdicts=judged)
    data_root.log(judges, **place, label=label.removeprefix("tempo "))
    credits = data_root.commit(f"c{key}", stage="credit", advantages=credited)
    data_root.log(credits, **place, label=label, inputs={"verdicts": f"verification/v{key}"})


def ask(data_root: Any, name: str) -> list[tuple[Any, ...]]:
    return run_query(open_catalog(data_root.path), named_query(name), {"run": "demo"}).fetchall()


BEFORE = {"g1": "correct", "g2": "wrong", "h1": "wrong", "h2": "wrong", "i1": "correct", "i2": "correct"}
AFTER = {"g1": "correct", "g2": "correct", "h1": "correct", "h2": "wrong", "i1": "correct", "i2": "timeout"}


def test_every_kind_of_change_of_a_recredit_is_counted(data_root):
    # g: advantages of g1 were 3/4 and 3/4 + 2 * 1/2 = 7/4, of g2 -3/4 and -3/4 - 2 * 3/4 = -9/4: now all are 0
    # h: all were 0; h1's are 3/4 + 1/4 = 1 and 3/4, h2's -3/4 both. i: all stay 0, and i2 has none any more
    # the largest difference is g2's: 9/4
    before = {"g1": (0.75, 2.0, {1: 0.5}), "g2": (-0.75, 2.0, {1: -0.75})} | dict.fromkeys(
        ("h1", "h2", "i1", "i2"), (0.0, 0.0, {})
    )
    after = dict.fromkeys(("g1", "g2", "i1"), (0.0, 0.0, {}))
    after |= {"h1": (0.75, 1.0, {0: 0.25}), "h2": (-0.75, 1.0, {})}
    log(data_root, "1", verdicts("a", BEFORE), advantages(before))
    log(data_root, "2", verdicts("b", AFTER), advantages(after), purpose="recredit", label="tempo b@1")
    log(data_root, "3", verdicts("a", BEFORE), advantages(before), step=2)  # trained on, and not credited anew
    assert ask(data_root, "recredit_changes") == [
        (1, "tempo b@1", "status", "wrong", "correct", 2, 6, None, "g2"),
        (1, "tempo b@1", "status", "correct", "timeout", 1, 6, None, "i2"),
        (1, "tempo b@1", "reward", None, None, 3, 6, 1.0, "g2"),  # g2, h1; i2 has none any more
        (1, "tempo b@1", "advantage", None, None, 5, 6, 2.25, "g2"),  # all but i1
        (1, "tempo b@1", "signal", "no signal", "signal", 1, 3, None, "h"),
        (1, "tempo b@1", "signal", "signal", "no signal", 1, 3, None, "g"),
    ]


def test_a_recredit_of_the_trainings_own_verdicts_changes_advantages_alone(data_root):
    statuses = {"g1": "correct", "g2": "wrong"}
    log(data_root, "1", verdicts("a", statuses), advantages({"g1": (1.0, 0.0, {}), "g2": (-1.0, 0.0, {})}))
    other = advantages({"g1": (0.5, 0.0, {}), "g2": (-1.0, 0.0, {})})
    credited = data_root.commit("c2", stage="credit", advantages=other)
    place = {"purpose": "recredit", "label": "tempo td_scale=0"}
    data_root.log(credited, **place, inputs={"verdicts": "verification/v1"})
    changes = [row[2:] for row in ask(data_root, "recredit_changes")]
    assert changes == [
        ("reward", None, None, 0, 2, 0.0, None),
        ("advantage", None, None, 1, 2, 0.5, "g1"),
    ]
    assert ask(data_root, "verifier_disagreement") == []


@pytest.mark.parametrize(
    ("mask", "base", "td", "dense", "expected"),
    [
        (None, 0.5, {1: 0.25}, [0.5, 1.0], 0.25),  # position 1: 1 - (1/2 + 1/4)
        ([True, False], 0.5, {1: 0.25}, [0.5, 9.0], 0.0),  # not trained on: 0 on both sides
        ([False, True], 0.5, {1: 0.25}, [9.0, 0.5], 0.25),
        (None, 0.5, {}, None, 0.25),  # both sparse, base 1/2 -> 3/4 at every token
        ([False, True], 0.5, {1: -0.25}, None, 0.5),  # 3/4 - (1/2 - 1/4); position 0, a quarter, is not trained on
    ],
)
def test_the_difference_of_an_advantage_is_taken_over_the_tokens_that_are_trained_on(
    data_root, mask, base, td, dense, expected
):
    trained = {"num_trained_tokens": [TOKENS if mask is None else sum(mask)]}
    data_root.log(data_root.commit("r", stage="generation", rollouts=rollouts(["g1"], [mask])))
    log(data_root, "1", verdicts("a", {"g1": "correct"}), advantages({"g1": (base, 1.0, td)}, **trained))
    other = advantages({"g1": (0.75, 1.0, {})}, token_advantages=[dense], **trained)
    place = {"purpose": "recredit", "label": "tempo b@1"}
    log(data_root, "2", verdicts("b", {"g1": "correct"}), other, **place)
    (change,) = [row for row in ask(data_root, "recredit_changes") if row[2] == "advantage"]
    assert change[5:8] == (int(expected > 0), 1, expected)


def test_any_two_verifiers_are_compared_by_pairs_of_statuses(data_root):
    # a and b agree on g1, h2, i1: 2 correct, 1 wrong; they differ on g2, h1 and i2
    log(data_root, "1", verdicts("a", BEFORE, {"g2": "5", "h1": "4"}), advantages({"g1": (0.0, 0.0, {})}))
    place = {"purpose": "recredit", "label": "tempo b@1"}
    log(data_root, "2", verdicts("b", AFTER, {"g2": "5.0", "h1": "6"}), advantages({"g1": (0.0, 0.0, {})}), **place)
    half = {"g1": "correct", "g2": "unparseable"}  # c has judged one group only
    place = {"purpose": "recredit", "label": "tempo c@1"}
    log(data_root, "3", verdicts("c", half), advantages({"g1": (0.0, 0.0, {})}), **place)
    rewarded = verdicts("b", AFTER) | {"reward": [-1.0] * 6}  # b's verdicts once more, worth another reward
    place["label"] = "tempo b@1 rewards.wrong=-1"
    log(data_root, "4", rewarded, advantages({"g1": (0.0, 0.0, {})}), **place)
    assert ask(data_root, "verifier_disagreement") == [
        ("a@1", "wrong", "b@1", "correct", 2, pytest.approx(2 / 6), "g2", "5", "5.0"),
        ("a@1", "correct", "b@1", "timeout", 1, pytest.approx(1 / 6), "i2", None, None),
        ("a@1", "correct", "b@1", "correct", 2, pytest.approx(2 / 6), "g1", None, None),
        ("a@1", "wrong", "b@1", "wrong", 1, pytest.approx(1 / 6), "h2", None, None),
        ("a@1", "wrong", "c@1", "unparseable", 1, 0.5, "g2", "5", None),
        ("a@1", "correct", "c@1", "correct", 1, 0.5, "g1", None, None),
        ("b@1", "correct", "c@1", "unparseable", 1, 0.5, "g2", "5.0", None),
        ("b@1", "correct", "c@1", "correct", 1, 0.5, "g1", None, None),
    ]
