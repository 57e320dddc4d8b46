"""The engines that a run starts: one process for each copy of the weights, prompts spread over them."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from tasks.config import SamplerConfig
from tasks.engines.policy import TINY_PARAMETERS, Policy
from tasks.engines.sampler import Samples, SamplingParams, joined
from tasks.engines.vllm_process import EngineProcess, EngineSettings

T = TypeVar("T")

SAME_KEYS = (
    "tensor_parallel_size", "gpu_memory_utilization", "kv_cache_gib", "max_num_seqs", "max_num_batched_tokens",
    "enforce_eager", "sleep_level", "start_timeout_seconds",
)  # fmt: skip
"""Keys of sampler.vllm that are settings of an engine under the same name."""


class EngineFleet:
    """See `Fleet` (tasks/engines/vllm_sampler.py)."""

    name = "vllm"
    export_folder = ""
    copies_weights = False
    recovery = "It is started again"
    second_death = "vllm died, was started again, and died again"
    remedy = (
        "Where memory ran out, lower sampler.vllm.max_num_seqs, kv_cache_gib (CPU) or gpu_memory_utilization (CUDA)"
    )

    def __init__(self, config: SamplerConfig, *, threads: int, log: Path) -> None:
        self.config, self.threads, self.log = config, threads, log
        self.engines: list[EngineProcess] = []
        self.is_asleep = False

    def start(self, policy: Policy, export: Path, max_model_len: int) -> int:
        if self.engines:
            return 0
        _give_back_cached_memory()
        settings = EngineSettings(
            folder=str(export),
            dtype=self.config.dtype,
            max_model_len=max_model_len,
            threads=self.threads or (1 if policy.num_parameters < TINY_PARAMETERS else 0),
            **{name: getattr(self.config.vllm, name) for name in SAME_KEYS},
        )
        count = self.config.vllm.data_parallel_size
        logs = [self.log.with_name(f"{self.log.stem}-{i}{self.log.suffix}") for i in range(count)]
        devices = _devices_of_engines(count, settings.tensor_parallel_size)
        with ThreadPoolExecutor(count) as pool:
            starting = [
                pool.submit(EngineProcess, replace(settings, devices=devices[i]), logs[i]) for i in range(count)
            ]
        self.engines = [each.result() for each in starting if each.exception() is None]
        for each in starting:
            if (error := each.exception()) is not None:
                self.close()
                raise error
        return count

    def wake(self) -> bool:
        if self.is_asleep:
            _give_back_cached_memory()
        if self.is_asleep and self.config.vllm.sleep_level == 1:
            self._each(lambda engine: engine.call("wake", None))
            self.is_asleep = False
        return bool(self.engines) and not self.is_asleep

    def load(self, export: Path, version: str) -> None:
        def of_engine(engine: EngineProcess) -> None:
            if self.is_asleep:  # level 2: room for the weights first, and for the cache when they are there
                engine.call("wake", ["weights"])
            engine.call("load", str(export))
            if self.is_asleep:
                engine.call("wake", ["kv_cache"])

        self._each(of_engine)
        self.is_asleep = False

    def logprobs(self, sequences: Sequence[NDArray[np.int32]]) -> dict[str, list[NDArray[np.float32]]]:
        found = self._each(lambda engine: engine.call("logprobs", list(sequences)))
        return {f"vLLM (process {engine.pid})": said for engine, said in zip(self.engines, found, strict=True)}

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
        """Whole groups on one engine, which shares their prompt; the engines side by side."""
        num_samples = len(seeds_R) // max(len(prompts), 1)
        shares = np.array_split(np.arange(len(prompts)), len(self.engines))
        done = [0] * len(self.engines)

        def of_engine(i: int) -> Samples:
            def tell(count: int) -> None:
                done[i] = count
                progress(sum(done))

            rows_R = (shares[i][:, None] * num_samples + np.arange(num_samples)).ravel()
            share = [prompts[p] for p in shares[i]]
            arguments = (share, limits_P[shares[i]], seeds_R[rows_R], params, stop_token_ids)
            samples: Samples = self.engines[i].call("sample", *arguments, progress=tell)
            return samples

        parts = self._each(lambda engine: of_engine(self.engines.index(engine)))
        progress(len(seeds_R))
        return joined(parts)

    def rest(self) -> None:
        if self.config.vllm.sleep_level and all(engine.facts["sleeps"] for engine in self.engines):
            self._each(lambda engine: engine.call("sleep", self.config.vllm.sleep_level))
            self.is_asleep = True

    def close(self) -> None:
        for engine in self.engines:
            engine.close()
        self.engines, self.is_asleep = [], False

    def _each(self, work: Callable[[EngineProcess], T]) -> list[T]:
        """The engines side by side. When one fails, or the run is told to stop, all end: none computes for nobody."""
        with ThreadPoolExecutor(max(len(self.engines), 1)) as pool:
            try:
                return list(pool.map(work, self.engines))
            except BaseException:
                self.close()
                raise


def _give_back_cached_memory() -> None:
    """Blocks that torch keeps after training, on a GPU that an engine is about to use as well."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _devices_of_engines(count: int, size: int) -> list[tuple[str, ...]]:
    """The GPUs of each engine, `size` of those that this process may use; () on a machine without any."""
    devices = _visible_devices()
    if devices and len(devices) < size * count:
        raise ValueError(
            f"sampler.vllm: data_parallel_size {count} x tensor_parallel_size {size} needs {size * count} GPUs, and "
            f"{len(devices)} are visible: lower one of them, or set CUDA_VISIBLE_DEVICES"
        )
    return [tuple(devices[i * size : (i + 1) * size]) for i in range(count)]


def _visible_devices() -> list[str]:
    """As CUDA_VISIBLE_DEVICES names them; none on a machine without GPUs."""
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        return [str(i) for i in range(torch.cuda.device_count())]
    return [name for name in named.split(",") if name.strip()] if torch.cuda.is_available() else []
