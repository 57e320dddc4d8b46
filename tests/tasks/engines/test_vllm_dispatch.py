"""Servers that misbehave on purpose: what is asked again, where, how often, and that nothing is lost or made twice."""

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tasks.engines import vllm_dispatch
from tasks.engines.sampler import Samples
from tasks.engines.vllm_dispatch import Dispatch, Job
from tasks.engines.vllm_process import EngineDied, EngineError
from tasks.vllm_config import VllmConfig

VERSION = "weights-of-step-3"
Fake = Callable[..., Any]


@pytest.fixture(autouse=True)
def _short_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_dispatch, "BACKOFF_SECONDS", 0.02)


def completion(body: dict[str, Any], *, version: str = VERSION, ending: str = "stop") -> tuple[int, Any]:
    """Two tokens that only the seed decides."""
    tokens = [body["sampling_params"]["seed"], 1]
    content = [{"token_id": token, "logprob": -0.5} for token in tokens]
    spans = [{"version": version, "start": 0, "end": 2}]
    choice = {"token_ids": tokens, "logprobs": {"content": content}, "finish_reason": ending, "weight_versions": spans}
    return 200, {"choices": [choice]}


def hang_up() -> tuple[int, Any]:
    """In the middle of an answer."""
    return 200, iter([b'{"choices": ['])


def healthy(number: int, body: dict[str, Any]) -> tuple[int, Any]:
    return completion(body)


def jobs(num_prompts: int, num_samples: int = 1) -> list[Job]:
    """Row r has the seed 100 + r."""
    rows = [range(p * num_samples, (p + 1) * num_samples) for p in range(num_prompts)]
    return [
        Job({row: {"token_ids": [5], "sampling_params": {"seed": 100 + row}} for row in of_prompt})
        for of_prompt in rows
    ]


def dispatch(progress: Callable[[int], Any] = lambda done: None, **settings: Any) -> Dispatch:
    return Dispatch(VllmConfig(**settings), {"Authorization": "Bearer secret"}, VERSION, progress)


def expect_all(answers: dict[int, Samples], num_rows: int) -> None:
    first = {row: int(samples.token_ids_N[0]) for row, samples in answers.items()}
    assert first == {row: 100 + row for row in range(num_rows)}


def test_prompts_go_round_equal_servers_a_group_stays_on_one_and_progress_counts_completions(fake_server: Fake) -> None:
    servers, seen = [fake_server(healthy) for _ in range(2)], []
    answers = dispatch(seen.append).run(jobs(6, num_samples=4), [server.url for server in servers])
    expect_all(answers, 24)
    assert sorted(servers[0].seeds + servers[1].seeds) == list(range(100, 124))
    for server in servers:  # 64 // 4 = 16 prompts fit at once: the 6 are dealt in turn, 3 each
        groups = Counter((seed - 100) // 4 for seed in server.seeds)
        assert list(groups.values()) == [4, 4, 4]
    assert sorted(seen) == list(range(1, 25))


def test_a_slow_server_gets_fewer(fake_server: Fake) -> None:
    def slowly(number: int, body: dict[str, Any]) -> tuple[int, Any]:
        time.sleep(0.2)
        return completion(body)

    slow, fast = fake_server(slowly), fake_server(healthy)
    answers = dispatch(requests_per_endpoint=2).run(jobs(40), [slow.url, fast.url])
    expect_all(answers, 40)
    assert 2 <= len(slow.seeds) < 10  # it makes 2 every 0.2 s; the other one the rest of the 40 in less than a second
    assert len(slow.seeds) + len(fast.seeds) == 40


@pytest.mark.parametrize(("num_samples", "at_once"), [(1, 3), (8, 5)], ids=["prompts", "wide groups"])
def test_a_server_never_has_more_requests_at_once_than_it_may(
    fake_server: Fake, num_samples: int, at_once: int
) -> None:
    def slowly(number: int, body: dict[str, Any]) -> tuple[int, Any]:
        time.sleep(0.01)
        return completion(body)

    server = fake_server(slowly)
    answers = dispatch(requests_per_endpoint=at_once).run(jobs(10, num_samples), [server.url])
    expect_all(answers, 10 * num_samples)
    assert server.most_at_once == at_once


BAD = {
    "status 500": lambda body: (500, {"error": "out of luck"}),
    "hung up in the middle": lambda body: hang_up(),
    "no JSON": lambda body: (200, b"<html>please log in</html>"),
    "aborted by somebody": lambda body: completion(body, ending="abort"),
}


@pytest.mark.parametrize("how", BAD)
def test_what_fails_is_asked_again_and_the_rest_of_its_group_is_kept(fake_server: Fake, how: str) -> None:
    def answer(number: int, body: dict[str, Any]) -> tuple[int, Any]:
        is_bad = body["sampling_params"]["seed"] == 102 and server.seeds.count(102) <= 2
        return BAD[how](body) if is_bad else completion(body)

    server = fake_server(answer)
    expect_all(dispatch(max_retries=2).run(jobs(2, num_samples=4), [server.url]), 8)
    assert Counter(server.seeds) == {seed: 3 if seed == 102 else 1 for seed in range(100, 108)}


@pytest.mark.parametrize("max_retries", [0, 3])
def test_a_request_that_always_fails_is_sent_once_and_max_retries_times_with_pauses_then_given_up(
    fake_server: Fake, max_retries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm_dispatch, "BACKOFF_SECONDS", 0.1)
    server = fake_server(lambda number, body: (503, {"error": f"answer {number}: too busy"}))
    server.drops_after_errors = True  # which does not make it a dead one
    started = time.monotonic()
    with pytest.raises(EngineError) as caught:
        dispatch(max_retries=max_retries).run(jobs(1), [server.url])
    assert len(server.bodies) == 1 + max_retries
    assert time.monotonic() - started >= 0.1 * (2**max_retries - 1)  # 0.1 + 0.2 + 0.4 s for 3
    message = str(caught.value)
    assert f"failed {1 + max_retries} times (sampler.vllm.max_retries = {max_retries})" in message
    assert f"the last time at {server.url}: status 503" in message
    assert f"answer {1 + max_retries}: too busy" in message
    assert server.headers[0]["Authorization"] == "Bearer secret"
    assert "secret" not in message


def test_a_refused_request_is_not_sent_again(fake_server: Fake) -> None:
    server = fake_server(lambda number, body: (400, {"error": "max_tokens must be at least 1"}))
    with pytest.raises(EngineError, match=rf"{server.url} refused a request with 400: .*max_tokens must be at least 1"):
        dispatch(requests_per_endpoint=1).run(jobs(3), [server.url])
    assert server.seeds == [100]


def test_a_request_that_hangs_past_its_time_is_sent_elsewhere(fake_server: Fake) -> None:
    def hang(number: int, body: dict[str, Any]) -> tuple[int, Any]:
        stuck.is_over.wait(5)
        return completion(body)

    stuck, good = fake_server(hang), fake_server(healthy)
    expect_all(dispatch(request_timeout_seconds=0.3, max_retries=1).run(jobs(4), [stuck.url, good.url]), 4)
    assert sorted(good.seeds) == [100, 101, 102, 103]


def test_a_server_that_answers_bytes_for_ever_runs_out_of_time_too(fake_server: Fake) -> None:
    def trickle() -> Iterator[bytes]:
        while not server.is_over.wait(0.05):
            yield b" "

    server = fake_server(lambda number, body: (200, trickle()))
    with pytest.raises(EngineError, match=r"no answer within 0\.2 s \(sampler\.vllm\.request_timeout_seconds\)"):
        dispatch(request_timeout_seconds=0.2, max_retries=0).run(jobs(1), [server.url])


def test_a_sick_server_beside_a_good_one_costs_each_prompt_one_failure_at_most(fake_server: Fake) -> None:
    sick, good = fake_server(lambda number, body: (500, {"error": "sick"})), fake_server(healthy)
    expect_all(dispatch(max_retries=1, requests_per_endpoint=4).run(jobs(30), [sick.url, good.url]), 30)
    assert sorted(good.seeds) == list(range(100, 130))
    assert max(Counter(sick.seeds).values()) == 1


def test_a_server_that_dies_is_left_alone_though_many_of_its_places_are_free(fake_server: Fake) -> None:
    def die(number: int, body: dict[str, Any]) -> tuple[int, Any]:
        dying.facts.clear()  # /health fails from here on
        return hang_up()

    def slowly(number: int, body: dict[str, Any]) -> tuple[int, Any]:
        time.sleep(0.1)
        return completion(body)

    dying, good = fake_server(die), fake_server(slowly)
    work = dispatch(max_retries=1)  # a second failure of the one prompt that it gets would be the end
    expect_all(work.run(jobs(2), [dying.url, good.url]), 2)
    assert dying.seeds == [100]
    assert list(work.dead) == [dying.url]


def test_when_no_server_is_left_the_error_has_their_addresses_and_what_was_made_stays(fake_server: Fake) -> None:
    def die_later(number: int, body: dict[str, Any]) -> tuple[int, Any]:
        if number <= 3:
            return completion(body)
        for server in servers:
            server.facts.clear()
        return hang_up()

    servers = [fake_server(die_later) for _ in range(2)]
    work = dispatch(requests_per_endpoint=1)
    with pytest.raises(EngineDied) as caught:
        work.run(jobs(20), [server.url for server in servers])
    assert f"no server is left for {20 - len(work.answers)} of 20 prompts" in str(caught.value)
    assert all(f"{server.url}: RemoteProtocolError" in str(caught.value) for server in servers)
    assert 3 <= len(work.answers) <= 6


def test_a_server_with_other_weights_is_left_out_and_nothing_of_it_is_kept(fake_server: Fake) -> None:
    stale, good = fake_server(lambda number, body: completion(body, version="default")), fake_server(healthy)
    work = dispatch(requests_per_endpoint=2)
    expect_all(work.run(jobs(8, num_samples=2), [stale.url, good.url]), 16)
    assert sorted(good.seeds) == list(range(100, 116))
    with pytest.raises(EngineDied, match=r"sampled from the weights default, not weights-of-step-: it was restarted"):
        dispatch().run(jobs(2), [stale.url])


def test_a_thousand_prompts_of_which_many_fail_all_arrive_once(fake_server: Fake) -> None:
    def sometimes(number: int, body: dict[str, Any]) -> tuple[int, Any]:
        return completion(body) if number % 7 else hang_up()

    servers, seen = [fake_server(sometimes) for _ in range(2)], []
    work = dispatch(seen.append, requests_per_endpoint=16, max_retries=9)
    expect_all(work.run(jobs(500, num_samples=2), [server.url for server in servers]), 1000)
    assert seen == list(range(1, 1001))  # a completion that was kept is never asked for again


def test_ctrl_c_ends_it_at_once(fake_server: Fake) -> None:
    def hang(number: int, body: dict[str, Any]) -> tuple[int, Any]:
        server.is_over.wait(30)
        return completion(body)

    server, before = fake_server(hang), signal.signal(signal.SIGINT, signal.default_int_handler)
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    started = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            dispatch().run(jobs(4), [server.url])
    finally:
        timer.cancel()
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - started < 3
