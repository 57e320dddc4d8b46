"""The engine's process: a vLLM that answers its parent's calls over a socket. Run as `python -m`, with the socket's
and the lifeline's file descriptors; the parent's side is tasks/engines/vllm_process.py.

It is a process of its own because vLLM in a process replaces torch.set_num_threads, seeds every generator and, on a
GPU, holds memory that only the end of the process gives back.
"""

import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.engines.sampler import Samples, SamplingParams
from tasks.engines.vllm_process import EngineSettings

CPU_BLOCK_SIZE = 32
"""Tokens of a cache block on a CPU: its kernels take multiples of 32; of vLLM's 128 a short prompt fills none, and no
prefix is shared."""
PROGRESS_SECONDS = 0.2


class Worker:
    """What the parent can call: every public method, by name."""

    def __init__(self, settings: EngineSettings, tell: Callable[[Any], None]) -> None:
        from vllm import LLM
        from vllm.platforms import current_platform

        self.tell = tell
        self.is_cpu = bool(current_platform.is_cpu())
        self.sleeps = settings.sleep_level > 0 and bool(current_platform.is_sleep_mode_available())
        platform: dict[str, Any] = {"enforce_eager": settings.enforce_eager or self.is_cpu}
        if self.is_cpu:  # a seeded request that is prefilled in chunks fails there: its generator knows no offset
            platform |= {"block_size": CPU_BLOCK_SIZE, "enable_chunked_prefill": False}
        batched = max(settings.max_num_batched_tokens, settings.max_model_len)
        self.llm = LLM(
            model=settings.folder,
            dtype={"fp32": "float32", "bf16": "bfloat16"}[settings.dtype],
            max_model_len=settings.max_model_len,
            max_num_seqs=settings.max_num_seqs,
            max_num_batched_tokens=batched,
            tensor_parallel_size=settings.tensor_parallel_size,
            gpu_memory_utilization=settings.gpu_memory_utilization,
            enable_sleep_mode=self.sleeps,
            enable_prefix_caching=True,
            logprobs_mode="processed_logprobs",
            skip_tokenizer_init=True,
            generation_config="vllm",
            seed=0,
            **platform,
        )

    def facts(self) -> dict[str, Any]:
        """What the engine is."""
        import vllm

        return {"version": vllm.__version__, "is_cpu": self.is_cpu, "sleeps": self.sleeps, "pid": os.getpid()}

    def has_lost_a_part(self) -> bool:
        """Whether a process of vLLM's own died (tensor-parallel workers): this engine will not answer again."""
        return bool(getattr(self.llm.llm_engine.model_executor, "is_failed", False))

    def load(self, folder: str) -> None:
        """Replace the weights in place by those of a checkpoint of the same shape, and forget every cached prefix."""
        self.llm.collective_rpc("reload_weights", kwargs={"weights_path": folder})
        self.reset()

    def reset(self) -> None:
        """Forget every cached prefix."""
        if not self.llm.reset_prefix_cache():
            raise RuntimeError("vLLM did not reset its prefix cache: requests are still running")

    def sleep(self, level: int) -> None:
        self.llm.sleep(level=level)

    def wake(self, tags: list[str] | None) -> None:
        self.llm.wake_up(tags=tags)

    def logprobs(self, sequences: Sequence[NDArray[np.int32]]) -> list[NDArray[np.float32]]:
        """log p [T-1] of every token but the first, at temperature 1."""
        from vllm import SamplingParams as VllmParams

        params = VllmParams(temperature=1.0, max_tokens=1, prompt_logprobs=0, detokenize=False)
        outputs = self._complete(list(sequences), [params] * len(sequences), lambda done: None)
        found = []
        for sequence, output in zip(sequences, outputs, strict=True):
            rows = zip(output.prompt_logprobs[1:], sequence[1:], strict=True)
            found.append(np.array([row[int(token)].logprob for row, token in rows], dtype=np.float32))
        return found

    def sample(
        self,
        prompts: Sequence[NDArray[np.int32]],
        limits_P: NDArray[np.int64],
        seeds_R: NDArray[np.int64],
        params: SamplingParams,
        stop_token_ids: list[int],
    ) -> Samples:
        """R = P * n completions, n = len(seeds_R) / P; each is a request of its own, with its own seed."""
        from vllm import SamplingParams as VllmParams
        from vllm.sampling_params import RequestOutputKind

        self.reset()  # equal calls do equal work, whatever was sampled before
        num_samples = len(seeds_R) // max(len(prompts), 1)
        requests = [
            VllmParams(
                temperature=params.temperature,
                top_p=params.top_p if params.temperature else 1.0,
                max_tokens=int(limits_P[row // num_samples]),
                seed=int(seed),
                stop_token_ids=stop_token_ids,
                ignore_eos=True,  # the tokens that end a completion are ours
                logprobs=0,
                flat_logprobs=True,
                detokenize=False,
                output_kind=RequestOutputKind.FINAL_ONLY,
            )
            for row, seed in enumerate(seeds_R)
        ]
        repeated = [prompt for prompt in prompts for _ in range(num_samples)]
        outputs = self._complete(repeated, requests, lambda done: self.tell(("progress", done)))
        return _as_samples(outputs)

    def _complete(
        self, prompts: list[NDArray[np.int32]], requests: list[Any], progress: Callable[[int], None]
    ) -> list[Any]:
        """Every request's output, in order."""
        engine = self.llm.llm_engine
        for row, (prompt, request) in enumerate(zip(prompts, requests, strict=True)):
            engine.add_request(str(row), {"prompt_token_ids": prompt.tolist()}, request)
        outputs: list[Any] = [None] * len(requests)
        done, told = 0, 0.0
        while engine.has_unfinished_requests():
            for output in engine.step():
                if output.finished:
                    outputs[int(output.request_id)] = output
                    done += 1
            if time.monotonic() - told > PROGRESS_SECONDS:
                progress(done)
                told = time.monotonic()
        return outputs


def _as_samples(outputs: list[Any]) -> Samples:
    completions = [output.outputs[0] for output in outputs]
    tokens = [np.array(completion.token_ids, dtype=np.int32) for completion in completions]
    logprobs = [np.array(completion.logprobs.logprobs, dtype=np.float32) for completion in completions]
    return Samples(
        token_ids_N=np.concatenate([*tokens, np.zeros(0, np.int32)]),
        offsets=np.cumsum([0, *(len(completion) for completion in tokens)]).astype(np.int64),
        sampler_logprobs_N=np.concatenate([*logprobs, np.zeros(0, np.float32)]),
        is_truncated_R=np.array([completion.finish_reason == "length" for completion in completions], dtype=bool),
        num_cached_prompt_tokens=sum(output.num_cached_tokens or 0 for output in outputs),
    )


def _end_with_parent(lifeline: int) -> None:
    """Wait until the parent's end of the pipe is closed, however the parent ended; then end the whole process group."""
    os.read(lifeline, 1)
    os.killpg(os.getpgid(0), signal.SIGKILL)


def serve(connection: Connection) -> None:
    """Answer calls ('name', arguments) by ('result', value) or ('error', text, traceback) until the parent hangs up."""
    worker: Worker | None = None
    while True:
        try:
            name, arguments = connection.recv()
        except EOFError:
            return
        try:
            if name == "start":
                worker = Worker(*arguments, tell=connection.send)
                answer = worker.facts()
            else:
                assert worker is not None
                answer = getattr(worker, name)(*arguments)
        except Exception as error:
            traceback.print_exc()
            if worker is not None and worker.has_lost_a_part():
                return  # the parent meets the end of the stream, and starts another engine
            connection.send(("error", f"{type(error).__name__}: {error}"))
        else:
            connection.send(("result", answer))


if __name__ == "__main__":
    socket_fd, lifeline_fd = map(int, sys.argv[1:])
    threading.Thread(target=_end_with_parent, args=(lifeline_fd,), daemon=True).start()
    serve(Connection(socket_fd))
    os.killpg(os.getpgid(0), signal.SIGKILL)  # vLLM's own workers end with it
