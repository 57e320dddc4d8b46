"""What was drawn, from which distribution, and that neither depends on who shares the batch."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import DynamicCache

from tasks.engines import transformers_sampler
from tasks.engines.policy import Policy
from tasks.engines.sampler import Samples, SamplingParams
from tasks.engines.transformers_sampler import TransformersSampler

Tokens = NDArray[np.int32]
TOGETHER, ALONE = 1_000_000, 1  # batch_tokens: one batch of everything, one batch per prompt
NUM_SAMPLES, MAX_TOKENS = 4, 24


def params(temperature: float = 1.0, top_p: float = 1.0, max_tokens: int = MAX_TOKENS) -> SamplingParams:
    return SamplingParams(temperature=temperature, top_p=top_p, max_tokens=max_tokens)


def sample(
    policy: Policy, prompts: list[Tokens], how: SamplingParams, *, batch_tokens: int = TOGETHER, first_seed: int = 0
) -> Samples:
    seeds_R = np.arange(first_seed, first_seed + len(prompts) * NUM_SAMPLES)
    sampler = TransformersSampler(policy, batch_tokens=batch_tokens)
    return sampler.sample(prompts, num_samples=NUM_SAMPLES, seeds_R=seeds_R, params=how)


def completions(samples: Samples) -> list[Tokens]:
    return np.split(samples.token_ids_N, samples.offsets[1:-1])


@torch.no_grad()
def next_token_logits(policy: Policy, prompt: Tokens, completion: Tokens) -> NDArray[np.float64]:
    """[T, V] logits that predict each completion token: one plain forward pass, no cache, no padding, no mask."""
    ids = torch.from_numpy(np.concatenate([prompt, completion]).astype(np.int64))[None]
    logits: NDArray[np.float64] = policy.model(ids, use_cache=False).logits[0, len(prompt) - 1 : -1].double().numpy()
    return logits


def logprobs_by_definition(
    policy: Policy, prompt: Tokens, completion: Tokens, how: SamplingParams
) -> NDArray[np.float64]:
    """log of the tempered probability, divided by the mass of the tokens that were not above top_p before theirs."""
    logprobs = []
    for logits_V, token in zip(next_token_logits(policy, prompt, completion), completion, strict=True):
        mass_V = np.exp(logits_V / how.temperature - np.max(logits_V / how.temperature))
        mass_V /= mass_V.sum()
        kept: list[int] = []
        for candidate in np.argsort(-mass_V):
            if mass_V[kept].sum() < how.top_p:
                kept.append(int(candidate))
        assert token in kept
        logprobs.append(np.log(mass_V[token] / mass_V[kept].sum()))
    return np.array(logprobs)


@pytest.mark.parametrize("how", [params(), params(temperature=0.7, top_p=0.8)], ids=["plain", "tempered nucleus"])
def test_logprobs_are_those_of_a_plain_forward_pass_whatever_the_padding(
    policy: Policy, prompts: list[Tokens], how: SamplingParams
) -> None:
    samples = sample(policy, prompts, how)
    logprobs = np.split(samples.sampler_logprobs_N, samples.offsets[1:-1])
    for i, completion in enumerate(completions(samples)):
        expected = logprobs_by_definition(policy, prompts[i // NUM_SAMPLES], completion, how)
        np.testing.assert_allclose(logprobs[i], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("how", [params(), params(temperature=0.7, top_p=0.8)], ids=["plain", "tempered nucleus"])
def test_a_completion_does_not_depend_on_the_prompts_it_is_batched_with(
    policy: Policy, prompts: list[Tokens], how: SamplingParams
) -> None:
    together = sample(policy, prompts, how)
    for batch_tokens in (ALONE, 2 * NUM_SAMPLES * (40 + MAX_TOKENS)):  # one prompt a batch; at least two
        apart = sample(policy, prompts, how, batch_tokens=batch_tokens)
        assert apart.token_ids_N.tolist() == together.token_ids_N.tolist()
        assert apart.offsets.tolist() == together.offsets.tolist()
        np.testing.assert_allclose(apart.sampler_logprobs_N, together.sampler_logprobs_N, rtol=0, atol=1e-5)
    for p, prompt in enumerate(prompts):  # each prompt in a call of its own, with its own seeds
        own = sample(policy, [prompt], how, first_seed=p * NUM_SAMPLES)
        rows = completions(together)[p * NUM_SAMPLES : (p + 1) * NUM_SAMPLES]
        assert own.token_ids_N.tolist() == np.concatenate(rows).tolist()


def test_the_same_seeds_give_the_same_bytes_and_others_other_tokens(policy: Policy, prompts: list[Tokens]) -> None:
    first, second = (sample(policy, prompts, params()) for _ in range(2))
    assert first.token_ids_N.tobytes() == second.token_ids_N.tobytes()
    assert first.sampler_logprobs_N.tobytes() == second.sampler_logprobs_N.tobytes()
    other = sample(policy, prompts, params(), first_seed=1000)
    assert first.token_ids_N.tolist() != other.token_ids_N.tolist()


def test_every_completion_has_a_random_stream_of_its_own(make_policy: Callable[..., Policy]) -> None:
    policy, prompt = make_policy(), np.array([5, 6, 7], dtype=np.int32)
    shared = TransformersSampler(policy, batch_tokens=TOGETHER).sample(
        [prompt, prompt], num_samples=2, seeds_R=np.array([11, 12, 12, 13]), params=params()
    )
    first, second, third, fourth = (completion.tolist() for completion in completions(shared))
    assert second == third  # the same prompt and the same seed
    assert first != second
    assert second != fourth


def test_a_completion_ends_with_its_first_end_of_sequence_token_or_at_max_tokens(
    policy: Policy, prompts: list[Tokens]
) -> None:
    samples = sample(policy, prompts, params())
    (eos,) = policy.eos_token_ids
    ends = {True: 0, False: 0}
    for completion, is_truncated in zip(completions(samples), samples.is_truncated_R.tolist(), strict=True):
        ends[is_truncated] += 1
        assert np.flatnonzero(completion == eos).tolist() == ([] if is_truncated else [len(completion) - 1])
        assert len(completion) == MAX_TOKENS or not is_truncated
    assert min(ends.values()) > 0  # both kinds occur, so both were checked


def test_an_end_of_sequence_token_in_the_last_place_is_a_stop_not_a_truncation(
    policy: Policy, prompts: list[Tokens]
) -> None:
    free = sample(policy, prompts, params())
    lengths = [len(c) for c, is_cut in zip(completions(free), free.is_truncated_R, strict=True) if not is_cut]
    limit = max(lengths)
    limited = sample(policy, prompts, params(max_tokens=limit))
    # Every completion of the free run that stopped did so within the limit, the longest exactly at it.
    assert limited.is_truncated_R.tolist() == free.is_truncated_R.tolist()
    assert [c.tolist() for c in completions(limited)] == [c[:limit].tolist() for c in completions(free)]


def test_all_end_of_sequence_tokens_of_the_generation_config_end_a_completion(
    make_policy: Callable[..., Policy], prompts: list[Tokens]
) -> None:
    policy = make_policy()
    policy.model.generation_config.eos_token_id = [1, 4, 9]
    samples = sample(policy, prompts, params())
    last = {int(completion[-1]) for completion in completions(samples)}
    assert {1, 4, 9} <= last
    for completion in completions(samples):
        assert not {1, 4, 9} & set(completion[:-1].tolist())


@pytest.mark.parametrize("share", [0.0, 1.0], ids=["never compacted", "compacted at once"])
def test_taking_finished_rows_out_of_the_batch_changes_nothing(
    policy: Policy, prompts: list[Tokens], share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = sample(policy, prompts, params())
    calls: list[int] = []
    select = DynamicCache.batch_select_indices

    def spy(cache: DynamicCache, indices: torch.Tensor) -> None:
        calls.append(len(indices))
        select(cache, indices)

    monkeypatch.setattr(DynamicCache, "batch_select_indices", spy)
    monkeypatch.setattr(transformers_sampler, "COMPACTION_SHARE", share)
    actual = sample(policy, prompts, params())
    assert bool(calls) == (share == 1.0)
    assert actual.token_ids_N.tolist() == expected.token_ids_N.tolist()
    assert actual.is_truncated_R.tolist() == expected.is_truncated_R.tolist()
    np.testing.assert_allclose(actual.sampler_logprobs_N, expected.sampler_logprobs_N, rtol=0, atol=1e-5)


def test_temperature_zero_takes_the_most_likely_token_of_a_plain_forward_pass_each_time(
    policy: Policy, prompts: list[Tokens]
) -> None:
    samples = sample(policy, prompts, params(temperature=0.0))
    for i, completion in enumerate(completions(samples)):
        expected = next_token_logits(policy, prompts[i // NUM_SAMPLES], completion)
        assert completion.tolist() == expected.argmax(axis=-1).tolist()
        assert completion.tolist() == completions(samples)[i - i % NUM_SAMPLES].tolist()  # all samples are alike


def test_progress_counts_completions_up_to_their_number(
    make_policy: Callable[..., Policy], prompts: list[Tokens]
) -> None:
    seen: list[tuple[int, int]] = []
    TransformersSampler(make_policy(), batch_tokens=ALONE).sample(
        prompts,
        num_samples=2,
        seeds_R=np.arange(10),
        params=params(),
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(2, 10), (4, 10), (6, 10), (8, 10), (10, 10)]


def test_no_batch_holds_more_tokens_than_allowed_but_for_a_prompt_that_needs_more_alone(
    make_policy: Callable[..., Policy], prompts: list[Tokens], monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = make_policy()
    sizes: list[tuple[int, int]] = []
    complete = TransformersSampler._complete

    def spy(self: TransformersSampler, batch: list[Tokens], *rest: object) -> object:
        sizes.append((len(batch), max(map(len, batch))))
        return complete(self, batch, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(TransformersSampler, "_complete", spy)
    sample(policy, prompts, params(), batch_tokens=340)
    # Widths, longest first: 40, 17, 9, 3, 1, each with 24 more; times 4 samples: 256, 164, 132, 108, 100 tokens.
    # 256 + another 40-wide one: 512 > 340. 2 * 164 = 328 fit, 3 * 164 do not. 2 * 108 = 216 fit, and no more are left.
    assert sizes == [(1, 40), (2, 17), (2, 3)]


def test_an_empty_prompt_is_refused(make_policy: Callable[..., Policy]) -> None:
    with pytest.raises(ValueError, match="got an empty prompt"):
        sample(make_policy(), [np.array([3], np.int32), np.array([], np.int32)], params())


def test_a_prompt_that_leaves_no_room_for_one_token_is_refused_before_any_work(
    make_policy: Callable[..., Policy], monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, prompt = make_policy(), np.full(128, 5, dtype=np.int32)
    monkeypatch.setattr(TransformersSampler, "_complete", None)  # whoever samples anything fails otherwise
    with pytest.raises(ValueError, match=r"at most 127 tokens, got 1 of 2 .*, the longest of 128: .* Lower prompts"):
        sample(policy, [prompt[:3], prompt], params())


def test_a_completion_ends_by_length_where_the_context_ends_and_its_neighbours_at_max_tokens(
    make_policy: Callable[..., Policy], monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, rng = make_policy(), np.random.default_rng(3)
    long, short = (rng.integers(3, 19, size=length).astype(np.int32) for length in (120, 5))
    positions: list[int] = []
    forward = type(policy.model).forward

    def spy(self: object, *arguments: object, position_ids: torch.Tensor, **more: object) -> object:
        positions.append(int(position_ids.max()))
        return forward(self, *arguments, position_ids=position_ids, **more)

    with monkeypatch.context() as patch:
        patch.setattr(type(policy.model), "forward", spy)
        patch.setattr(transformers_sampler, "COMPACTION_SHARE", 0.0)
        kept = sample(policy, [long, short], params(max_tokens=20))
    assert max(positions) == 127  # of a context of 128, also where rows that have ended stay in the batch
    found = sample(policy, [long, short], params(max_tokens=20))
    assert found.token_ids_N.tolist() == kept.token_ids_N.tolist()
    alone = sample(policy, [long], params(max_tokens=20))
    assert alone.token_ids_N.tolist() == np.concatenate(completions(found)[:NUM_SAMPLES]).tolist()
    monkeypatch.setattr(policy.model.config, "max_position_embeddings", 256)  # weights and positions stay what they are
    free = sample(policy, [long, short], params(max_tokens=20))
    # 120 of 128 leave 8 tokens, 5 leave more than the 20 asked for
    for i, (completion, whole) in enumerate(zip(completions(found), completions(free), strict=True)):
        assert completion.tolist() == whole.tolist()[: 8 if i < NUM_SAMPLES else 20]
    ended_R = [int(completion[-1]) in policy.eos_token_ids for completion in completions(found)]
    assert found.is_truncated_R.tolist() == [not ended for ended in ended_R]
    lengths_R = np.diff(found.offsets)
    assert max(lengths_R[:NUM_SAMPLES]) == 8
    assert max(lengths_R[NUM_SAMPLES:]) == 20  # both limits were met, so both were checked
