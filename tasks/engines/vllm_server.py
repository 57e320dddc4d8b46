"""Running vLLM servers as the engines of a run: weights through a shared folder, token ids over HTTP."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from tasks.config import SamplerConfig
from tasks.engines.policy import Policy
from tasks.engines.sampler import Samples, SamplingParams, joined
from tasks.engines.vllm_dispatch import Dispatch, Job
from tasks.engines.vllm_endpoint import REMEDY, Endpoint, ServerGone, UnfitServer
from tasks.engines.vllm_process import EngineDied

T = TypeVar("T")


class ServerFleet:
    """See `Fleet` (tasks/engines/vllm_sampler.py)."""

    name = "vllm-server"
    copies_weights = True
    recovery = "The servers are asked again"
    second_death = "No server of sampler.vllm.endpoints was left, twice"
    remedy = f"See the servers' own logs. {REMEDY}"

    def __init__(self, config: SamplerConfig, *, note: Callable[[str], Any] = print) -> None:
        self.config, self.note, self.export_folder = config, note, config.vllm.shared_path
        key = os.environ.get("VLLM_API_KEY")
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.endpoints = [Endpoint(url, config, self._headers) for url in config.vllm.endpoints]
        self.version = ""
        self._num_used = len(self.endpoints)

    def start(self, policy: Policy, export: Path, max_model_len: int) -> int:
        """Find which endpoints answer, and refuse those that are set up otherwise; starts none."""

        def of_endpoint(endpoint: Endpoint) -> None:
            endpoint.check_setup(max_model_len)
            endpoint.is_alive = True

        self._each(of_endpoint, self.endpoints)
        self._need_one()
        return 0

    def wake(self) -> bool:
        """Whether the weights may be used as they are.

        Not where a server says another version than the last that was loaded (it was started again, or somebody else
        loaded one), and not where one that was lost is back. A server that is lost now is left out from here on.
        """

        def of_endpoint(endpoint: Endpoint) -> bool:
            return endpoint.version() == self.version and endpoint.is_alive

        try:
            are_as_before = all(holds for _, holds in self._each(of_endpoint, self.endpoints))
        except UnfitServer:
            return False
        self._note_losses()
        return are_as_before and bool(self._alive())

    def load(self, export: Path, version: str) -> None:
        self._each(lambda endpoint: endpoint.load(export, version), self._alive())
        self.version = version
        self._need_one()

    def logprobs(self, sequences: Sequence[NDArray[np.int32]]) -> dict[str, list[NDArray[np.float32]]]:
        found = self._each(lambda endpoint: endpoint.logprobs(sequences), self._alive())
        self._need_one()
        return {f"The server {endpoint.url}": said for endpoint, said in found}

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
            token_ids = prompt.tolist()
            common = {
                "temperature": params.temperature,
                "top_p": params.top_p if params.temperature else 1.0,
                "max_tokens": int(limits_P[p]),
                "stop_token_ids": stop_token_ids,
                "ignore_eos": True,  # the tokens that end a completion are ours
                "logprobs": 0,
                "detokenize": False,
            }
            rows = range(p * num_samples, (p + 1) * num_samples)
            sampling = {row: common | {"seed": int(seeds_R[row])} for row in rows}
            jobs.append(Job({row: {"token_ids": token_ids, "sampling_params": sampling[row]} for row in rows}))
        dispatch = Dispatch(self.config.vllm, self._headers, self.version, progress)
        try:
            answers = dispatch.run(jobs, [endpoint.url for endpoint in self._alive()])
        finally:
            for endpoint in self.endpoints:
                if endpoint.url in dispatch.dead:
                    endpoint.lost(dispatch.dead[endpoint.url])
            self._note_losses()
        return joined([answers[row] for row in range(len(seeds_R))])

    def rest(self) -> None:
        """The servers have GPUs of their own."""

    def close(self) -> None:
        """The servers go on; they are asked again before they are used."""
        for endpoint in self.endpoints:
            endpoint.close()
        self.endpoints = [Endpoint(each.url, self.config, self._headers) for each in self.endpoints]
        self.version = ""

    def _alive(self) -> list[Endpoint]:
        return [endpoint for endpoint in self.endpoints if endpoint.is_alive]

    def _need_one(self) -> None:
        self._note_losses()
        if not self._alive():
            facts = "; ".join(f"{endpoint.url}: {endpoint.why}" for endpoint in self.endpoints)
            raise EngineDied(f"sampler.vllm.endpoints: expected at least one server that answers, got none ({facts})")

    def _note_losses(self) -> None:
        """Say which servers are left out, when their number has changed."""
        lost = [f"{endpoint.url} ({endpoint.why})" for endpoint in self.endpoints if not endpoint.is_alive]
        num_used, before = len(self.endpoints) - len(lost), self._num_used
        self._num_used = num_used
        if num_used and num_used != before:
            left_out = f", without {'; '.join(lost)}" if lost else " again"
            self.note(f"{self.name}: sampling with {num_used} of {len(self.endpoints)} servers{left_out}")

    def _each(self, work: Callable[[Endpoint], T], endpoints: Sequence[Endpoint]) -> list[tuple[Endpoint, T]]:
        """`work` for each endpoint, side by side; one that is gone is marked and has no result."""

        def of_endpoint(endpoint: Endpoint) -> list[tuple[Endpoint, T]]:
            try:
                return [(endpoint, work(endpoint))]
            except ServerGone as gone:
                endpoint.lost(str(gone))
                return []

        with ThreadPoolExecutor(max(len(endpoints), 1)) as pool:
            return [found for each in pool.map(of_endpoint, endpoints) for found in each]
