"""Real vLLM servers on loopback as the engines of a run: loaded, checked, sampled from, killed, started again."""

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from tasks.config import SamplerConfig
from tasks.core.arithmetic import CHARACTERS
from tasks.engines import vllm_sampler
from tasks.engines.policy import Policy, make_tiny_policy, save_policy
from tasks.engines.sampler import Samples, SamplingParams
from tasks.engines.trainer import completion_logprobs
from tasks.engines.vllm_endpoint import LOADING, REMEDY, UnfitServer
from tasks.engines.vllm_sampler import EngineDiedAgain, VllmSampler
from tasks.engines.vllm_server import ServerFleet
from tasks.engines.weight_sync import StaleWeights
from tasks.vllm_config import VllmConfig
from tests.tasks.engines.served_vllm import Server

needs_vllm = pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed: make setup-vllm")
PROMPTS = [np.array([CHARACTERS.index(c) + 3 for c in text], dtype=np.int32) for text in ("3+5=", "2*9-4=", "7-1*8+6=")]
PARAMS = SamplingParams(temperature=0.7, top_p=1.0, max_tokens=24)


@dataclass
class Workplace:
    """Two servers, two policies with their checkpoints, and the folder that all see."""

    servers: list[Server]
    policies: list[Policy]
    folders: list[Path]
    shared: Path

    def sampler(self, notes: list[str], servers: list[Server] | None = None, **settings: Any) -> VllmSampler:
        urls = tuple(server.url for server in servers or self.servers)
        vllm = VllmConfig(endpoints=urls, shared_path=str(self.shared), **settings)
        config = SamplerConfig(engine="vllm-server", max_tokens=PARAMS.max_tokens, vllm=vllm)
        return VllmSampler(ServerFleet(config, note=notes.append), config, max_prompt_tokens=16, note=notes.append)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workplace]:
    """Two servers that start side by side from random weights."""
    root = tmp_path_factory.mktemp("servers")
    policies, folders = [make_tiny_policy(CHARACTERS, seed) for seed in (0, 1)], [root / "first", root / "second"]
    for i, (policy, folder) in enumerate(zip(policies, folders, strict=True)):
        policy.model.eval()
        save_policy(policy, folder)
        policy.digest = f"policy {i} " * 8
    with socket.socket() as first, socket.socket() as second:
        first.bind(("127.0.0.1", 0))
        second.bind(("127.0.0.1", 0))
        ports = [each.getsockname()[1] for each in (first, second)]
    servers = [Server(folders[0], root / f"{port}.log", port) for port in ports]
    (root / "shared").mkdir()
    try:
        for server in servers:
            server.start()
        for server in servers:
            server.wait()
        yield Workplace(servers, policies, folders, root / "shared")
    finally:
        for server in servers:
            server.kill()


def draw(sampler: VllmSampler, num_prompts: int = 3, **more: Any) -> Samples:
    """Eight completions of each prompt, with the seeds 1000, 1001, ..."""
    prompts = [PROMPTS[p % 3] for p in range(num_prompts)]
    return sampler.sample(prompts, num_samples=8, seeds_R=np.arange(8 * num_prompts) + 1000, params=PARAMS, **more)


def expect_policys_logprobs(policy: Policy, samples: Samples) -> None:
    """What the sampler says of its tokens is what the trainer says of them, at the same temperature."""
    completions = np.split(samples.token_ids_N, samples.offsets[1:-1])
    prompts = [PROMPTS[r // 8 % 3] for r in range(len(completions))]
    trainer, _ = completion_logprobs(policy, prompts, completions, PARAMS.temperature)
    np.testing.assert_allclose(samples.sampler_logprobs_N, trainer.numpy(), rtol=0, atol=1e-4)


@needs_vllm
def test_a_policy_is_loaded_checked_and_sampled_from_and_another_takes_its_place(place: Workplace) -> None:
    notes: list[str] = []
    sampler = place.sampler(notes)
    drawn = []
    for policy, folder in zip(place.policies, place.folders, strict=True):
        sync = sampler.use(policy, folder)
        assert (sync.engine, sync.is_new, sync.num_starts) == ("vllm-server", True, 0)
        assert sync.num_tokens == 2 * 4 * 23  # two servers, each asked for 4 probes of 24 tokens, all but the first
        assert sync.max_difference < 1e-4
        before = [server.num_finished() for server in place.servers]
        drawn.append(draw(sampler))
        expect_policys_logprobs(policy, drawn[-1])
        done = [server.num_finished() - number for server, number in zip(place.servers, before, strict=True)]
        assert sorted(done) == [8, 16]  # three groups of 8 went round two servers
        assert not sampler.use(policy, folder).is_new
        assert draw(sampler).token_ids_N.tolist() == drawn[-1].token_ids_N.tolist()
    assert drawn[0].token_ids_N.tolist() != drawn[1].token_ids_N.tolist()
    (eos,) = place.policies[0].eos_token_ids
    last = drawn[0].token_ids_N[drawn[0].offsets[1:] - 1]
    assert (drawn[0].is_truncated_R == (last != eos)).all()
    assert set(drawn[0].is_truncated_R.tolist()) == {True, False}
    assert notes == []
    assert list(place.shared.iterdir()) == []
    sampler.close()


@dataclass
class Lasting:
    """One sampler of the tests from here on, which kill and start servers in order."""

    sampler: VllmSampler
    notes: list[str]
    expected: list[int]


@pytest.fixture(scope="module")
def lasting(place: Workplace) -> Lasting:
    notes: list[str] = []
    return Lasting(place.sampler(notes, requests_per_endpoint=16), notes, [])


@needs_vllm
def test_nothing_is_lost_when_one_is_killed_in_the_middle_of_a_generation(place: Workplace, lasting: Lasting) -> None:
    lasting.sampler.use(place.policies[0], place.folders[0])
    expected = draw(lasting.sampler, 24)  # of which two at a time are with a server: most are still to be asked for
    lasting.expected = expected.token_ids_N[: expected.offsets[24]].tolist()
    seen: list[int] = []

    def progress(done: int, total: int) -> None:
        seen.append(done)
        if done == 20:
            place.servers[1].kill()

    samples = draw(lasting.sampler, 24, progress=progress)
    assert place.servers[1].process is None
    assert seen == list(range(1, 193))  # each completion was kept once: those made before the kill as well
    assert samples.num_restarts == 0
    assert samples.token_ids_N.tolist() == expected.token_ids_N.tolist()
    expect_policys_logprobs(place.policies[0], samples)
    (note,) = lasting.notes
    assert f"sampling with 1 of 2 servers, without {place.servers[1].url} (" in note
    place.servers[1].start()  # it takes a while


@needs_vllm
def test_the_other_one_goes_on_without_loading_its_weights_again(place: Workplace, lasting: Lasting) -> None:
    assert not lasting.sampler.use(place.policies[0], place.folders[0]).is_new
    assert draw(lasting.sampler).token_ids_N.tolist() == lasting.expected
    sync = lasting.sampler.use(place.policies[1], place.folders[1])
    assert (sync.is_new, sync.num_tokens) == (True, 4 * 23)


@needs_vllm
def test_a_completion_ends_with_the_context_and_a_prompt_is_read_once(place: Workplace) -> None:
    sampler = place.sampler([], place.servers[:1])  # with room for 16 + 24 tokens
    sampler.use(place.policies[0], place.folders[0])
    prompt = np.resize(PROMPTS[0], 33)
    for cached in (range(33 * 8), [8 * 32]):  # of 33 tokens a block of 32 can be read from the cache
        samples = sampler.sample([prompt], num_samples=8, seeds_R=np.arange(8), params=PARAMS)
        assert np.diff(samples.offsets).max() == 40 - 33
        assert samples.num_cached_prompt_tokens in cached


@needs_vllm
def test_weights_whose_version_was_changed_behind_the_runs_back_are_loaded_again(place: Workplace) -> None:
    sampler = place.sampler([], place.servers[:1])
    sampler.use(place.policies[0], place.folders[0])
    assert sampler.fleet.wake()
    place.servers[0].say_version("somebody else's")
    assert not sampler.fleet.wake()
    sync = sampler.use(place.policies[0], place.folders[0])
    assert sync.is_new
    assert sampler.fleet.wake()


@needs_vllm
def test_a_version_that_changes_during_a_generation_ends_it_there_and_it_is_done_again(place: Workplace) -> None:
    notes: list[str] = []
    sampler = place.sampler(notes, place.servers[:1], requests_per_endpoint=8)
    sampler.use(place.policies[0], place.folders[0])
    expected = draw(sampler, 4)

    def progress(done: int, total: int) -> None:
        if done == 16 and not notes:
            place.servers[0].say_version("somebody else's")

    samples = draw(sampler, 4, progress=progress)
    assert samples.token_ids_N.tolist() == expected.token_ids_N.tolist()
    assert samples.num_restarts == 1
    assert any("sampled from the weights somebody else" in note for note in notes)


@contextmanager
def _without_a_head(policy: Policy, folder: Path, *_: Any, **__: Any) -> Iterator[Path]:
    yield folder


@needs_vllm
def test_a_server_that_keeps_its_old_output_head_is_refused_by_name(
    place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampler = place.sampler([], place.servers[:1])
    sampler.use(place.policies[0], place.folders[0])
    with monkeypatch.context() as patch:
        patch.setattr(vllm_sampler, "exported", _without_a_head)
        with pytest.raises(StaleWeights, match=r"Layer suspects .*: the output head \d") as caught:
            sampler.use(place.policies[1], place.folders[1])
    assert f"The server {place.servers[0].url} does not sample from the policy" in str(caught.value)
    assert sampler.use(place.policies[1], place.folders[1]).max_difference < 1e-4


@needs_vllm
def test_a_folder_that_a_server_does_not_see_is_named_and_its_version_says_that_it_holds_nothing(
    place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def elsewhere(*_: Any, **__: Any) -> Iterator[Path]:
        yield Path("/not/mounted/here")

    sampler = place.sampler([], place.servers[:1])
    monkeypatch.setattr(vllm_sampler, "exported", elsewhere)
    with pytest.raises(UnfitServer, match=r"could not load the weights in /not/mounted/here; expected .*shared_path"):
        sampler.use(place.policies[0], place.folders[0])
    url = place.servers[0].url
    assert httpx.get(url + "/weight_info").json() == {"weight_version": LOADING}
    assert httpx.get(url + "/health").is_success


@needs_vllm
def test_it_is_used_again_once_it_was_started_again_with_weights_loaded_and_checked(
    place: Workplace, lasting: Lasting
) -> None:
    place.servers[1].wait()
    samples = draw(lasting.sampler)  # without another `use`: the sampler finds out
    expect_policys_logprobs(place.policies[1], samples)
    assert place.servers[1].num_finished() >= 4 + 8  # the probes, and a group at least
    assert lasting.notes[-1] == "vllm-server: sampling with 2 of 2 servers again"
    assert lasting.sampler.held is not None
    assert lasting.sampler.held.sync.num_tokens == 2 * 4 * 23


@needs_vllm
def test_tempo_train_runs_on_servers(place: Workplace, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from flows.cli import main

    settings = [
        "steps=2", "prompts_per_step=4", "group_size=4", "train.updates_per_step=2", "benchmarks=[]",
        "arithmetic.num_train=16", "arithmetic.num_test=8", "arithmetic.min_terms=2", "arithmetic.max_terms=2",
        "warm_start.updates=4", "warm_start.batch_size=16", "sampler.engine=vllm-server",
        f"sampler.vllm.endpoints={json.dumps([server.url for server in place.servers])}",
        f"sampler.vllm.shared_path={place.shared}",
    ]  # fmt: skip
    data = str(tmp_path / "data")
    sets = [argument for setting in settings for argument in ("--set", setting)]
    assert main(["train", "quickstart", "--no-server", "--data-root", data, *sets]) == 0

    def rows(statement: str) -> list[dict[str, Any]]:
        capsys.readouterr()
        assert main(["sql", statement, "--format", "json", "--data-root", data]) == 0
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    syncs = rows("SELECT step, engine, is_new, num_starts, num_tokens, max_difference FROM weight_syncs ORDER BY step")
    assert [(sync["step"], sync["engine"], sync["is_new"], sync["num_starts"]) for sync in syncs] == [
        (1, "vllm-server", True, 0), (2, "vllm-server", True, 0)
    ]  # fmt: skip
    assert max(sync["max_difference"] for sync in syncs) < 1e-4
    assert rows("SELECT sampler, count(*) AS n FROM rollouts GROUP BY ALL") == [{"sampler": "vllm-server", "n": 32}]
    assert rows("SELECT num_completions AS n, num_restarts AS r FROM generations") == [{"n": 16, "r": 0}] * 2
    ratios = rows("SELECT ratio_p05, ratio_p95 FROM updates WHERE phase = 'training' AND \"update\" = 0")
    assert all(abs(value - 1) < 1e-3 for row in ratios for value in row.values())
    assert list(place.shared.iterdir()) == []


@needs_vllm
def test_when_both_are_killed_the_error_has_their_addresses_and_the_remedy(place: Workplace, lasting: Lasting) -> None:
    def progress(done: int, total: int) -> None:
        if done == 24:
            for server in place.servers:
                server.kill()

    with pytest.raises(EngineDiedAgain) as caught:
        draw(lasting.sampler, 24, progress=progress)
    message = str(caught.value)
    assert message.startswith("No server of sampler.vllm.endpoints was left, twice. The first time: no server is")
    assert all(message.count(f"{server.url}: ") == 2 for server in place.servers)
    assert REMEDY in message
    assert "The servers are asked again, and what it was doing is done again" in lasting.notes[-1]
