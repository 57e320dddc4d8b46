"""Sampling with vLLM: engines that live as long as the run, given each new policy's weights in place, and checked."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from tasks.config import SamplerConfig
from tasks.engines.export import exported
from tasks.engines.policy import Policy
from tasks.engines.sampler import Samples, SamplingParams, completion_limits
from tasks.engines.vllm_process import EngineDied
from tasks.engines.weight_sync import TOLERANCES, WeightSync, probe_batch, refuse_stale

T = TypeVar("T")


class EngineDiedAgain(RuntimeError):
    """vLLM died, was started again, and died again over the same work."""


class Fleet(Protocol):
    """Engines that hold the same weights. Every method raises EngineDied where one can no longer be used."""

    name: str
    export_folder: str
    """Where weights are handed over; '' for a temporary folder of this machine."""
    copies_weights: bool
    """Whether the engines cannot see the run's own files."""
    recovery: str
    """What is done when an engine has died."""
    second_death: str
    """What is said when it died over the same work again."""
    remedy: str

    def start(self, policy: Policy, export: Path, max_model_len: int) -> int:
        """Have the engines run; returns how many were started now, with the weights of `export`."""
        ...

    def wake(self) -> bool:
        """Have the engines ready to sample; whether they still hold the weights that were loaded last."""
        ...

    def load(self, export: Path, version: str) -> None:
        """Replace the weights in place and forget every cached prefix."""
        ...

    def logprobs(self, sequences: Sequence[NDArray[np.int32]]) -> dict[str, list[NDArray[np.float32]]]:
        """What each engine, by name, says of every token but the first: log p [T-1] at temperature 1."""
        ...

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
        """R / P completions of each prompt; `progress(done)` is called with completions."""
        ...

    def rest(self) -> None:
        """Give the GPU to others until the next call, if that was asked for and the platform can."""
        ...

    def close(self) -> None:
        """End what was started."""
        ...


@dataclass
class Held:
    """The policy whose weights the engines hold, its checkpoint, and the check that said so."""

    policy: Policy
    digest: str
    """The policy's when its weights were loaded: training changes the policy in memory."""
    folder: Path
    sync: WeightSync


class VllmSampler:
    """The `Sampler` of the policy given to `use`."""

    def __init__(
        self, fleet: Fleet, config: SamplerConfig, *, max_prompt_tokens: int, note: Callable[[str], Any]
    ) -> None:
        self.fleet, self.config, self.max_prompt_tokens, self.note = fleet, config, max_prompt_tokens, note
        self.name = fleet.name
        self.held: Held | None = None
        self.num_restarts = 0

    def use(self, policy: Policy, folder: Path) -> WeightSync:
        """Have the engines hold the policy of the committed checkpoint `folder`; the check of the weights they hold.

        Raises StaleWeights when they do not sample from it then, EngineDiedAgain, and ValueError for what vLLM refuses.
        """
        return self._restarting(lambda: self._use(policy, folder))

    def sample(
        self,
        prompts: Sequence[NDArray[np.int32]],
        *,
        num_samples: int,
        seeds_R: NDArray[np.int64],
        params: SamplingParams,
        progress: Callable[[int, int], Any] = lambda done, total: None,
    ) -> Samples:
        """See `Sampler.sample`."""
        assert self.held is not None, "`use` comes before `sample`"
        assert len(seeds_R) == len(prompts) * num_samples
        policy, folder = self.held.policy, self.held.folder
        limits_P = completion_limits(prompts, params.max_tokens, self._max_model_len(policy))

        def once() -> Samples:
            self._use(policy, folder)
            return self.fleet.sample(
                prompts,
                limits_P=limits_P,
                seeds_R=seeds_R,
                params=params,
                stop_token_ids=policy.eos_token_ids,
                progress=lambda done: progress(done, len(seeds_R)),
            )

        before = self.num_restarts
        samples = self._restarting(once)
        self.fleet.rest()
        return replace(samples, num_restarts=self.num_restarts - before)

    def close(self) -> None:
        """End the engines that were started."""
        self.fleet.close()
        self.held = None

    def _restarting(self, work: Callable[[], T]) -> T:
        """`work`, and once more with new engines if one of them died over it."""
        try:
            return work()
        except EngineDied as died:
            self.note(f"{died.what}. {self.fleet.recovery}, and what it was doing is done again")
            self.close()
            self.num_restarts += 1
            try:
                return work()
            except EngineDied as again:
                raise EngineDiedAgain(
                    f"{self.fleet.second_death}. The first time: {died}\nThe second time: {again}\nEverything before "
                    f"this generation is stored. {self.fleet.remedy}; then run the same command again"
                ) from None

    def _use(self, policy: Policy, folder: Path) -> WeightSync:
        held, self.held = self.held, None  # nothing is known to be held while weights move
        if held is not None and self.fleet.wake() and held.digest == policy.digest:
            sync = replace(held.sync, is_new=False)
        else:
            sync = self._synced(policy, folder, held.folder if held else None)
        self.held = Held(policy, policy.digest, folder, sync)
        return sync

    def _synced(self, policy: Policy, folder: Path, earlier: Path | None) -> WeightSync:
        """Hand the weights over and check what the engines say of the probe."""
        fleet, config, max_model_len = self.fleet, self.config, self._max_model_len(policy)
        times = [time.perf_counter()]
        with exported(policy, folder, fleet.export_folder, dtype=config.dtype, copies=fleet.copies_weights) as export:
            times.append(time.perf_counter())
            num_starts = fleet.start(policy, export, max_model_len)
            times.append(time.perf_counter())
            if not num_starts:  # they start with the weights of the export
                fleet.load(export, policy.digest)
            times.append(time.perf_counter())
        probes = probe_batch(int(policy.model.config.vocab_size), max_model_len)
        tolerance = config.vllm.max_sync_difference or TOLERANCES[config.dtype]
        gap = refuse_stale(policy, probes, fleet.logprobs(probes), tolerance=tolerance, earlier=earlier)
        times.append(time.perf_counter())
        export_seconds, start_seconds, reload_seconds, check_seconds = np.diff(times).tolist()
        return WeightSync(
            policy=policy.digest,
            engine=self.name,
            dtype=config.dtype,
            num_tokens=gap.size,
            max_difference=float(gap.max()),
            mean_difference=float(gap.mean()),
            tolerance=tolerance,
            is_new=True,
            num_starts=num_starts,
            export_seconds=export_seconds,
            start_seconds=start_seconds,
            reload_seconds=reload_seconds,
            check_seconds=check_seconds,
        )

    def _max_model_len(self, policy: Policy) -> int:
        """Tokens of prompt and completion that the engines make room for."""
        wanted = self.config.vllm.max_model_len or self.max_prompt_tokens + self.config.max_tokens
        return min(wanted, policy.context_length)
