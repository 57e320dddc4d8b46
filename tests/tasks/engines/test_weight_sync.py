"""The check of loaded weights, without an engine: what it lets pass, what it refuses, and which layer it suspects."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tasks.engines.export import export_checkpoint
from tasks.engines.policy import Policy, save_policy
from tasks.engines.weight_sync import StaleWeights, probe_batch, refuse_stale, trainer_logprobs

PROBES = probe_batch(19, 128)


@pytest.fixture
def one(make_policy: Callable[..., Policy]) -> Policy:
    return make_policy(seed=0)


@pytest.fixture
def two(make_policy: Callable[..., Policy]) -> Policy:
    return make_policy(seed=1)


@pytest.fixture
def earlier(one: Policy, tmp_path: Path) -> Path:
    """The checkpoint of policy one, which the engine held before."""
    save_policy(one, tmp_path / "one")
    return tmp_path / "one"


def test_the_probe_is_the_same_each_time_and_fits_the_context() -> None:
    assert [probe.tolist() for probe in probe_batch(19, 128)] == [probe.tolist() for probe in PROBES]
    assert {len(probe) for probe in probe_batch(19, 10)} == {9}  # room for the token that vLLM has to draw
    assert {int(token) for probe in PROBES for token in probe} == set(range(19))


def test_equal_weights_pass_with_their_differences(two: Policy, earlier: Path) -> None:
    said = trainer_logprobs(two, PROBES)
    said[0] = said[0] + np.float32(0.0008)
    gap = refuse_stale(two, PROBES, {"vLLM": said}, tolerance=0.002, earlier=earlier)
    np.testing.assert_allclose(gap, np.repeat([0.0008, 0, 0, 0], 23), atol=1e-6)  # 4 probes of 24 tokens: 23 each


def test_the_trainers_logprobs_are_those_of_the_model_as_it_is(two: Policy) -> None:
    ids = torch.from_numpy(np.stack(PROBES).astype(np.int64))
    with torch.no_grad():
        logprobs = torch.log_softmax(two.model(ids).logits.float(), dim=-1)[:, :-1]
    expected = logprobs.gather(-1, ids[:, 1:, None])[..., 0].numpy()
    np.testing.assert_allclose(np.stack(trainer_logprobs(two, PROBES)), expected, atol=1e-6)


@pytest.mark.parametrize(
    "stale", ["model.layers.1", "model.layers.0", "model.norm", "model.embed_tokens", "the output head"]
)
def test_the_layer_that_stayed_behind_is_the_first_suspect(
    make_policy: Callable[..., Policy], stale: str, tmp_path: Path
) -> None:
    one, two = make_policy("llama", seed=0), make_policy("llama", seed=1)
    one.model.model.norm.weight.data.mul_(1.5)  # new models have equal norms
    save_policy(one, tmp_path / "one")
    engine = make_policy("llama", seed=1)
    old = dict(one.model.named_parameters())
    for name, value in engine.model.named_parameters():
        if name.startswith({"the output head": "lm_head"}.get(stale, stale)):
            value.data.copy_(old[name])
    before = {name: value.clone() for name, value in two.model.named_parameters()}
    said = trainer_logprobs(engine, PROBES)
    with pytest.raises(StaleWeights, match=rf"one loaded before\): {stale} (0|\d\.\d+e-0[6-9]), "):
        refuse_stale(two, PROBES, {"vLLM": said}, tolerance=0.002, earlier=tmp_path / "one")
    for name, value in two.model.named_parameters():  # looking for the layer changed nothing
        assert torch.equal(value, before[name]), name


def test_a_tied_head_is_suspected_apart_from_the_embedding_that_it_shares(
    one: Policy, two: Policy, earlier: Path
) -> None:
    said = trainer_logprobs(two, PROBES, head_VH=one.model.lm_head.weight)
    with pytest.raises(StaleWeights, match=r"one loaded before\): the output head (0|\d\.\d+e-0[6-9]), "):
        refuse_stale(two, PROBES, {"vLLM": said}, tolerance=0.002, earlier=earlier)


def test_the_refusal_says_where_how_far_and_what_to_do(two: Policy) -> None:
    said = trainer_logprobs(two, PROBES)
    said[2] = said[2].copy()
    said[2][4] += 1.25
    with pytest.raises(StaleWeights) as caught:
        refuse_stale(two, PROBES, {"The server http://a": said}, tolerance=0.002, earlier=None)
    assert "The server http://a does not sample from the policy" in str(caught.value)
    assert "92 probe tokens within 0.002 nats of the trainer's (0.00025 on average)" in str(caught.value)
    assert "difference of 1.25 (probe 2, token 5; mean 0.0136)" in str(caught.value)  # 1.25 / 92
    assert "unknown, there are no earlier weights to compare with" in str(caught.value)
    assert "sampler.vllm.max_sync_difference" in str(caught.value)


def test_many_small_differences_are_refused_where_one_would_pass(two: Policy) -> None:
    said = [logprobs + np.float32(0.001) for logprobs in trainer_logprobs(two, PROBES)]  # half of the largest allowed
    with pytest.raises(StaleWeights, match=r"a difference of 0\.001 .* mean 0\.001\)"):
        refuse_stale(two, PROBES, {"vLLM": said}, tolerance=0.002, earlier=None)
    said[1:] = trainer_logprobs(two, PROBES)[1:]
    said[0][6:] = trainer_logprobs(two, PROBES)[0][6:]  # 6 of 92 tokens: 0.000065 on average
    assert refuse_stale(two, PROBES, {"vLLM": said}, tolerance=0.002, earlier=None).max() < 0.002


def test_a_logprob_that_is_not_finite_is_no_agreement(two: Policy) -> None:
    said = trainer_logprobs(two, PROBES)
    said[0] = said[0].copy()
    said[0][0] = np.nan
    with pytest.raises(StaleWeights, match="a difference of inf"):
        refuse_stale(two, PROBES, {"vLLM": said}, tolerance=0.5, earlier=None)


def test_a_tied_checkpoint_is_exported_with_its_head_and_links_to_the_rest(
    one: Policy, earlier: Path, tmp_path: Path
) -> None:
    export = export_checkpoint(one, earlier, tmp_path / "export", dtype="fp32")
    assert torch.equal(load_file(export / "lm_head.safetensors")["lm_head.weight"], one.model.model.embed_tokens.weight)
    assert (export / "body-model.safetensors").resolve() == (earlier / "model.safetensors").resolve()
    again = AutoModelForCausalLM.from_pretrained(export, dtype=torch.float32, local_files_only=True)
    assert again.config.tie_word_embeddings is False
    ids = torch.from_numpy(np.stack(PROBES).astype(np.int64))
    with torch.no_grad():
        assert torch.equal(again(ids).logits, one.model(ids).logits)


def test_an_untied_checkpoint_is_used_where_it_lies(make_policy: Callable[..., Policy], tmp_path: Path) -> None:
    policy = make_policy("llama")
    save_policy(policy, tmp_path / "llama")
    assert (
        export_checkpoint(policy, tmp_path / "llama", tmp_path / "export", dtype="bf16")
        == (tmp_path / "llama").resolve()
    )
    assert not (tmp_path / "export").exists()


@pytest.mark.parametrize("architecture", ["qwen3", "llama"])
def test_what_servers_load_is_whole_and_in_their_dtype(
    make_policy: Callable[..., Policy], architecture: str, tmp_path: Path
) -> None:
    policy = make_policy(architecture)
    save_policy(policy, tmp_path / "checkpoint")
    export = export_checkpoint(policy, tmp_path / "checkpoint", tmp_path / "export", dtype="bf16", copies=True)
    assert not any(file.is_symlink() for file in export.iterdir())
    tensors = load_file(export / "body-model.safetensors")
    if architecture == "qwen3":
        tensors |= load_file(export / "lm_head.safetensors")
    expected = dict(policy.model.state_dict())
    assert set(tensors) == set(expected)
    for name, tensor in tensors.items():
        assert torch.equal(tensor, expected[name].to(torch.bfloat16)), name
