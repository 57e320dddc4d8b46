"""Servers set up otherwise, addresses that are none, keys and files: what is refused before anything is sampled."""

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tasks.config import SamplerConfig
from tasks.core.arithmetic import CHARACTERS
from tasks.engines.export import exported
from tasks.engines.policy import Policy, make_tiny_policy, save_policy
from tasks.engines.vllm_endpoint import REMEDY, UnfitServer
from tasks.engines.vllm_sampler import EngineDiedAgain, VllmSampler
from tasks.engines.vllm_server import ServerFleet
from tasks.vllm_config import VllmConfig

SERVER_INFO = {
    "model_config": {"logprobs_mode": "processed_logprobs", "dtype": "torch.float32", "max_model_len": 512},
    "parallel_config": {"data_parallel_size": 1},
    "device_config": {"device": "cpu"},
    "scheduler_config": {"enable_chunked_prefill": False},
}
OTHERWISE = [
    ("model_config", "logprobs_mode", "raw_logprobs", "--logprobs-mode processed_logprobs, got raw_logprobs"),
    ("model_config", "dtype", "torch.bfloat16", "--dtype float32 (sampler.dtype), got bfloat16"),
    ("model_config", "max_model_len", 39, "--max-model-len of at least 40, got 39"),
    ("parallel_config", "data_parallel_size", 2, "a server for each copy of the weights, got --data-parallel-size 2"),
    ("scheduler_config", "enable_chunked_prefill", True, "--no-enable-chunked-prefill on a CPU"),
]


def local_sampler(folder: Path, *urls: str, notes: list[str] | None = None) -> VllmSampler:
    vllm = VllmConfig(endpoints=urls, shared_path=str(folder))
    config = SamplerConfig(engine="vllm-server", max_tokens=24, vllm=vllm)
    said = [] if notes is None else notes
    return VllmSampler(ServerFleet(config, note=said.append), config, max_prompt_tokens=16, note=said.append)


@pytest.fixture
def policy(tmp_path: Path) -> tuple[Policy, Path]:
    policy = make_tiny_policy(CHARACTERS, 0)
    save_policy(policy, tmp_path / "policy")
    return policy, tmp_path / "policy"


@pytest.mark.parametrize(("part", "key", "value", "expected"), OTHERWISE, ids=[each[1] for each in OTHERWISE])
def test_a_server_that_is_set_up_otherwise_is_refused_before_it_is_asked_for_anything(
    fake_server: Callable[..., Any], policy: tuple[Policy, Path], tmp_path: Path,
    part: str, key: str, value: object, expected: str,
) -> None:  # fmt: skip
    server = fake_server(lambda number, body: (500, {}))
    info: dict[str, dict[str, object]] = SERVER_INFO | {part: SERVER_INFO[part] | {key: value}}
    server.facts |= {"/server_info": {"vllm_config": info}, "/weight_info": {"weight_version": "default"}}
    with pytest.raises(UnfitServer) as caught:
        local_sampler(tmp_path, server.url).use(*policy)  # 16 tokens of prompt and 24 of completion: 40
    assert f"the server {server.url} is not set up for this run: expected {expected}" in str(caught.value)
    assert str(caught.value).endswith(REMEDY)
    assert server.bodies == []


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({}, "answered /server_info?config_format=json with 404"),  # no development mode
        ({"/server_info": b"<html>"}, "answered /server_info?config_format=json with 200: <html>"),
        ({"/server_info": {"vllm_config": "as text"}, "/weight_info": {}}, "expected vLLM 0.32 or later"),
        ({"/server_info": {"vllm_config": {}}, "/weight_info": {}}, "expected vLLM 0.32 or later"),
    ],
    ids=["no development mode", "no vLLM", "no settings", "no version"],
)
def test_a_server_that_cannot_say_how_it_is_set_up_is_refused(
    fake_server: Callable[..., Any], policy: tuple[Policy, Path], tmp_path: Path, facts: dict[str, Any], expected: str
) -> None:
    server = fake_server(lambda number, body: (500, {}))
    server.facts |= facts
    with pytest.raises(UnfitServer) as caught:
        local_sampler(tmp_path, server.url).use(*policy)
    assert expected in str(caught.value)
    assert REMEDY in str(caught.value)
    assert server.bodies == []


def test_the_key_reaches_the_servers_and_no_message(
    fake_server: Callable[..., Any],
    policy: tuple[Policy, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "open-sesame")
    caplog.set_level("DEBUG")
    server = fake_server(lambda number, body: (401, {"error": "Unauthorized"}))
    server.facts |= {"/server_info": {"vllm_config": SERVER_INFO}, "/weight_info": {"weight_version": "default"}}
    with pytest.raises(UnfitServer, match=r"with 401: .*Expected the key .* in the variable VLLM_API_KEY") as caught:
        local_sampler(tmp_path, server.url).use(*policy)
    assert server.headers[0]["Authorization"] == "Bearer open-sesame"
    assert "open-sesame" not in str(caught.value) + caplog.text


def test_a_server_that_fails_to_load_is_not_taken_for_a_dead_one(
    fake_server: Callable[..., Any], policy: tuple[Policy, Path], tmp_path: Path
) -> None:
    server = fake_server(lambda number, body: (500, {"error": "out of luck"}))
    server.drops_after_errors = True
    server.facts |= {"/server_info": {"vllm_config": SERVER_INFO}, "/weight_info": {"weight_version": "default"}}
    with pytest.raises(UnfitServer, match=r"answered /update_weight_version with 500: .*out of luck"):
        local_sampler(tmp_path, server.url).use(*policy)


def test_where_no_server_answers_the_error_has_every_address_and_how_one_is_started(
    policy: tuple[Policy, Path], tmp_path: Path
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        urls = [f"http://127.0.0.1:{unused.getsockname()[1]}", "http://127.0.0.1:1"]
        with pytest.raises(EngineDiedAgain) as caught:
            local_sampler(tmp_path, *urls).use(*policy)
    assert all(
        f"{url}: no answer to /server_info?config_format=json, ConnectError" in str(caught.value) for url in urls
    )
    assert REMEDY in str(caught.value)


def test_weights_are_handed_over_in_files_that_a_server_of_another_user_can_read(
    policy: tuple[Policy, Path], tmp_path: Path
) -> None:
    before = os.umask(0o077)
    try:
        with exported(*policy, str(tmp_path), dtype="fp32", copies=True) as export:
            modes = {path.name: path.stat().st_mode & 0o777 for path in (export.parent, export, *export.iterdir())}
    finally:
        os.umask(before)
    assert {oct(mode) for name, mode in modes.items() if "." in name} == {"0o644"}
    assert {oct(mode) for name, mode in modes.items() if "." not in name} == {"0o755"}
    assert not export.parent.exists()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["sampler.vllm.shared_path=."], "sampler.vllm.endpoints: expected the address of at least one running"),
        (['sampler.vllm.endpoints=["localhost:8000"]'], "sampler.vllm.endpoints: expected addresses such as http://"),
        (['sampler.vllm.endpoints=["http://:8000"]'], "sampler.vllm.endpoints: expected addresses such as http://"),
        (['sampler.vllm.endpoints=["http://me:pw@a:1"]'], "sampler.vllm.endpoints: expected no user or password"),
        (['sampler.vllm.endpoints=["http://a:1/", "http://a:1"]'], "sampler.vllm.endpoints: expected each server once"),
        (['sampler.vllm.endpoints=["http://a:1"]'], "sampler.vllm.shared_path: expected a folder that this machine"),
        (
            ['sampler.vllm.endpoints=["http://a:1"]', "sampler.vllm.shared_path=/nowhere/at/all"],
            "sampler.vllm.shared_path: expected the absolute path of a folder that can be written to, got '/nowhere/",
        ),
        (['sampler.vllm.endpoints=["http://a:1"]', "sampler.vllm.shared_path=tests"], "got 'tests'"),
    ],
)
def test_a_configuration_that_cannot_work_is_refused_before_any_work_with_the_keys_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], settings: list[str], expected: str
) -> None:
    from flows.cli import main

    sets = [argument for setting in ["sampler.engine=vllm-server", *settings] for argument in ("--set", setting)]
    assert main(["train", "quickstart", "--no-server", "--data-root", str(tmp_path / "data"), *sets]) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert "pw" not in error
    assert not list((tmp_path / "data").glob("artifacts/*/*"))
