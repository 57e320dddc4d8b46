"""Running `vllm serve` endpoints as the engines of a run: weights through a shared folder, token ids over HTTP.

The endpoints are trusted machines of one's own: loading weights needs vLLM's development mode, which lets whoever can
reach the port do so. REMEDY says how each is started.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray

from tasks.config import SamplerConfig
from tasks.engines.policy import Policy
from tasks.engines.sampler import Samples, SamplingParams, joined
from tasks.engines.vllm_dispatch import Dispatch, Job
from tasks.engines.vllm_process import EngineDied

REMEDY = (
    "Start it with VLLM_SERVER_DEV_MODE=1 vllm serve CHECKPOINT --load-format dummy --hf-overrides "
    "'{\"tie_word_embeddings\": false}' --logprobs-mode processed_logprobs --enable-scale-out --skip-tokenizer-init"
)
TORCH_DTYPES = {"fp32": "float32", "bf16": "bfloat16"}
CONNECT_SECONDS = 10.0


class UnfitServer(ValueError):
    """A server answers, and is not set up for this run."""


@dataclass
class Endpoint:
    """One server."""

    url: str
    is_alive: bool = False


class ServerFleet:
    """See `Fleet` (tasks/engines/vllm_sampler.py)."""

    name = "vllm-server"
    copies_weights = True

    def __init__(self, config: SamplerConfig) -> None:
        self.config, self.export_folder = config, config.vllm.shared_path
        self.endpoints = [Endpoint(url.rstrip("/")) for url in config.vllm.endpoints]
        self.version = ""
        key = os.environ.get("VLLM_API_KEY")
        self.headers = {"Authorization": f"Bearer {key}"} if key else {}
        timeout = httpx.Timeout(config.vllm.request_timeout_seconds, connect=CONNECT_SECONDS)
        self.client = httpx.Client(headers=self.headers, timeout=timeout, trust_env=False)

    def start(self, policy: Policy, export: Path, max_model_len: int) -> int:
        """Find which endpoints answer, and refuse those that are set up otherwise; starts none."""
        for endpoint in self.endpoints:
            try:
                self._check_setup(endpoint, max_model_len)
            except httpx.TransportError:
                endpoint.is_alive = False
            else:
                endpoint.is_alive = True
        self._need_one("none answers /server_info")
        return 0

    def wake(self) -> bool:
        """Servers that were restarted, or loaded by somebody else, say another version than ours."""
        try:
            versions = [self._get(endpoint, "/weight_info")["weight_version"] for endpoint in self.endpoints]
        except (httpx.TransportError, UnfitServer):
            return False
        return versions == [self.version] * len(self.endpoints)

    def load(self, export: Path, version: str) -> None:
        def of_endpoint(endpoint: Endpoint) -> None:
            try:
                dummy = {"overrides": {"load_config": {"load_format": "auto"}}}
                self._post(endpoint, "/collective_rpc", {"method": "update_config", "kwargs": dummy})
                weights = {"weights_path": str(export)}
                self._post(endpoint, "/collective_rpc", {"method": "reload_weights", "kwargs": weights})
                self._post(endpoint, "/update_weight_version", {"new_version": version})
                self._post(endpoint, "/reset_prefix_cache", {})
            except httpx.TransportError:
                endpoint.is_alive = False

        self._each(of_endpoint)
        self.version = version
        self._need_one("none could load the weights")

    def logprobs(self, sequences: Sequence[NDArray[np.int32]]) -> dict[str, list[NDArray[np.float32]]]:
        def of_endpoint(endpoint: Endpoint) -> tuple[str, list[NDArray[np.float32]]]:
            params = {"temperature": 1.0, "max_tokens": 1, "prompt_logprobs": 0, "detokenize": False}
            found = []
            for sequence in sequences:
                asked = {"token_ids": sequence.tolist(), "sampling_params": params}
                rows = self._post(endpoint, "/inference/v1/generate", asked)["prompt_logprobs"][1:]
                said = [row[str(token)]["logprob"] for row, token in zip(rows, sequence[1:].tolist(), strict=True)]
                found.append(np.array(said, dtype=np.float32))
            return f"The server {endpoint.url}", found

        try:
            return dict(self._each(of_endpoint))
        except httpx.TransportError as error:
            raise EngineDied(f"a server stopped answering during the check of its weights: {error!r}") from None

    def sample(
        self,
        prompts: Sequence[NDArray[np.int32]],
        *,
        limits_P: NDArray[np.int64],
        seeds_R: NDArray[np.int64],
        params: SamplingParams,
        stop_token_ids: list[int],
        progress: Callable[[int], Any],
    ) -> Samples:
        """Each completion is a request with its own seed; a prompt's go to one endpoint, the one that is free first."""
        num_samples = len(seeds_R) // max(len(prompts), 1)
        jobs = []
        for p, prompt in enumerate(prompts):
            common = {
                "temperature": params.temperature,
                "top_p": params.top_p if params.temperature else 1.0,
                "max_tokens": int(limits_P[p]),
                "stop_token_ids": stop_token_ids,
                "ignore_eos": True,
                "logprobs": 0,
                "detokenize": False,
            }
            rows = range(p * num_samples, (p + 1) * num_samples)
            bodies = {
                row: {"token_ids": prompt.tolist(), "sampling_params": common | {"seed": int(seeds_R[row])}}
                for row in rows
            }
            jobs.append(Job(bodies))
        dispatch = Dispatch(self.config.vllm, self.headers, self.version, progress)
        alive = [endpoint.url for endpoint in self.endpoints if endpoint.is_alive]
        with ThreadPoolExecutor(1) as apart:  # a loop of its own, also where this thread runs one
            answers = apart.submit(dispatch.run, jobs, alive).result()
        for endpoint in self.endpoints:
            endpoint.is_alive = endpoint.is_alive and endpoint.url not in dispatch.dead
        return joined([_as_sample(answers[row]) for row in range(len(seeds_R))])

    def rest(self) -> None:
        """The servers have GPUs of their own."""

    def close(self) -> None:
        """The servers go on; they are asked again before they are used."""
        for endpoint in self.endpoints:
            endpoint.is_alive = False
        self.version = ""

    def _check_setup(self, endpoint: Endpoint, max_model_len: int) -> None:
        model = self._get(endpoint, "/server_info?config_format=json")["vllm_config"]["model_config"]
        dtype = str(model["dtype"]).removeprefix("torch.")
        problems = []
        if model["logprobs_mode"] != "processed_logprobs":
            problems.append(f"--logprobs-mode processed_logprobs, got {model['logprobs_mode']}")
        if dtype != TORCH_DTYPES[self.config.dtype]:
            problems.append(f"--dtype {TORCH_DTYPES[self.config.dtype]} (sampler.dtype), got {dtype}")
        if model["max_model_len"] < max_model_len:
            problems.append(f"--max-model-len of at least {max_model_len}, got {model['max_model_len']}")
        if problems:
            raise UnfitServer(
                f"the server {endpoint.url} is not set up for this run: expected {'; '.join(problems)}. {REMEDY}"
            )

    def _need_one(self, fact: str) -> None:
        if not any(endpoint.is_alive for endpoint in self.endpoints):
            urls = ", ".join(endpoint.url for endpoint in self.endpoints)
            raise EngineDied(f"sampler.vllm.endpoints: expected at least one running server of {urls}; {fact}")

    def _each(self, work: Callable[[Endpoint], Any]) -> list[Any]:
        alive = [endpoint for endpoint in self.endpoints if endpoint.is_alive]
        with ThreadPoolExecutor(len(alive)) as pool:
            return list(pool.map(work, alive))

    def _get(self, endpoint: Endpoint, path: str) -> Any:
        return _content(endpoint, path, self.client.get(endpoint.url + path))

    def _post(self, endpoint: Endpoint, path: str, body: dict[str, Any]) -> Any:
        return _content(endpoint, path, self.client.post(endpoint.url + path, json=body))


def _content(endpoint: Endpoint, path: str, response: httpx.Response) -> Any:
    if response.is_success:
        return response.json()
    raise UnfitServer(
        f"the server {endpoint.url} answered {path} with {response.status_code}: {response.text[:500]}. {REMEDY}"
    )


def _as_sample(choice: dict[str, Any]) -> Samples:
    """One completion as the server's JSON has it."""
    tokens = np.array(choice["token_ids"], dtype=np.int32)
    logprobs = np.array([entry["logprob"] for entry in choice["logprobs"]["content"]], dtype=np.float32)
    return Samples(
        token_ids_N=tokens,
        offsets=np.array([0, tokens.size], dtype=np.int64),
        sampler_logprobs_N=logprobs,
        is_truncated_R=np.array([choice["finish_reason"] == "length"]),
    )
