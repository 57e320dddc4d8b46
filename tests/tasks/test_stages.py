"""The stages of a step: rows join, what has no reward is not trained on, the same in is the same out."""

import hashlib
from collections import defaultdict
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tasks.core.arithmetic import CHARACTERS
from tasks.core.epoch import prompts_of_step
from tasks.engines import policy as engine

Row = dict[str, Any]
Loop = Any  # the class of conftest.py, which a test module cannot import
NUM_GROUPS, GROUP_SIZE, MAX_TOKENS = 6, 4, 12  # as in conftest.py


def by(rows: list[Row], key: str) -> dict[Any, list[Row]]:
    groups = defaultdict(list)
    for row in rows:
        groups[row[key]].append(row)
    return groups


# --- generation -------------------------------------------------------------------------------------------------------


def test_generation_samples_each_prompt_of_the_step_group_size_times(loop: Loop) -> None:
    rollouts = loop.rows("generation 2", "rollouts")
    asked = loop.rows("prompts", "prompts")
    chosen = [asked[i]["prompt_id"] for i in prompts_of_step(20, NUM_GROUPS, 2, 0)]
    groups = by(rollouts, "group_id")
    assert [{row["prompt_id"] for row in groups[group]} for group in sorted(groups)] == [{p} for p in chosen]
    assert {len(rows) for rows in groups.values()} == {GROUP_SIZE}
    assert len({row["seed"] for row in rollouts}) == len(rollouts) == NUM_GROUPS * GROUP_SIZE
    (sampled_by,) = {row["policy"] for row in rollouts}
    assert sampled_by == loop.rows("training 1", "policies")[0]["policy"]


def test_a_rollout_s_text_and_finish_reason_are_those_of_its_tokens(loop: Loop) -> None:
    reasons = set()
    for row in loop.rows("generation 1", "rollouts"):
        tokens = row["token_ids"]
        assert row["text"] == "".join(CHARACTERS[t - 3] for t in tokens if t >= 3)  # 0, 1, 2 are special
        assert row["finish_reason"] == ("stop" if tokens[-1] == 1 else "length")
        assert len(row["sampler_logprobs"]) == len(tokens) <= MAX_TOKENS
        assert (len(tokens) == MAX_TOKENS) or row["finish_reason"] == "stop"
        reasons.add(row["finish_reason"])
    assert reasons == {"stop", "length"}


def test_greedy_rollouts_say_so_and_are_all_alike(fresh: Loop) -> None:
    fresh.sample("greedy", "policy", step=1, decoding="greedy")
    rollouts = fresh.rows("greedy", "rollouts")
    assert {(row["decoding"], row["temperature"]) for row in rollouts} == {("greedy", 0.0)}
    for group in by(rollouts, "group_id").values():
        assert len({tuple(row["token_ids"]) for row in group}) == 1


# --- the tables join --------------------------------------------------------------------------------------------------


def test_every_rollout_has_one_verdict_and_one_advantage(loop: Loop) -> None:
    rollouts, verdicts = loop.rows("generation 1", "rollouts"), loop.rows("verification 1", "verdicts")
    advantages = loop.rows("credit 1", "advantages")
    links = [(row["rollout_id"], row["group_id"]) for row in rollouts]
    assert [(row["rollout_id"], row["group_id"]) for row in verdicts] == links
    assert [(row["rollout_id"], row["group_id"]) for row in advantages] == links
    for rollout, verdict, advantage in zip(rollouts, verdicts, advantages, strict=True):
        parity = sum(map(ord, rollout["text"])) % 2
        assert verdict["reward"] == advantage["reward"] == parity
        assert verdict["status"] == ("correct" if parity else "wrong")
    assert 0 < sum(row["reward"] for row in verdicts) < len(verdicts)


def test_td_sums_to_the_reward_over_the_group_s_mean(loop: Loop) -> None:
    # The reward is a function of the text, so identical completions have identical rewards (invariant 1).
    branch_tokens = 0
    for row in loop.rows("credit 1", "advantages"):
        assert sum(row["td_values"]) == pytest.approx(row["reward"] - row["group_mean"], abs=1e-6)
        branch_tokens += len(row["td_values"])
        if row["group_std"]:
            assert row["base_advantage"] == pytest.approx(
                (row["reward"] - row["group_mean"]) / (row["group_std"] + 1e-6)
            )
    assert branch_tokens > 0


def test_the_nodes_on_the_way_to_a_completion_s_leaf_spell_it_and_give_its_td(loop: Loop) -> None:
    tokens = {row["rollout_id"]: row["token_ids"] for row in loop.rows("generation 1", "rollouts")}
    nodes = {(row["group_id"], row["node"]): row for row in loop.rows("credit 1", "prefix_nodes")}
    advantages = loop.rows("credit 1", "advantages")
    shared = 0
    for row in advantages:
        path = [nodes[row["group_id"], row["leaf_node"]]]
        while path[0]["parent"] is not None:
            path.insert(0, nodes[row["group_id"], path[0]["parent"]])
        assert path[0]["node"] == 0
        assert path[0]["value"] == row["group_mean"]  # V(root)
        spelled = [token for node in path for token in node["token_ids"]]
        assert spelled == tokens[row["rollout_id"]]
        steps = [(up["depth"], down["value"] - up["value"]) for up, down in pairwise(path)]
        kept = [(depth, td) for depth, td in steps if td]
        assert row["td_positions"] == [depth for depth, _ in kept]
        assert row["td_values"] == pytest.approx([td for _, td in kept], abs=1e-7)
        for node in path:
            prefix = spelled[: node["depth"]]
            passing = [r for r in advantages if r["group_id"] == row["group_id"]]
            passing = [r for r in passing if tokens[r["rollout_id"]][: node["depth"]] == prefix]
            assert node["num_completions"] == len(passing)
            assert node["value"] == pytest.approx(sum(r["reward"] for r in passing) / len(passing), abs=1e-12)
            shared += node["depth"] > 0 and len(passing) > 1
    assert shared > 0  # some completions do share a prefix


def test_grpo_has_tempo_s_base_advantages_and_no_td(loop: Loop) -> None:
    loop.credit("grpo", "generation 1", "verification 1", estimator="grpo")
    grpo, tempo = loop.rows("grpo", "advantages"), loop.rows("credit 1", "advantages")
    assert [row["base_advantage"] for row in grpo] == [row["base_advantage"] for row in tempo]
    assert len({row["base_advantage"] for row in grpo}) > 2
    assert all(row["td_positions"] == row["td_values"] == [] for row in grpo)
    assert {(row["estimator"], row["td_weight"]) for row in grpo} == {("grpo", 0.0)}
    assert loop.rows("grpo", "prefix_nodes") == loop.rows("credit 1", "prefix_nodes")  # stored for every estimator


# --- completions without a reward -------------------------------------------------------------------------------------


def test_a_verifier_that_fails_is_a_status_and_its_completions_are_neither_credited_nor_trained_on(fresh: Loop) -> None:
    fresh.sample("rollouts", "policy", step=1)
    fresh.judge("verdicts", "rollouts", "moody")
    fresh.credit("credit", "rollouts", "verdicts")
    fresh.train("training", "policy", "rollouts", "credit")
    verdicts, remainders = fresh.rows("verdicts", "verdicts"), []
    for rollout, verdict in zip(fresh.rows("rollouts", "rollouts"), verdicts, strict=True):
        remainder = sum(map(ord, rollout["text"])) % 5
        expected = [("wrong", 0.0), ("correct", 1.0), ("crashed", None), ("out_of_memory", None), ("crashed", None)]
        assert (verdict["status"], verdict["reward"]) == expected[remainder]
        remainders.append(remainder)
    assert set(remainders) == {0, 1, 2, 3, 4}
    failed = [row["rollout_id"] for row in verdicts if row["reward"] is None]
    summary = fresh.artifacts["verdicts"].summary  # says how many failed, and why the first one did
    assert summary["unassigned"] == len(failed)
    assert summary["first_failure"].startswith(f"{failed[0]}: ")
    assert summary["first_failure"].endswith("on purpose")
    rewarded = {row["rollout_id"]: row["reward"] for row in verdicts if row["reward"] is not None}
    advantages = fresh.rows("credit", "advantages")
    assert {row["rollout_id"]: row["reward"] for row in advantages} == rewarded
    for group in by(advantages, "group_id").values():
        assert {row["group_mean"] for row in group} == {sum(row["reward"] for row in group) / len(group)}
    roots = {row["group_id"]: row for row in fresh.rows("credit", "prefix_nodes") if row["node"] == 0}
    assert sum(root["num_completions"] for root in roots.values()) == len(rewarded)
    updates = fresh.rows("training", "updates")
    tokens = {row["rollout_id"]: len(row["token_ids"]) for row in fresh.rows("rollouts", "rollouts")}
    assert sum(row["num_completions"] for row in updates) == len(rewarded)
    assert sum(row["num_tokens"] for row in updates) == sum(tokens[rollout_id] for rollout_id in rewarded)
    assert fresh.artifacts["verdicts"].summary["unassigned"] == len(verdicts) - len(rewarded)


def test_fewer_groups_than_updates_take_one_update_each(fresh: Loop) -> None:
    fresh.sample("rollouts", "policy", step=1)
    fresh.judge("verdicts", "rollouts")
    fresh.credit("credit", "rollouts", "verdicts")
    fresh.train("training", "policy", "rollouts", "credit", updates=NUM_GROUPS + 3)
    assert [row["num_completions"] for row in fresh.rows("training", "updates")] == [GROUP_SIZE] * NUM_GROUPS


def test_a_step_without_any_reward_is_refused_before_it_is_trained_on(fresh: Loop) -> None:
    fresh.sample("rollouts", "policy", step=1)
    fresh.judge("verdicts", "rollouts", "broken")
    fresh.credit("credit", "rollouts", "verdicts")
    assert fresh.artifacts["credit"].summary["unassigned"] == NUM_GROUPS * GROUP_SIZE
    assert fresh.rows("credit", "advantages") == fresh.rows("credit", "prefix_nodes") == []
    with pytest.raises(ValueError, match=r"at least one completion with a reward, got none of the step's 24.*Mend the"):
        fresh.train("training", "policy", "rollouts", "credit")


# --- training ---------------------------------------------------------------------------------------------------------


def file_digests(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}


def test_training_leaves_the_sampling_policy_as_it_was_and_writes_another(fresh: Loop) -> None:
    fresh.sample("rollouts", "policy", step=1)
    fresh.judge("verdicts", "rollouts")
    fresh.credit("credit", "rollouts", "verdicts")
    sampling = fresh.part("policy", "checkpoint")
    before = file_digests(sampling.path)
    fresh.train("training", "policy", "rollouts", "credit")
    trained = fresh.part("training", "checkpoint")
    assert file_digests(sampling.path) == before
    after = file_digests(trained.path)
    assert {name for name in before if after[name] != before[name]} == {"model.safetensors"}
    (row,) = fresh.rows("training", "policies")
    assert (row["policy"], row["parent"]) == (trained.digest[:16], sampling.digest[:16])
    assert fresh.root / row["checkpoint"] == trained.path
    # The one kept in memory is the trained one, with the weights that were stored.
    kept = engine.load_policy(Path("nowhere"), trained.digest, torch.device("cpu"))
    engine.forget_policy()
    loaded = engine.load_policy(trained.path, trained.digest, torch.device("cpu"))
    for ours, stored in zip(kept.model.parameters(), loaded.model.parameters(), strict=True):
        assert torch.equal(ours, stored)


def test_the_first_update_is_on_policy_and_mini_batches_are_whole_groups(loop: Loop) -> None:
    first, second = loop.rows("training 1", "updates")
    assert abs(first["ratio_min"] - 1) < 1e-4
    assert abs(first["ratio_max"] - 1) < 1e-4
    assert abs(second["ratio_max"] - 1) > 1e-3  # the weights have moved since the sampling
    assert first["num_completions"] == second["num_completions"] == NUM_GROUPS * GROUP_SIZE // 2


def test_a_step_goes_on_with_the_optimiser_of_the_step_before(loop: Loop) -> None:
    for name, num_updates in (("training 1", 2), ("training 2", 4)):  # two updates a step
        tensors = load_file(loop.part(name, "optimizer").path / "optimizer.safetensors")
        assert {value.item() for key, value in tensors.items() if key.endswith(":step")} == {num_updates}


def test_training_makes_what_paid_more_likely(fresh: Loop) -> None:
    """One update on advantages of +1 and -1: the mean log-ratio of the rewarded completions rises above the others'."""
    from tasks.engines.trainer import completion_logprobs

    fresh.sample("rollouts", "policy", step=1)
    fresh.judge("verdicts", "rollouts")
    fresh.credit("credit", "rollouts", "verdicts", estimator="dr_grpo")
    fresh.train("training", "policy", "rollouts", "credit", updates=1)
    trained = engine.load_policy(Path("nowhere"), fresh.part("training", "checkpoint").digest, torch.device("cpu"))
    asked = {row["prompt_id"]: row["prompt_token_ids"] for row in fresh.rows("prompts", "prompts")}
    gain = 0.0
    for rollout, credited in zip(fresh.rows("rollouts", "rollouts"), fresh.rows("credit", "advantages"), strict=True):
        prompt, completion = np.array(asked[rollout["prompt_id"]]), np.array(rollout["token_ids"])
        with torch.no_grad():
            logprobs_N, _ = completion_logprobs(trained, [prompt], [completion], 1.0)
        gain += credited["base_advantage"] * (logprobs_N.sum().item() - sum(rollout["sampler_logprobs"]))
    assert gain > 0.1


# --- determinism ------------------------------------------------------------------------------------------------------


def test_the_same_run_in_another_data_root_has_the_same_contents_in_every_stage(
    loop: Loop, make_loop: Callable[..., Loop], tmp_path: Path
) -> None:
    again = make_loop(tmp_path / "again").all_stages().digests
    assert again == {name: digest for name, digest in loop.digests.items() if name in again}
    assert len(again) > 20


def test_no_stage_depends_on_what_an_earlier_one_left_in_memory(
    loop: Loop, make_loop: Callable[..., Loop], tmp_path: Path
) -> None:
    def forget_all() -> None:  # as in a process of its own: a stage that is rerun alone
        engine.forget_policy()
        torch.manual_seed(int.from_bytes(np.random.default_rng().bytes(4), "big"))
        np.random.seed(None)

    alone = make_loop(tmp_path / "alone", between=forget_all).all_stages().digests
    assert alone == {name: digest for name, digest in loop.digests.items() if name in alone}


def test_a_tiny_policy_runs_on_one_thread_unless_told_so_the_number_of_cores_changes_no_content(
    loop: Loop, make_loop: Callable[..., Loop], tmp_path: Path
) -> None:
    told = make_loop(tmp_path / "told", threads=1).all_stages().digests
    assert told == {name: digest for name, digest in loop.digests.items() if name in told}


def test_how_many_are_sampled_at_once_changes_logprobs_in_the_last_digits_and_nothing_else(
    loop: Loop, make_loop: Callable[..., Loop], tmp_path: Path
) -> None:
    """A matrix product of another shape rounds otherwise: logprobs of other batches differ by up to 5e-7 (measured)."""
    other = make_loop(tmp_path / "other", batch_tokens=200).all_stages()
    same = ("verification 1/verdicts", "credit 1/advantages", "credit 1/prefix_nodes", "evaluation prompts/prompts")
    assert [other.digests[name] for name in same] == [loop.digests[name] for name in same]
    for name in ("generation 1", "generation 2", "evaluation rollouts"):
        for ours, theirs in zip(loop.rows(name, "rollouts"), other.rows(name, "rollouts"), strict=True):
            assert [ours[key] for key in ("token_ids", "text", "seed")] == [
                theirs[key] for key in ("token_ids", "text", "seed")
            ]
            assert ours["sampler_logprobs"] == pytest.approx(theirs["sampler_logprobs"], abs=1e-5)
    (ours,), (theirs,) = loop.rows("evaluation", "scores"), other.rows("evaluation", "scores")
    assert (ours["mean"], ours["stderr"]) == (theirs["mean"], theirs["stderr"])
