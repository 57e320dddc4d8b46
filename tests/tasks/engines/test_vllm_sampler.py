"""A real vLLM in its own process: what it draws, whose weights it holds, and what happens when it dies."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import Qwen3Config, Qwen3ForCausalLM

from tasks.config import SamplerConfig
from tasks.core.arithmetic import CHARACTERS
from tasks.engines import export
from tasks.engines.policy import Policy, character_tokenizer, save_policy
from tasks.engines.sampler import Samples, SamplingParams
from tasks.engines.transformers_sampler import TransformersSampler
from tasks.engines.vllm_fleet import EngineFleet
from tasks.engines.vllm_sampler import EngineDiedAgain, VllmSampler
from tasks.engines.weight_sync import StaleWeights
from tasks.vllm_config import VllmConfig
from tests.tasks.engines.by_definition import logprobs_by_definition, next_token_logits

pytestmark = pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed: make setup-vllm")

Tokens = NDArray[np.int32]
CONTEXT, MAX_TOKENS, NUM_SAMPLES = 128, 16, 4
MANY = 900
"""Prompts of a generation that takes some six seconds: on a busy machine the test is told late how far it has come."""


def random_policy(seed: int) -> Policy:
    """A tied Qwen3 whose distributions are far from uniform, with heads of a width that vLLM's CPU kernels take."""
    tokenizer = character_tokenizer(CHARACTERS)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=CONTEXT,
        initializer_range=0.3,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Policy(model=Qwen3ForCausalLM(config).eval(), tokenizer=tokenizer, digest=f"policy-{seed}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("vllm")


@pytest.fixture(scope="module")
def checkpoint(folder: Path) -> Callable[[Policy], Path]:
    """The policy's checkpoint, written once for each digest."""

    def write(policy: Policy) -> Path:
        target = folder / policy.digest
        if not target.exists():
            save_policy(policy, target)
        return target

    return write


def new_sampler(folder: Path, notes: list[str], **vllm: object) -> VllmSampler:
    config = SamplerConfig(engine="vllm", max_tokens=MAX_TOKENS, vllm=VllmConfig(**vllm))  # type: ignore[arg-type]
    fleet = EngineFleet(config, threads=1, log=folder / "vllm.log")
    return VllmSampler(fleet, config, max_prompt_tokens=CONTEXT, note=notes.append)


@pytest.fixture(scope="module")
def notes() -> list[str]:
    return []


@pytest.fixture(scope="module")
def sampler(folder: Path, notes: list[str]) -> Iterator[VllmSampler]:
    """One sampler for the whole file: its engine takes some ten seconds to start."""
    made = new_sampler(folder, notes)
    yield made
    made.close()


def params(temperature: float = 1.0, top_p: float = 1.0, max_tokens: int = MAX_TOKENS) -> SamplingParams:
    return SamplingParams(temperature=temperature, top_p=top_p, max_tokens=max_tokens)


def some_prompts(*lengths: int) -> list[Tokens]:
    rng = np.random.default_rng(7)
    return [rng.integers(3, 19, size=length).astype(np.int32) for length in lengths]


def sample(sampler: VllmSampler, prompts: list[Tokens], how: SamplingParams, *, first_seed: int = 0) -> Samples:
    seeds_R = np.arange(first_seed, first_seed + len(prompts) * NUM_SAMPLES)
    return sampler.sample(prompts, num_samples=NUM_SAMPLES, seeds_R=seeds_R, params=how)


def completions(samples: Samples) -> list[Tokens]:
    return np.split(samples.token_ids_N, samples.offsets[1:-1])


def engine_pid(sampler: VllmSampler) -> int:
    fleet = sampler.fleet
    assert isinstance(fleet, EngineFleet)
    return fleet.engines[0].pid


@pytest.mark.parametrize(
    "how", [params(), params(0.7, 0.8), params(0)], ids=["plain", "tempered nucleus", "greedy at temperature 1"]
)
def test_logprobs_are_those_of_the_distribution_that_the_token_was_drawn_from(
    sampler: VllmSampler, checkpoint: Callable[[Policy], Path], how: SamplingParams
) -> None:
    policy, prompts = random_policy(0), some_prompts(3, 40, 1, 17)
    sampler.use(policy, checkpoint(policy))
    samples = sample(sampler, prompts, how)
    logprobs = np.split(samples.sampler_logprobs_N, samples.offsets[1:-1])
    for i, completion in enumerate(completions(samples)):
        expected = logprobs_by_definition(policy, prompts[i // NUM_SAMPLES], completion, how)
        np.testing.assert_allclose(logprobs[i], expected, rtol=0, atol=1e-4)


def test_greedy_completions_are_those_of_transformers(
    sampler: VllmSampler, checkpoint: Callable[[Policy], Path]
) -> None:
    policy, prompts = random_policy(0), some_prompts(3, 40, 1, 17)
    sampler.use(policy, checkpoint(policy))
    ours = sample(sampler, prompts, params(0))
    theirs = TransformersSampler(policy, batch_tokens=10**6).sample(
        prompts, num_samples=NUM_SAMPLES, seeds_R=np.arange(4 * NUM_SAMPLES), params=params(0)
    )
    assert ours.token_ids_N.tolist() == theirs.token_ids_N.tolist()
    assert ours.is_truncated_R.tolist() == theirs.is_truncated_R.tolist()


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_many_samples_are_spread_as_the_policy_says_and_as_transformers_spreads_them(
    sampler: VllmSampler, checkpoint: Callable[[Policy], Path], temperature: float
) -> None:
    policy, (prompt,), how = random_policy(0), some_prompts(5), params(temperature, max_tokens=1)
    sampler.use(policy, checkpoint(policy))
    logits_V = next_token_logits(policy, prompt, np.array([3], dtype=np.int32))[0] / temperature
    expected_V = 3000 * np.exp(logits_V - logits_V.max()) / np.exp(logits_V - logits_V.max()).sum()
    is_common = expected_V >= 5  # the rest is one cell, as Pearson's test asks
    for machine in (sampler, TransformersSampler(policy, batch_tokens=10**6)):
        drawn = machine.sample([prompt], num_samples=3000, seeds_R=np.arange(3000), params=how).token_ids_N
        counts_V = np.bincount(drawn, minlength=len(expected_V))
        observed = np.append(counts_V[is_common], counts_V[~is_common].sum())
        expected = np.append(expected_V[is_common], max(expected_V[~is_common].sum(), 1e-9))
        statistic = float(((observed - expected) ** 2 / expected)[expected > 1e-6].sum())
        freedom = (expected > 1e-6).sum() - 1
        p_value = float(torch.special.gammaincc(torch.tensor(freedom / 2.0), torch.tensor(statistic / 2)))
        assert p_value > 1e-3, (machine.name, statistic, freedom)


def test_a_completion_depends_on_its_seed_and_not_on_who_is_sampled_beside_it(
    sampler: VllmSampler, checkpoint: Callable[[Policy], Path]
) -> None:
    policy, prompts = random_policy(0), some_prompts(3, 40, 1, 17)
    sampler.use(policy, checkpoint(policy))
    first, second = sample(sampler, prompts, params()), sample(sampler, prompts, params())
    assert first.token_ids_N.tobytes() == second.token_ids_N.tobytes()
    assert first.sampler_logprobs_N.tobytes() == second.sampler_logprobs_N.tobytes()
    for p, prompt in enumerate(prompts):
        alone = sample(sampler, [prompt], params(), first_seed=p * NUM_SAMPLES)
        rows = completions(first)[p * NUM_SAMPLES : (p + 1) * NUM_SAMPLES]
        assert alone.token_ids_N.tolist() == np.concatenate(rows).tolist()
    largest_seeds = 2**63 - 1 - np.arange(2)  # seeds of the generation stage have 63 bits
    one, other = completions(sampler.sample(prompts[:1], num_samples=2, seeds_R=largest_seeds, params=params()))
    assert one.tolist() != other.tolist()


def test_a_completion_ends_with_its_end_of_sequence_token_at_max_tokens_or_where_the_context_ends(
    sampler: VllmSampler, checkpoint: Callable[[Policy], Path]
) -> None:
    policy = random_policy(0)
    sampler.use(policy, checkpoint(policy))
    prompts = some_prompts(3, 40, 1, CONTEXT - 5)
    samples = sample(sampler, prompts, params())
    (eos,) = policy.eos_token_ids
    limits_P = [MAX_TOKENS, MAX_TOKENS, MAX_TOKENS, 5]
    ends = {True: 0, False: 0}
    for i, (completion, is_truncated) in enumerate(
        zip(completions(samples), samples.is_truncated_R.tolist(), strict=True)
    ):
        ends[is_truncated] += 1
        assert np.flatnonzero(completion == eos).tolist() == ([] if is_truncated else [len(completion) - 1])
        assert len(completion) == limits_P[i // NUM_SAMPLES] or not is_truncated
    assert min(ends.values()) > 0  # both kinds occur, so both were checked


def test_the_samples_of_a_prompt_share_its_blocks_in_the_prefix_cache(
    sampler: VllmSampler, checkpoint: Callable[[Policy], Path]
) -> None:
    policy = random_policy(0)
    sampler.use(policy, checkpoint(policy))
    for _ in range(2):  # the cache is emptied before each call: the second finds no more than the first
        samples = sample(sampler, some_prompts(70), params())
        assert samples.num_cached_prompt_tokens == 3 * 64  # 2 blocks of 32 tokens, for all but the first of 4 samples


def test_weights_are_replaced_in_place_and_checked_each_time(
    sampler: VllmSampler, checkpoint: Callable[[Policy], Path]
) -> None:
    one, two = random_policy(0), random_policy(1)
    sampler.use(one, checkpoint(one))
    pid = engine_pid(sampler)
    sync = sampler.use(two, checkpoint(two))
    assert (sync.is_new, sync.num_starts, sync.policy) == (True, 0, "policy-1")
    assert sync.max_difference < 1e-4 < sync.tolerance
    samples, prompts = sample(sampler, some_prompts(9), params()), some_prompts(9)
    for completion, logprobs in zip(
        completions(samples), np.split(samples.sampler_logprobs_N, samples.offsets[1:-1]), strict=True
    ):
        expected = logprobs_by_definition(two, prompts[0], completion, params())
        np.testing.assert_allclose(logprobs, expected, rtol=0, atol=1e-4)
    assert sampler.use(two, checkpoint(two)).is_new is False  # held already: nothing to load, nothing to check
    assert engine_pid(sampler) == pid


def test_a_policy_that_training_changed_in_memory_is_loaded_again(
    sampler: VllmSampler, checkpoint: Callable[[Policy], Path]
) -> None:
    policy = random_policy(0)
    sampler.use(policy, checkpoint(policy))
    with torch.no_grad():
        policy.model.model.layers[0].mlp.up_proj.weight.mul_(-1)
    policy.digest = "policy-0-trained"  # the same object, as the training stage leaves it
    assert sampler.use(policy, checkpoint(policy)).is_new


def test_a_head_that_stays_behind_is_caught_and_named(
    sampler: VllmSampler, checkpoint: Callable[[Policy], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tied checkpoint as it is: vLLM then reloads every layer but the output head, and says nothing."""
    one, two = random_policy(0), random_policy(1)
    sampler.use(one, checkpoint(one))
    with monkeypatch.context() as patch:
        patch.setattr(export, "export_checkpoint", lambda policy, folder, target, **_: folder)
        with pytest.raises(StaleWeights, match=r"one loaded before\): the output head \d\.\d*e-0[4-9], ") as caught:
            sampler.use(two, checkpoint(two))
    assert "does not sample from the policy policy-1" in str(caught.value)
    assert "sampler.engine=transformers" in str(caught.value)
    assert sampler.use(two, checkpoint(two)).max_difference < 1e-4  # and the whole checkpoint mends it


def test_prompts_are_spread_over_engines_and_none_is_lost(
    folder: Path, checkpoint: Callable[[Policy], Path], sampler: VllmSampler
) -> None:
    policy, prompts = random_policy(0), some_prompts(3, 40, 1, 17, 9)
    sampler.use(policy, checkpoint(policy))
    alone = sample(sampler, prompts, params())
    spread = new_sampler(folder / "spread", [], data_parallel_size=2, sleep_level=1)
    try:
        assert spread.use(policy, checkpoint(policy)).num_starts == 2
        two = sample(spread, prompts, params())
        assert isinstance(spread.fleet, EngineFleet)
        assert spread.use(policy, checkpoint(policy)).is_new is False  # a CPU has no sleep: weights stayed in place
    finally:
        spread.close()
    logprobs = np.split(two.sampler_logprobs_N, two.offsets[1:-1])
    assert len(logprobs) == 5 * NUM_SAMPLES
    for i, completion in enumerate(completions(two)):
        expected = logprobs_by_definition(policy, prompts[i // NUM_SAMPLES], completion, params())
        np.testing.assert_allclose(logprobs[i], expected, rtol=0, atol=1e-4)
    assert two.token_ids_N.tolist() == alone.token_ids_N.tolist()


def test_an_engine_whose_weights_are_shared_by_two_workers_says_the_same(
    folder: Path, checkpoint: Callable[[Policy], Path]
) -> None:
    policy, other, prompts = random_policy(0), random_policy(1), some_prompts(3, 40)
    halves = new_sampler(folder / "halves", [], tensor_parallel_size=2)
    try:
        halves.use(other, checkpoint(other))
        assert halves.use(policy, checkpoint(policy)).max_difference < 1e-4  # both halves were loaded in place
        samples = sample(halves, prompts, params())
    finally:
        halves.close()
    logprobs = np.split(samples.sampler_logprobs_N, samples.offsets[1:-1])
    for i, completion in enumerate(completions(samples)):
        expected = logprobs_by_definition(policy, prompts[i // NUM_SAMPLES], completion, params())
        np.testing.assert_allclose(logprobs[i], expected, rtol=0, atol=1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="sleeping is for GPUs: vLLM's CPU build has none")
@pytest.mark.parametrize("level", [1, 2])
def test_an_engine_that_slept_gives_the_gpu_back_and_the_same_bytes(
    folder: Path, checkpoint: Callable[[Policy], Path], level: int
) -> None:
    policy, prompts = random_policy(0), some_prompts(3, 40, 1, 17)
    sleeper = new_sampler(folder / f"level-{level}", [], sleep_level=level, gpu_memory_utilization=0.3)
    try:
        sleeper.use(policy, checkpoint(policy))
        awake = torch.cuda.mem_get_info()[0]
        first = sample(sleeper, prompts, params())  # it sleeps from here on
        assert torch.cuda.mem_get_info()[0] - awake > 0.2 * torch.cuda.mem_get_info()[1]
        assert sleeper.use(policy, checkpoint(policy)).is_new is (level == 2)  # level 2 has dropped the weights
        second = sample(sleeper, prompts, params())
    finally:
        sleeper.close()
    assert first.token_ids_N.tolist() == second.token_ids_N.tolist()


def test_a_run_that_is_told_to_stop_does_not_wait_for_the_generation(
    sampler: VllmSampler, checkpoint: Callable[[Policy], Path]
) -> None:
    policy, prompts = random_policy(0), some_prompts(*[20] * 3000)
    sampler.use(policy, checkpoint(policy))
    told: list[float] = []

    def interrupt(done: int, total: int) -> None:
        if not told:
            told.append(time.monotonic())
            os.kill(os.getpid(), signal.SIGINT)  # Ctrl-C: KeyboardInterrupt in the main thread

    seeds_R = np.arange(3000 * NUM_SAMPLES)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # pytest-xdist's processes ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            sampler.sample(prompts, num_samples=NUM_SAMPLES, seeds_R=seeds_R, params=params(), progress=interrupt)
    finally:
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - told[0] < 5  # the generation itself takes some twenty seconds


def test_an_engine_that_is_killed_is_started_once_and_gives_the_same_bytes(
    sampler: VllmSampler, checkpoint: Callable[[Policy], Path], notes: list[str]
) -> None:
    policy, prompts = random_policy(0), some_prompts(*[20] * MANY)
    seeds_R = np.arange(MANY * NUM_SAMPLES)
    sampler.use(policy, checkpoint(policy))
    undisturbed = sampler.sample(prompts, num_samples=NUM_SAMPLES, seeds_R=seeds_R, params=params())
    victims: list[int] = []

    def kill_once(done: int, total: int) -> None:
        if not victims and done < total:
            victims.append(engine_pid(sampler))
            os.kill(victims[0], signal.SIGKILL)

    samples = sampler.sample(prompts, num_samples=NUM_SAMPLES, seeds_R=seeds_R, params=params(), progress=kill_once)
    assert len(victims) == samples.num_restarts == 1
    assert engine_pid(sampler) != victims[0]
    assert samples.token_ids_N.tobytes() == undisturbed.token_ids_N.tobytes()
    assert samples.sampler_logprobs_N.tobytes() == undisturbed.sampler_logprobs_N.tobytes()
    assert f"vLLM's process {victims[0]} was ended by signal 9 (SIGKILL)" in notes[-1]


def test_an_engine_that_dies_again_over_the_same_work_is_given_up_with_its_log(
    sampler: VllmSampler, checkpoint: Callable[[Policy], Path]
) -> None:
    policy, prompts = random_policy(0), some_prompts(*[20] * MANY)
    sampler.use(policy, checkpoint(policy))

    def kill(done: int, total: int) -> None:
        os.kill(engine_pid(sampler), signal.SIGKILL)

    with pytest.raises(EngineDiedAgain) as caught:
        sampler.sample(
            prompts, num_samples=NUM_SAMPLES, seeds_R=np.arange(MANY * NUM_SAMPLES), params=params(), progress=kill
        )
    assert str(caught.value).count("signal 9 (SIGKILL)") == 2
    assert "the end of its log" in str(caught.value)
