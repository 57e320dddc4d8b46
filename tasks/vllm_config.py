"""Where and how fast vLLM samples: nothing here is part of a stage's identity."""

from dataclasses import dataclass
from typing import Annotated

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
    kv_cache_gib: PositiveFloat = 1.0
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
    """Largest difference of log-probabilities, in nats, that the check of loaded weights allows; 0 takes that of
    sampler.dtype (tasks/engines/weight_sync.py)."""
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
