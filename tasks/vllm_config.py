"""Where and how fast vLLM samples: nothing here is part of a stage's identity."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated
from urllib.parse import urlsplit

from tasks.bounds import Bounds, Count, NonNegative, Positive, PositiveFloat, Share


@dataclass(frozen=True, kw_only=True)
class VllmConfig:
    """Engines of `sampler.engine = "vllm"` (started by the run) and "vllm-server" (running already)."""

    tensor_parallel_size: Positive = 1
    """GPUs that share one copy of the weights."""
    data_parallel_size: Positive = 1
    """Engines, each with its own copy of the weights; prompts are spread over them."""
    gpu_memory_utilization: Share = 0.9
    """Share of a GPU's memory that an engine takes; lower it where the trainer uses the same GPU and sleep_level is 0.
    vLLM: 0.9."""
    kv_cache_gib: Positive = 1
    """Memory for keys and values on a CPU, in GiB."""
    max_model_len: Count = 0
    """Most tokens of prompt and completion that an engine makes room for; 0: prompts.max_tokens + sampler.max_tokens,
    at most the policy's context."""
    max_num_seqs: Positive = 256
    """Completions that an engine works on at once. vLLM: 256."""
    max_num_batched_tokens: Positive = 8192
    """Tokens of one forward pass of an engine."""
    enforce_eager: bool = False
    """Without CUDA graphs and compilation: slower, and started sooner. On a CPU always."""
    sleep_level: Annotated[int, Bounds(at_least=0, at_most=2)] = 0
    """What an engine does while others use its GPU: 0 stays; 1 moves its weights to the host's memory and drops its
    cache; 2 drops both, and loads the weights again. CUDA only."""
    max_sync_difference: NonNegative = 0.0
    """Largest difference of log-probabilities, in nats, that the check of loaded weights allows, and 8 times the
    largest mean; 0 takes that of sampler.dtype (tasks/engines/weight_sync.py)."""
    start_timeout_seconds: PositiveFloat = 900.0
    """How long an engine may take to start."""
    endpoints: tuple[str, ...] = ()
    """vllm-server: the servers' addresses, for example ["http://10.0.0.5:8000"]."""
    shared_path: str = ""
    """vllm-server: folder that this machine and the servers see at the same path; weights are handed over in it."""
    requests_per_endpoint: Positive = 64
    """vllm-server: requests that one endpoint has at once."""
    request_timeout_seconds: PositiveFloat = 600.0
    """vllm-server: how long one answer may take before the request is sent again, elsewhere if there is another."""
    max_retries: Count = 3
    """vllm-server: how often one request is sent again before the step fails."""


def endpoint_problems(endpoints: Sequence[str]) -> list[str]:
    """What is wrong with sampler.vllm.endpoints as addresses."""
    problems = []
    for url in endpoints:
        parts = urlsplit(url)
        if parts.username or parts.password:  # errors and notes print addresses
            problems.append(
                f"sampler.vllm.endpoints: expected no user or password in an address, got one for {parts.hostname}; a "
                "key belongs in the variable VLLM_API_KEY"
            )
        elif parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            problems.append(f"sampler.vllm.endpoints: expected addresses such as http://127.0.0.1:8000, got {url!r}")
    if len({url.rstrip("/") for url in endpoints}) < len(endpoints):
        problems.append(
            f"sampler.vllm.endpoints: expected each server once, got {', '.join(sorted(endpoints))}; for more requests "
            "at once raise sampler.vllm.requests_per_endpoint"
        )
    return problems
