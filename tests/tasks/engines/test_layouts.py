"""Packed rows and prefix trees: the gradients of padded rows, on models as they come."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM

from tasks.core.layout import build_layout
from tasks.core.objective import Objective
from tasks.engines.batch import Batch
from tasks.engines.micro_batches import Arrangement
from tasks.engines.policy import Policy
from tasks.engines.trainer import completion_logprobs, policy_update
from tasks.policy import PolicySource, check_layout

NO_CLIP = 1e9


def random_tries(seed: int) -> Batch:
    """Up to 5 groups of up to 6 completions over 2 tokens: duplicates, proper prefixes, empty ones, in any order.

    Sampler log-probabilities are far from the policy's, so that ratios are clipped on both sides and by the dual clip;
    siblings on one edge have different ones; a third of the completions have advantage 0.
    """
    rng = np.random.default_rng(seed)
    rows: list[tuple[np.ndarray, np.ndarray, int]] = []
    for group in range(rng.integers(1, 6)):
        prompt = rng.integers(3, 19, size=rng.integers(1, 12)).astype(np.int32)
        for _ in range(rng.integers(1, 7)):
            rows.append((prompt, rng.integers(1, 3, size=rng.integers(0, 8)).astype(np.int32), group))
    rows.append((prompt, np.array([1, 2], np.int32), group))  # never without a token
    rows = [rows[i] for i in rng.permutation(len(rows))]

    def per_token(draw: Callable[[int], np.ndarray]) -> list[np.ndarray]:
        return [draw(len(completion)).astype(np.float32) for _, completion, _ in rows]

    return Batch(
        prompts=[prompt for prompt, _, _ in rows],
        completions=[completion for _, completion, _ in rows],
        group_index_R=np.array([group for _, _, group in rows]),
        sampler_logprobs=per_token(lambda n: rng.uniform(-5, 0, n)),
        advantages=per_token(lambda n: rng.normal(size=n) * (rng.random() > 0.33)),
        trainer_logprobs=per_token(lambda n: rng.uniform(-5, 0, n)),
        reference_logprobs=per_token(lambda n: rng.uniform(-5, 0, n)),
        loss_mask=[rng.random(len(completion)) < 0.8 for _, completion, _ in rows],
    )


def gradient(policy: Policy, batch: Batch, objective: Objective, **how: Any) -> tuple[torch.Tensor, dict[str, Any]]:
    optimizer = torch.optim.SGD(policy.model.parameters(), lr=0.0)
    row = policy_update(policy, optimizer, batch, objective, **({"max_grad_norm": NO_CLIP} | how))
    return torch.cat([parameter.grad.flatten().double() for parameter in policy.model.parameters()]), row


OBJECTIVES = st.builds(
    Objective,
    max_tokens=st.just(8),
    temperature=st.sampled_from([1.0, 0.7]),
    normalization=st.sampled_from(["token_mean", "sequence_mean", "prompt_mean", "constant"]),
    kl_coefficient=st.sampled_from([0.0, 0.01]),
    entropy_coefficient=st.sampled_from([0.0, 0.1]),
    importance_sampling=st.sampled_from(["none", "token", "sequence"]),
    importance_mode=st.sampled_from(["truncate", "mask"]),
)


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 10**6),
    architecture=st.sampled_from(["qwen3", "llama", "qwen2"]),
    budget=st.sampled_from([1, 12, 40, 10**6]),
    objective=OBJECTIVES,
)
def test_packed_rows_and_trees_give_the_gradient_of_padded_rows(
    make_policy: Callable[..., Policy], seed: int, architecture: str, budget: int, objective: Objective
) -> None:
    policy, batch = make_policy(architecture), random_tries(seed)
    expected, expected_row = gradient(policy, batch, objective, layout="padded", micro_batch_tokens=10**6)
    scale = max(expected.norm().item(), 1e-3)
    for layout in ("padded", "packed", "tree", "auto"):
        found, row = gradient(policy, batch, objective, layout=layout, micro_batch_tokens=budget)
        assert (found - expected).norm() <= 1e-5 * scale, layout
        for name in ("loss", "entropy", "kl", "clip_fraction_low", "ratio_max"):
            assert row[name] == pytest.approx(expected_row[name], rel=1e-4, abs=1e-5)


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 10**6), budget=st.sampled_from([1, 12, 40, 10**6]), objective=OBJECTIVES)
def test_in_double_precision_layout_and_budget_change_nothing_above_1e_10(
    seed: int, budget: int, objective: Objective
) -> None:
    """GPT-2: the normalisations of the models above compute in single precision whatever the weights are."""
    config = AutoConfig.for_model(
        "gpt2", vocab_size=19, n_embd=16, n_layer=2, n_head=2, n_positions=64, initializer_range=0.3,
        attn_pdrop=0.0, resid_pdrop=0.0, embd_pdrop=0.0,
    )  # fmt: skip
    torch.manual_seed(seed)
    policy = Policy(
        model=AutoModelForCausalLM.from_config(config, dtype=torch.float64).eval(), tokenizer=None, digest=""
    )
    batch = random_tries(seed)
    expected, expected_row = gradient(policy, batch, objective, layout="padded", micro_batch_tokens=10**6)
    for layout in ("padded", "packed", "tree"):
        found, row = gradient(policy, batch, objective, layout=layout, micro_batch_tokens=budget)
        assert (found - expected).norm() <= 1e-10 * max(expected.norm().item(), 1e-3), layout
        assert row["loss"] == pytest.approx(expected_row["loss"], rel=1e-10, abs=1e-12)


def test_what_stands_beside_a_tool_s_tokens_does_not_matter(make_policy: Callable[..., Policy]) -> None:
    policy, batch, objective = make_policy(), random_tries(5), Objective(max_tokens=8)
    expected, _ = gradient(policy, batch, objective, layout="tree", micro_batch_tokens=40)
    assert batch.loss_mask is not None
    marked = [
        np.where(mask, logprobs, np.nan).astype(np.float32)
        for mask, logprobs in zip(batch.loss_mask, batch.sampler_logprobs, strict=True)
    ]
    assert np.isnan(np.concatenate(marked)).any()
    unknown = replace(batch, sampler_logprobs=marked)
    found, _ = gradient(policy, unknown, objective, layout="tree", micro_batch_tokens=40)
    assert torch.equal(found, expected)


def test_every_layout_gives_the_same_logprobs_and_entropies(policy: Policy) -> None:
    batch = random_tries(3)
    asked = (batch.prompts, batch.completions, 0.7)
    expected = completion_logprobs(policy, *asked)
    for layout in ("packed", "tree"):
        how = {"group_index_R": batch.group_index_R, "layout": layout, "micro_batch_tokens": 30}
        for found, wanted in zip(completion_logprobs(policy, *asked, **how), expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


def arrange(layout: str, model: Any, batch: Batch) -> Arrangement:
    return Arrangement(layout, model, batch.prompts, batch.completions, batch.group_index_R)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10**6), budget=st.integers(1, 80), kind=st.sampled_from(["padded", "packed", "tree"]))
def test_micro_batches_hold_every_completion_once_within_the_budget_and_silent_groups_apart(
    make_policy: Callable[..., Policy], seed: int, budget: int, kind: str
) -> None:
    batch = random_tries(seed)
    silent_R = np.array([not advantages.any() for advantages in batch.advantages])
    groups = batch.group_index_R
    parts = list(arrange(kind, make_policy().model, batch).micro_batches(budget, is_silent_R=silent_R))
    filled = np.flatnonzero(batch.lengths_R)
    assert sorted(np.concatenate([part.rows for part in parts]).tolist()) == filled.tolist()
    for part in parts:
        assert part.layout.num_places <= budget or part.rows.size == 1
        for group in np.unique(groups[part.rows]):
            assert part.is_silent == silent_R[groups == group].all()


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10**6), budget=st.integers(8, 80))
def test_a_group_is_cut_only_where_its_tree_is_larger_than_the_budget(
    make_policy: Callable[..., Policy], seed: int, budget: int
) -> None:
    batch = random_tries(seed)
    parts = [part.rows for part in arrange("tree", make_policy().model, batch).micro_batches(budget)]
    for group in np.unique(batch.group_index_R):
        members = np.flatnonzero((batch.group_index_R == group) & (batch.lengths_R > 0))
        if members.size:
            rows = [[values[i] for i in members] for values in (batch.prompts, batch.completions)]
            size = build_layout("tree", *rows, np.zeros(members.size, np.int64)).num_places
            assert sum(bool(np.isin(members, part).any()) for part in parts) == 1 or size > budget


@pytest.mark.parametrize(
    ("architecture", "settings_of_it", "reason"),
    [
        ("qwen2", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0}, "sliding_attention"),
        ("mistral", {"sliding_window": 4}, "sliding window of 4 tokens"),
        ("gpt2", {}, "has dropout"),
        ("mamba", {}, "layers of linear_attention"),
        ("bloom", {}, "does not call transformers' attention interface"),
    ],
)
def test_a_model_whose_attention_is_not_plain_is_refused_by_name_and_auto_pads(
    architecture: str, settings_of_it: dict[str, Any], reason: str
) -> None:
    small = {"vocab_size": 19, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = AutoConfig.for_model(architecture, **small, **settings_of_it)
    model = AutoModelForCausalLM.from_config(config)
    batch = random_tries(0)
    for layout in ("packed", "tree"):
        with pytest.raises(ValueError, match=rf"{type(model).__name__} .*{reason}.*use train\.layout = padded"):
            arrange(layout, model, batch)
    assert arrange("auto", model, batch).kind == arrange("padded", model, batch).kind == "padded"


def test_a_model_that_adds_a_bias_of_its_own_is_found_out_by_computing_a_small_tree() -> None:
    config = AutoConfig.for_model(
        "doge", vocab_size=19, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).eval()
    batch = random_tries(0)
    with pytest.raises(ValueError, match="DogeForCausalLM computes attention in a way of its own"):
        arrange("tree", model, batch)
    assert arrange("auto", model, batch).kind == "padded"


def test_a_checkpoint_is_refused_before_any_work_without_reading_its_weights(tmp_path: Path) -> None:
    small = {"vocab_size": 19, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    AutoConfig.for_model("mistral", **small, sliding_window=4).save_pretrained(tmp_path / "sliding")
    AutoConfig.for_model("llama", **small).save_pretrained(tmp_path / "plain")
    for folder, layout, is_refused in (("sliding", "tree", True), ("sliding", "auto", False), ("plain", "tree", False)):
        source = PolicySource(digest="", seed=None, folder=str(tmp_path / folder))
        with pytest.raises(ValueError, match="sliding window of 4") if is_refused else nullcontext():
            check_layout(source, layout)


def test_auto_takes_the_tree_where_prefixes_are_shared_and_packed_rows_where_not(
    make_policy: Callable[..., Policy],
) -> None:
    model = make_policy().model
    prompt, completions = np.array([5], np.int32), [np.full(60, 7, np.int32), np.full(60, 8, np.int32)]
    # one prompt token of 122 shared: 122 / 121 = 1.008; two equal completions: 122 / 61 = 2
    one, two = np.zeros(2, np.int64), np.arange(2)
    assert Arrangement("auto", model, [prompt] * 2, completions, one).kind == "packed"
    assert Arrangement("auto", model, [prompt] * 2, completions[:1] * 2, one).kind == "tree"
    assert Arrangement("auto", model, [prompt] * 2, completions[:1] * 2, two).kind == "packed"


def test_the_model_samples_as_before_after_an_update_in_a_tree(make_policy: Callable[..., Policy]) -> None:
    """The attention is the layout's only while a micro-batch is computed."""
    policy = make_policy()
    before = policy.model.config._attn_implementation
    gradient(policy, random_tries(1), Objective(max_tokens=8), layout="tree", micro_batch_tokens=30)
    assert policy.model.config._attn_implementation == before
