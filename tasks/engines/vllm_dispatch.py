"""Spreading requests over servers: whoever is free takes the next prompt; what a server loses, another one gets."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from tasks.engines.vllm_process import EngineDied, EngineError
from tasks.vllm_config import VllmConfig

PATH = "/inference/v1/generate"
CONNECT_SECONDS = 10.0
BACKOFF_SECONDS = 0.25
RETRIED_STATUS = (408, 425, 429, 500, 502, 503, 504)


@dataclass
class Job:
    """The completions of one prompt that are still to be made: request bodies by row."""

    bodies: dict[int, dict[str, Any]]
    num_failures: int = 0


@dataclass
class Dispatch:
    """One spreading of jobs; `dead` are the servers that failed on the way."""

    config: VllmConfig
    headers: dict[str, str]
    version: str
    """Version of the weights that every token has to come from."""
    progress: Callable[[int], Any]
    dead: dict[str, str] = field(default_factory=dict)
    """Address to what went wrong."""
    answers: dict[int, dict[str, Any]] = field(default_factory=dict)
    """Row to the server's choice."""

    def run(self, jobs: Sequence[Job], urls: Sequence[str]) -> dict[int, dict[str, Any]]:
        """Every row's choice. Raises EngineDied when no server is left, EngineError for a request that is refused."""
        try:
            return asyncio.run(self._run(jobs, urls))
        except ExceptionGroup as group:
            raise group.exceptions[0] from None

    async def _run(self, jobs: Sequence[Job], urls: Sequence[str]) -> dict[int, dict[str, Any]]:
        waiting, widest = deque(jobs), max((len(job.bodies) for job in jobs), default=1)
        num_workers = max(1, self.config.requests_per_endpoint // widest)
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        timeout = httpx.Timeout(self.config.request_timeout_seconds, connect=CONNECT_SECONDS)
        open_jobs = _Counter(len(jobs))
        client = httpx.AsyncClient(headers=self.headers, limits=limits, timeout=timeout, trust_env=False)
        async with client, asyncio.TaskGroup() as group:
            for url in [url for url in urls for _ in range(num_workers)]:
                group.create_task(self._work(client, url, waiting, open_jobs))
        if open_jobs.count:
            facts = "; ".join(f"{url}: {what}" for url, what in self.dead.items())
            raise EngineDied(f"no server is left for {open_jobs.count} of {len(jobs)} prompts ({facts})")
        return self.answers

    async def _work(self, client: httpx.AsyncClient, url: str, waiting: deque[Job], open_jobs: "_Counter") -> None:
        """Take jobs for one server until all are done, or the server is dead."""
        while open_jobs.count and url not in self.dead:
            if not waiting:
                await asyncio.sleep(0.02)  # a job of another server may come back
                continue
            job = waiting.popleft()
            asked = (self._complete(client, url, row, body) for row, body in job.bodies.items())
            outcomes = await asyncio.gather(*asked)
            job.bodies = {row: job.bodies[row] for row, failure in zip(job.bodies, outcomes, strict=True) if failure}
            if not job.bodies:
                open_jobs.count -= 1
                continue
            job.num_failures += 1
            waiting.append(job)
            failure = next(failure for failure in outcomes if failure)
            if job.num_failures > self.config.max_retries:
                raise EngineError(
                    f"a prompt's completions failed {job.num_failures} times (sampler.vllm.max_retries = "
                    f"{self.config.max_retries}), the last time at {url}: {failure}"
                )
            if not await self._answers(client, url):
                self.dead[url] = failure
            else:
                await asyncio.sleep(BACKOFF_SECONDS * 2**job.num_failures)

    async def _complete(self, client: httpx.AsyncClient, url: str, row: int, body: dict[str, Any]) -> str:
        """Ask for one completion and keep it; '' or what went wrong and may be tried again."""
        try:
            response = await client.post(url + PATH, json=body)
        except httpx.TransportError as error:
            return f"{type(error).__name__}: {error}"
        if response.status_code in RETRIED_STATUS:
            return f"status {response.status_code}: {response.text[:300]}"
        if not response.is_success:
            raise EngineError(f"the server {url} refused a request with {response.status_code}: {response.text[:500]}")
        choice = response.json()["choices"][0]
        versions = {span["version"] for span in choice["weight_versions"]}
        if versions != {self.version}:
            self.dead[url] = (
                f"it sampled from the weights {sorted(versions)}, not {self.version[:16]}: it was restarted"
            )
            return self.dead[url]
        self.answers[row] = choice
        self.progress(len(self.answers))
        return ""

    async def _answers(self, client: httpx.AsyncClient, url: str) -> bool:
        try:
            response = await client.get(url + "/health", timeout=CONNECT_SECONDS)
        except httpx.TransportError:
            return False
        return response.is_success


@dataclass
class _Counter:
    count: int
