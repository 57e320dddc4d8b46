"""One running vLLM server: whether it is set up for this run, its weights, and what it says of a probe.

REMEDY says how it is started. It is a trusted machine of one's own: loading weights needs vLLM's development mode,
which lets whoever can reach the port do so.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray

from tasks.config import SamplerConfig
from tasks.engines.vllm_dispatch import CONNECT_SECONDS, FRESH, PATH

FLAGS = (
    "--load-format dummy --hf-overrides '{\"tie_word_embeddings\": false}' --logprobs-mode processed_logprobs "
    "--enable-scale-out --skip-tokenizer-init --enable-prompt-tokens-details"
)
CPU_FLAGS = "--no-enable-chunked-prefill"
REMEDY = f"Start it with VLLM_SERVER_DEV_MODE=1 vllm serve CHECKPOINT {FLAGS} (on a CPU also {CPU_FLAGS})"
TORCH_DTYPES = {"fp32": "float32", "bf16": "bfloat16"}
ANSWER_SECONDS = 60.0
"""How long a server may take to say what it is; /server_info takes seconds the first time."""
LOADING = "loading"
"""Version that a server says while its weights change, and after they failed to."""


class UnfitServer(ValueError):
    """A server answers, and is not set up for this run."""


class ServerGone(Exception):
    """A server does not answer, or its engine is dead."""


class Endpoint:
    """One server; its methods raise ServerGone and UnfitServer."""

    def __init__(self, url: str, config: SamplerConfig, headers: dict[str, str]) -> None:
        self.url, self.config = url.rstrip("/"), config
        self.is_alive = False
        self.why = "not asked yet"
        """What went wrong, while it is not alive."""
        timeout = httpx.Timeout(config.vllm.request_timeout_seconds, connect=CONNECT_SECONDS)
        self._client = httpx.Client(headers=headers, limits=FRESH, timeout=timeout, trust_env=False)

    def lost(self, why: str) -> None:
        self.is_alive, self.why = False, why

    def check_setup(self, max_model_len: int) -> None:
        """Refuse a server that would sample something else, or could not."""
        info = self._get("/server_info?config_format=json").get("vllm_config")
        if isinstance(info, dict) and "weight_version" in self._get("/weight_info"):
            problems = _setup_problems(info, TORCH_DTYPES[self.config.dtype], max_model_len)
        else:
            problems = ["vLLM 0.32 or later, which says its settings at /server_info and a version at /weight_info"]
        if problems:
            raise UnfitServer(
                f"the server {self.url} is not set up for this run: expected {'; '.join(problems)}. {REMEDY}"
            )

    def version(self) -> str:
        """Version of the weights, as it was told."""
        return str(self._get("/weight_info").get("weight_version"))

    def load(self, export: Path, version: str) -> None:
        """Replace the weights; the server says LOADING until they are there and no cached prefix is left."""
        self._post("/update_weight_version", {"new_version": LOADING})
        auto = {"overrides": {"load_config": {"load_format": "auto"}}}
        self._post("/collective_rpc", {"method": "update_config", "kwargs": auto})
        try:
            weights = {"weights_path": str(export)}
            self._post("/collective_rpc", {"method": "reload_weights", "kwargs": weights})
        except UnfitServer as error:
            raise UnfitServer(
                f"{error} Here: it could not load the weights in {export}; expected a server that sees the folder "
                f"sampler.vllm.shared_path = {self.config.vllm.shared_path!r} at the same path, may read it, and "
                "serves a model of the policy's shape"
            ) from None
        if not self._post("/reset_prefix_cache?reset_running_requests=true", {}).get("success"):
            raise UnfitServer(
                f"the server {self.url} did not forget the cached prefixes of its earlier weights: expected no "
                "requests of others on it while weights are loaded. Wait for them to end, and run the command again"
            )
        self._post("/update_weight_version", {"new_version": version})

    def logprobs(self, sequences: Sequence[NDArray[np.int32]]) -> list[NDArray[np.float32]]:
        """log p [T-1] of every token but the first, at temperature 1."""
        params = {"temperature": 1.0, "max_tokens": 1, "prompt_logprobs": 0, "detokenize": False}
        found = []
        for sequence in sequences:
            rows = self._post(PATH, {"token_ids": sequence.tolist(), "sampling_params": params})["prompt_logprobs"]
            said = [row[str(token)]["logprob"] for row, token in zip(rows[1:], sequence[1:].tolist(), strict=True)]
            found.append(np.array(said, dtype=np.float32))
        return found

    def close(self) -> None:
        """The server goes on."""
        self._client.close()

    def _get(self, path: str) -> dict[str, Any]:
        timeout = httpx.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS)
        return self._ask(path, lambda url: self._client.get(url, timeout=timeout))

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        return self._ask(path, lambda url: self._client.post(url, json=body))

    def _ask(self, path: str, send: Callable[[str], httpx.Response]) -> dict[str, Any]:
        try:
            response = send(self.url + path)
            if response.status_code >= 500:
                health = self._client.get(self.url + "/health", timeout=ANSWER_SECONDS)
                if not health.is_success:
                    raise ServerGone(f"it answered {path} with {response.status_code}, and its engine is dead")
        except httpx.RequestError as error:
            raise ServerGone(f"no answer to {path}, {type(error).__name__}: {error}") from None
        try:
            answer = response.json() if response.is_success else None
        except ValueError:
            answer = None
        if isinstance(answer, dict):
            return answer
        what = f"the server {self.url} answered {path} with {response.status_code}: {response.text[:500]}."
        if response.status_code in (401, 403):
            raise UnfitServer(f"{what} Expected the key that it was started with in the variable VLLM_API_KEY")
        raise UnfitServer(f"{what} {REMEDY}")


def _setup_problems(info: dict[str, Any], dtype: str, max_model_len: int) -> list[str]:
    """What has to be otherwise: '--flag value, got value'."""
    model, problems = info["model_config"], []
    if model["logprobs_mode"] != "processed_logprobs":
        problems.append(f"--logprobs-mode processed_logprobs, got {model['logprobs_mode']}")
    if (got := str(model["dtype"]).removeprefix("torch.")) != dtype:
        problems.append(f"--dtype {dtype} (sampler.dtype), got {got}")
    if model["max_model_len"] < max_model_len:
        problems.append(f"--max-model-len of at least {max_model_len}, got {model['max_model_len']}")
    if (count := info["parallel_config"]["data_parallel_size"]) > 1:
        problems.append(f"a server for each copy of the weights, got --data-parallel-size {count}")
    is_cpu = info["device_config"]["device"] == "cpu"
    if is_cpu and info["scheduler_config"]["enable_chunked_prefill"]:
        problems.append(f"{CPU_FLAGS} on a CPU, where a seeded request that is split ends the server")
    return problems
