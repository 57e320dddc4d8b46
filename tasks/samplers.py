"""The samplers of a run: made when a stage first asks for one, and kept until the run ends."""

import os
from collections.abc import Callable
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.config import SamplerConfig

if TYPE_CHECKING:
    from tasks.engines.policy import Policy
    from tasks.engines.sampler import Sampler
    from tasks.engines.vllm_sampler import Fleet, VllmSampler
    from tasks.engines.weight_sync import WeightSync

PER_CALL = ("temperature", "top_p", "batch_tokens")
"""Keys of a sampler that one engine serves with any value."""


def check_sampler(config: SamplerConfig) -> None:
    """Raise ValueError where what the sampler needs is not there, before anything runs."""
    if config.engine == "vllm" and find_spec("vllm") is None:
        raise ValueError(
            'sampler.engine = "vllm" needs the package vllm, which is not installed: run `make setup-vllm` (CPU), or '
            "pip install -c constraints.txt -e '.[vllm]' (CUDA), or sample with sampler.engine=transformers"
        )
    shared = Path(config.vllm.shared_path)
    is_folder = shared.is_absolute() and shared.is_dir() and os.access(shared, os.W_OK | os.X_OK)
    if config.engine == "vllm-server" and not is_folder:
        raise ValueError(
            "sampler.vllm.shared_path: expected the absolute path of a folder that can be written to, got "
            f"{config.vllm.shared_path!r}; the servers must see it at the same path"
        )


class Samplers:
    """At most one sampler with engines of its own at a time; `close` ends them."""

    def __init__(
        self,
        *,
        folder: Path | None = None,
        max_prompt_tokens: int = 0,
        threads: int = 0,
        note: Callable[[str], Any] = print,
    ) -> None:
        self.folder, self.max_prompt_tokens, self.threads, self.note = folder, max_prompt_tokens, threads, note
        self._kept: VllmSampler | None = None
        self._settings: dict[str, Any] = {}

    def get(self, config: SamplerConfig, policy: "Policy", folder: Path) -> "tuple[Sampler, WeightSync | None]":
        """A sampler of the policy of the checkpoint `folder`, and the check of its weights where engines hold them."""
        if config.engine == "transformers":
            from tasks.engines.transformers_sampler import TransformersSampler

            return TransformersSampler(policy, batch_tokens=config.batch_tokens), None
        settings = {name: value for name, value in asdict(config).items() if name not in PER_CALL}
        if self._kept is None or self._settings != settings:
            from tasks.engines.vllm_sampler import VllmSampler

            self.close()
            longest = {"max_prompt_tokens": self.max_prompt_tokens, "note": self.note}
            self._kept, self._settings = VllmSampler(self._fleet(config), config, **longest), settings
        return self._kept, self._kept.use(policy, folder)

    @property
    def sync(self) -> "WeightSync | None":
        """The check of the weights that the kept engines hold."""
        return self._kept.held.sync if self._kept is not None and self._kept.held is not None else None

    def close(self) -> None:
        """End the engines that were started."""
        if self._kept is not None:
            self._kept.close()
        self._kept = None

    def _fleet(self, config: SamplerConfig) -> "Fleet":
        if config.engine == "vllm-server":
            from tasks.engines.vllm_server import ServerFleet

            return ServerFleet(config, note=self.note)
        from tasks.engines.vllm_fleet import EngineFleet

        assert self.folder is not None, "engines keep their log below the data root"
        return EngineFleet(config, threads=self.threads, log=self.folder / "vllm.log")
