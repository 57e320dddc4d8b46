"""Spreading requests over servers: whoever is free takes the next prompt; what a server loses, another one gets."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
from anyio.from_thread import start_blocking_portal

from tasks.engines.sampler import Samples
from tasks.engines.vllm_process import EngineDied, EngineError
from tasks.vllm_config import VllmConfig

PATH = "/inference/v1/generate"
CONNECT_SECONDS = 10.0
KEEPALIVE_SECONDS = 2.0
"""How long an idle connection is used again: less than the 5 s after which vLLM's server closes it."""
BACKOFF_SECONDS, LONGEST_BACKOFF_SECONDS = 0.25, 30.0
RETRIED_STATUS = (408, 425, 429, 500, 502, 503, 504)
LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=KEEPALIVE_SECONDS)
FRESH = httpx.Limits(max_keepalive_connections=0)
"""A connection for each question: uvicorn closes one on which a request failed, without saying so."""


@dataclass(eq=False)
class Job:
    """The completions of one prompt that are still to be made: request bodies by row."""

    bodies: dict[int, dict[str, Any]]
    num_failures: int = 0
    failed_at: set[str] = field(default_factory=set)
    """Servers that it is given to again only when no other is left."""


class Dispatch:
    """One spreading of jobs; `dead` are the servers that failed on the way, with what went wrong."""

    def __init__(
        self, config: VllmConfig, headers: dict[str, str], version: str, progress: Callable[[int], Any]
    ) -> None:
        """Every token has to come from the weights `version`; `progress(done)` is called with completions."""
        self.config, self.version, self.progress = config, version, progress
        self.dead: dict[str, str] = {}
        self.answers: dict[int, Samples] = {}
        self._headers = headers
        self._waiting: deque[Job] = deque()
        self._num_open = 0
        self._changed = asyncio.Condition()
        self._room: dict[str, asyncio.Semaphore] = {}

    def run(self, jobs: Sequence[Job], urls: Sequence[str]) -> dict[int, Samples]:
        """Every row's completion. Raises EngineDied when no server is left, EngineError for a job that is given up."""
        try:
            with start_blocking_portal() as portal:  # a loop of its own; left by Ctrl-C, it cancels what runs in it
                portal.call(self._run, jobs, urls)
        except BaseExceptionGroup as group:
            error: BaseException = group
            while isinstance(error, BaseExceptionGroup):
                error = error.exceptions[0]
            raise error from None
        return self.answers

    async def _run(self, jobs: Sequence[Job], urls: Sequence[str]) -> None:
        self._waiting, self._num_open = deque(jobs), len(jobs)
        at_once, widest = self.config.requests_per_endpoint, max((len(job.bodies) for job in jobs), default=1)
        num_workers = min(max(1, at_once // widest), len(jobs))
        self._room = {url: asyncio.Semaphore(at_once) for url in urls}
        timeout = httpx.Timeout(None, connect=CONNECT_SECONDS)
        async with AsyncExitStack() as stack:
            client = httpx.AsyncClient(headers=self._headers, limits=LIMITS, timeout=timeout, trust_env=False)
            self._health = httpx.AsyncClient(
                headers=self._headers, limits=FRESH, timeout=CONNECT_SECONDS, trust_env=False
            )
            await stack.enter_async_context(client)
            await stack.enter_async_context(self._health)
            group = await stack.enter_async_context(asyncio.TaskGroup())
            for _ in range(num_workers):
                for url in urls:  # the first prompts go round
                    group.create_task(self._work(client, url))
        if self._num_open:
            facts = "; ".join(f"{url}: {what}" for url, what in self.dead.items())
            raise EngineDied(f"no server is left for {self._num_open} of {len(jobs)} prompts ({facts})")

    async def _work(self, client: httpx.AsyncClient, url: str) -> None:
        """Take jobs for one server until all are done, or the server is dead."""
        while (job := await self._next(url)) is not None:
            failure = await self._attempt(client, url, job)
            if failure:
                await self._fail(url, job, failure)
            async with self._changed:
                if job.bodies:
                    self._waiting.append(job)
                else:
                    self._num_open -= 1
                if job.bodies or not self._num_open:
                    self._changed.notify_all()

    async def _next(self, url: str) -> Job | None:
        async with self._changed:
            await self._changed.wait_for(lambda: self._is_over(url) or self._fit(url) is not None)
            if self._is_over(url):
                return None
            job = self._fit(url)
            assert job is not None
            self._waiting.remove(job)
            return job

    def _is_over(self, url: str) -> bool:
        return not self._num_open or url in self.dead

    def _fit(self, url: str) -> Job | None:
        """The first job that has not failed here, or failed wherever there still is a server."""
        alive = self._room.keys() - self.dead.keys()
        return next((job for job in self._waiting if url not in job.failed_at or alive <= job.failed_at), None)

    async def _attempt(self, client: httpx.AsyncClient, url: str, job: Job) -> str:
        """Ask for what is missing of the job; '' or the first thing that went wrong and may be tried again."""
        async with asyncio.TaskGroup() as group:
            asked = {row: group.create_task(self._complete(client, url, row, job.bodies[row])) for row in job.bodies}
        failures = {row: task.result() for row, task in asked.items() if task.result()}
        job.bodies = {row: job.bodies[row] for row in failures}
        return next(iter(failures.values()), "")

    async def _fail(self, url: str, job: Job, failure: str) -> None:
        """Count the failure and find out whether the server is dead, before anybody takes the job again."""
        job.num_failures += 1
        job.failed_at.add(url)
        if job.num_failures > self.config.max_retries:
            raise EngineError(
                f"a prompt's completions failed {job.num_failures} times (sampler.vllm.max_retries = "
                f"{self.config.max_retries}), the last time at {url}: {failure}"
            )
        if url not in self.dead and not await self._is_healthy(url):
            self.dead[url] = failure
        if url not in self.dead:
            await asyncio.sleep(min(BACKOFF_SECONDS * 2 ** (job.num_failures - 1), LONGEST_BACKOFF_SECONDS))

    async def _complete(self, client: httpx.AsyncClient, url: str, row: int, body: dict[str, Any]) -> str:
        """Ask for one completion and keep it; '' or what went wrong and may be tried again."""
        seconds = self.config.request_timeout_seconds
        async with self._room[url]:
            if url in self.dead:
                return self.dead[url]
            try:
                async with asyncio.timeout(seconds):
                    response = await client.post(url + PATH, json=body)
            except TimeoutError:
                return f"no answer within {seconds:g} s (sampler.vllm.request_timeout_seconds)"
            except httpx.RequestError as error:
                return f"{type(error).__name__}: {error}"
        if response.status_code in RETRIED_STATUS:
            return f"status {response.status_code}: {response.text[:300]}"
        if not response.is_success:
            raise EngineError(f"the server {url} refused a request with {response.status_code}: {response.text[:500]}")
        try:
            samples, versions = _completion(response)
        except (ValueError, LookupError, TypeError) as error:
            return f"an answer that is no completion ({type(error).__name__}: {error}): {response.text[:300]}"
        if versions != {self.version}:
            held = ", ".join(version[:16] for version in sorted(versions))
            self.dead[url] = (
                f"it sampled from the weights {held or 'of no version'}, not {self.version[:16]}: it was restarted, or "
                "somebody else loaded others"
            )
            return self.dead[url]
        self.answers[row] = samples
        self.progress(len(self.answers))
        return ""

    async def _is_healthy(self, url: str) -> bool:
        try:
            response = await self._health.get(url + "/health")
        except httpx.RequestError:
            return False
        return response.is_success


def _completion(response: httpx.Response) -> tuple[Samples, set[str]]:
    """One completion as the server's JSON has it, and the versions of the weights it comes from."""
    answer = response.json()
    choice = answer["choices"][0]
    if choice["finish_reason"] not in ("stop", "length"):
        raise ValueError(f"it ended by {choice['finish_reason']!r}")
    tokens = np.array(choice["token_ids"], dtype=np.int32)
    content = choice["logprobs"]["content"]
    if [entry["token_id"] for entry in content] != tokens.tolist():
        raise ValueError("its log-probabilities are not those of its tokens")
    details = answer.get("usage", {}).get("prompt_tokens_details") or {}
    samples = Samples(
        token_ids_N=tokens,
        offsets=np.array([0, tokens.size], dtype=np.int64),
        sampler_logprobs_N=np.array([entry["logprob"] for entry in content], dtype=np.float32),
        is_truncated_R=np.array([choice["finish_reason"] == "length"]),
        num_cached_prompt_tokens=details.get("cached_tokens") or 0,
    )
    return samples, {span["version"] for span in choice["weight_versions"] or []}
