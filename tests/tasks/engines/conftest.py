"""Tiny random policies of three architectures, small enough to sample from and train in milliseconds; fake servers."""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import AutoConfig, AutoModelForCausalLM

from tasks.core.arithmetic import CHARACTERS
from tasks.engines.batch import Batch
from tasks.engines.policy import Policy, character_tokenizer, forget_policy

ARCHITECTURES = ("qwen3", "llama", "qwen2")


@pytest.fixture(autouse=True)
def _one_thread_and_no_policy_in_memory() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    forget_policy()
    yield
    forget_policy()
    torch.set_num_threads(threads)


@pytest.fixture
def make_policy() -> Callable[..., Policy]:
    """A policy with random weights of scale 0.3: its distributions are far from uniform, unlike a new model's."""

    def make(architecture: str = "qwen3", *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Policy:
        tokenizer = character_tokenizer(CHARACTERS)
        config = AutoConfig.for_model(
            architecture,
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            max_position_embeddings=128,
            initializer_range=0.3,
            tie_word_embeddings=architecture != "llama",
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
        return Policy(model=model, tokenizer=tokenizer, digest="")

    return make


@pytest.fixture(params=ARCHITECTURES)
def policy(request: pytest.FixtureRequest, make_policy: Callable[..., Policy]) -> Policy:
    return make_policy(request.param)


@pytest.fixture
def prompts() -> list[NDArray[np.int32]]:
    """Five prompts of very different lengths."""
    rng = np.random.default_rng(7)
    return [rng.integers(3, 19, size=length).astype(np.int32) for length in (3, 40, 1, 17, 9)]


@pytest.fixture
def random_batch() -> Callable[..., Batch]:
    def make(seed: int = 0) -> Batch:
        """12 completions of 3 groups, 1 to 20 tokens long, after prompts of 1 to 30 tokens; made-up signals."""
        rng = np.random.default_rng(seed)
        lengths = rng.integers(1, 21, size=12)
        group_prompts = [rng.integers(3, 19, size=length).astype(np.int32) for length in (1, 30, 8)]
        return Batch(
            prompts=[group_prompts[i // 4] for i in range(12)],
            completions=[rng.integers(1, 19, size=length).astype(np.int32) for length in lengths],
            group_index_R=np.arange(12) // 4,
            sampler_logprobs=[rng.uniform(-4, -1, size=length).astype(np.float32) for length in lengths],
            advantages=[rng.normal(size=length).astype(np.float32) for length in lengths],
        )

    return make


class FakeServer(ThreadingHTTPServer):
    """Answers every GET by `facts`, and every POST by `answer(number, body)`: (status, content).

    Content that is an iterator is sent piece by piece, and the connection then closed before the promised end.
    """

    daemon_threads, block_on_close, request_queue_size = True, False, 128

    def __init__(self, answer: Callable[[int, dict[str, Any]], tuple[int, Any]]) -> None:
        super().__init__(("127.0.0.1", 0), FakeHandler)
        self.answer, self.facts = answer, {"/health": {}}
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.num_now = self.most_at_once = 0
        self.drops_after_errors = False
        """Close a connection a moment after an error was sent on it, without having said so: as uvicorn does."""
        self.is_over = threading.Event()
        """Set at the end of the test: for answers that hang until then."""
        self.lock = threading.Lock()
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    @property
    def seeds(self) -> list[int]:
        """Of the requests, in the order in which they came."""
        return [body["sampling_params"]["seed"] for body in self.bodies]


class FakeHandler(BaseHTTPRequestHandler):
    server: FakeServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        content = self.server.facts.get(self.path.partition("?")[0])
        self._send(404 if content is None else 200, content)

    def do_POST(self) -> None:
        body, server = json.loads(self.rfile.read(int(self.headers["Content-Length"]))), self.server
        with server.lock:
            server.bodies.append(body)
            server.headers.append(dict(self.headers))
            number = len(server.bodies)
            server.num_now += 1
            server.most_at_once = max(server.most_at_once, server.num_now)
        status, content = server.answer(number, body)
        with server.lock:
            server.num_now -= 1
        self._send(status, content)

    def _send(self, status: int, content: Any) -> None:
        is_whole = not isinstance(content, Iterator)
        data = content if isinstance(content, bytes) or not is_whole else json.dumps(content).encode()
        with suppress(OSError):  # the client may have gone
            self.send_response(status)
            self.send_header("Content-Length", str(len(data) if is_whole else 100_000))
            self.end_headers()
            for piece in [data] if is_whole else data:
                self.wfile.write(piece)
            is_dropped = status >= 500 and self.server.drops_after_errors
            if is_dropped:
                self.wfile.flush()
                self.server.is_over.wait(0.05)
            if is_dropped or not is_whole:
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *_: Any) -> None:
        """Silence."""


@pytest.fixture
def fake_server() -> Iterator[Callable[..., FakeServer]]:
    servers: list[FakeServer] = []

    def start(answer: Callable[[int, dict[str, Any]], tuple[int, Any]]) -> FakeServer:
        servers.append(FakeServer(answer))
        return servers[-1]

    yield start
    for server in servers:
        server.is_over.set()
        server.shutdown()
        server.server_close()
