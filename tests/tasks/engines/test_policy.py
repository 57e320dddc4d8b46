"""The built-in policy and its tokenizer, and what a checkpoint holds and does not hold."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tasks.core.arithmetic import CHARACTERS
from tasks.engines import policy as engine
from tasks.engines.policy import (
    Policy,
    character_tokenizer,
    choose_device,
    configure_cpu,
    forget_policy,
    keep_policy,
    load_policy,
    make_tiny_policy,
    save_policy,
    vocabulary,
)

CPU = torch.device("cpu")


def digests(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}


def test_the_built_in_policy_has_445056_parameters() -> None:
    # embedding, shared with the head: 19 * 96 = 1,824. A layer: attention 4 * 96 * 96 = 36,864, its query and key
    # norms 2 * 32 = 64, MLP 3 * 96 * 384 = 110,592, two norms 2 * 96 = 192: 147,712. The last norm: 96.
    assert 1_824 + 3 * 147_712 + 96 == 445_056
    assert make_tiny_policy(CHARACTERS, 0).num_parameters == 445_056


def test_a_seed_gives_the_same_bytes_on_disk_and_leaves_the_random_state_alone(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    for name in ("first", "second"):
        torch.rand(3)
        state = torch.get_rng_state()
        save_policy(make_tiny_policy(CHARACTERS, 5), tmp_path / name)
        assert torch.equal(torch.get_rng_state(), state)
    save_policy(make_tiny_policy(CHARACTERS, 6), tmp_path / "other")
    torch.set_rng_state(before)
    first, second, other = (digests(tmp_path / name) for name in ("first", "second", "other"))
    assert first == second
    assert {name for name in first if first[name] != other[name]} == {"model.safetensors"}


@pytest.mark.parametrize("architecture", ["qwen3", "llama"])  # qwen2: transformers puts Qwen2's tokenizer in its place
def test_a_loaded_policy_saves_the_bytes_it_was_loaded_from(
    make_policy: Callable[..., Policy], architecture: str, tmp_path: Path
) -> None:
    save_policy(make_policy(architecture), tmp_path / "first")
    save_policy(load_policy(tmp_path / "first", "first", CPU), tmp_path / "second")
    assert digests(tmp_path / "second") == digests(tmp_path / "first")


def test_a_checkpoint_says_nothing_of_where_or_how_it_was_loaded(
    make_policy: Callable[..., Policy], tmp_path: Path
) -> None:
    save_policy(make_policy(), tmp_path / "first")
    save_policy(load_policy(tmp_path / "first", "first", CPU), tmp_path / "second")
    texts = {file.name: file.read_text() for file in (tmp_path / "second").glob("*.json")}
    assert {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"} <= set(texts)
    for text in texts.values():
        for word in (str(tmp_path), str(Path.home()), "name_or_path", "is_local", "local_files_only"):
            assert word not in text


def test_the_character_tokenizer_brings_text_back_and_marks_what_it_does_not_know() -> None:
    tokenizer = character_tokenizer(CHARACTERS)
    ids = tokenizer("3+5*2=").input_ids
    assert ids == [6, 13, 8, 15, 5, 16]  # after <pad>, <eos>, <unk>: '0' is 3, so '3' is 6; '+' is 13
    assert tokenizer.decode(ids) == "3+5*2="
    assert tokenizer(CHARACTERS).input_ids == list(range(3, 19))
    strange = tokenizer("3é\n 5").input_ids
    assert strange == [6, 2, 2, 2, 8]
    assert tokenizer.decode(strange) == "3<unk><unk><unk>5"
    assert tokenizer.decode([*ids, 1, 0], skip_special_tokens=True) == "3+5*2="
    assert tokenizer("").input_ids == []


def test_the_tokenizer_of_a_checkpoint_reads_and_writes_like_the_one_that_was_saved(tmp_path: Path) -> None:
    save_policy(make_tiny_policy(CHARACTERS, 0), tmp_path / "checkpoint")
    loaded = load_policy(tmp_path / "checkpoint", "", CPU)
    ids = loaded.tokenizer("1-9*4=;#\t").input_ids
    assert ids == character_tokenizer(CHARACTERS)("1-9*4=;#\t").input_ids
    assert loaded.tokenizer.decode(ids) == "1-9*4=;#<unk>"
    assert loaded.eos_token_ids == [1]
    assert loaded.context_length == 512


def test_a_completion_ends_at_the_tokens_of_the_generation_config_and_of_the_tokenizer() -> None:
    policy = make_tiny_policy(CHARACTERS, 0)
    policy.model.generation_config.eos_token_id = [7, 4]
    assert policy.eos_token_ids == [1, 4, 7]  # the tokenizer's <eos> is 1
    policy.model.generation_config.eos_token_id = 9
    assert policy.eos_token_ids == [1, 9]
    policy.model.generation_config.eos_token_id = None
    assert policy.eos_token_ids == [1]


def test_the_vocabulary_is_every_token_and_its_text() -> None:
    ids, texts = vocabulary(character_tokenizer(CHARACTERS))
    assert dict(zip(ids, texts, strict=True)) == dict(enumerate(["<pad>", "<eos>", "<unk>", *CHARACTERS]))


def test_only_the_policy_used_last_is_kept_and_only_for_its_own_digest(
    make_policy: Callable[..., Policy], tmp_path: Path
) -> None:
    save_policy(make_policy(seed=1), tmp_path / "a")
    save_policy(make_policy(seed=2), tmp_path / "b")
    first = load_policy(tmp_path / "a", "digest a", CPU)
    assert load_policy(tmp_path / "a", "digest a", CPU) is first
    second = load_policy(tmp_path / "b", "digest b", CPU)
    assert second is not first
    assert load_policy(tmp_path / "a", "digest a", CPU) is not first
    forget_policy()
    keep_policy(second)
    assert load_policy(tmp_path / "missing", "digest b", CPU) is second  # from memory: no file is read


def test_a_model_that_transforms_its_logits_is_refused(make_policy: Callable[..., Policy], tmp_path: Path) -> None:
    save_policy(make_policy(), tmp_path / "capped")
    config = json.loads((tmp_path / "capped/config.json").read_text()) | {"final_logit_softcapping": 30.0}
    (tmp_path / "capped/config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"final_logit_softcapping.*Use a model without it"):
        load_policy(tmp_path / "capped", "", CPU)


def test_tiny_policies_take_one_thread_others_every_core_unless_told(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    monkeypatch.setattr(torch, "set_flush_denormal", lambda mode: True)  # would last beyond this test
    monkeypatch.setattr(engine.os, "sched_getaffinity", lambda pid: {0, 1, 5}, raising=False)
    configure_cpu(0, 4_999_999)
    configure_cpu(0, 5_000_000)
    configure_cpu(2, 4_999_999)
    monkeypatch.delattr(engine.os, "sched_getaffinity")  # macOS has none
    monkeypatch.setattr(engine.os, "cpu_count", lambda: 8)
    configure_cpu(0, 5_000_000)
    assert chosen == [1, 3, 2, 8]


def test_auto_takes_cuda_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for is_available, device in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda is_available=is_available: is_available)
        assert choose_device("auto").type == device
        assert choose_device("cpu").type == "cpu"
