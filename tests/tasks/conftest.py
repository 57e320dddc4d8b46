"""A loop of stages in a data root, as flows/train.py chains them, on the built-in task with an untrained policy.

6 prompts x 4 completions x 12 tokens. The verifiers are fake: they judge the text alone, so that an untrained policy
earns rewards, and identical completions identical ones.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from storage.artifact import Artifact, Part, Store
from tasks.config import (
    ArithmeticConfig,
    CreditConfig,
    CriticConfig,
    Experiment,
    SamplerConfig,
    TrainConfig,
    WarmStartConfig,
)
from tasks.core.verdict import Judgement, Status
from tasks.core.verifiers import VERIFIERS
from tasks.credit import credit
from tasks.datasets import dataset_source
from tasks.demonstrations import demonstrations
from tasks.evaluation import evaluation
from tasks.generation import Selection, generation
from tasks.policy import first_policy, policy_source
from tasks.prompts import prompts
from tasks.stage import Run
from tasks.training import training
from tasks.verification import verification
from tasks.verification_config import VerificationConfig
from tasks.warm_start import warm_start

Row = dict[str, Any]
NUM_GROUPS, GROUP_SIZE, MAX_TOKENS = 6, 4, 12
EXPERIMENT = Experiment(
    run="test",
    prompts_per_step=NUM_GROUPS,
    group_size=GROUP_SIZE,
    arithmetic=ArithmeticConfig(num_train=20, num_test=8, min_terms=2, max_terms=3),
    sampler=SamplerConfig(max_tokens=MAX_TOKENS),
    warm_start=WarmStartConfig(updates=2, batch_size=16, warmup_updates=0),
    train=TrainConfig(learning_rate=1e-3, updates_per_step=2),
)


class FakeVerifier:
    """Judges by the text alone: the sum of its characters modulo `modulus`; a remainder in `failures` raises."""

    version = 1
    warning = ""

    def __init__(self, name: str, modulus: int = 2, failures: dict[int, type[BaseException]] | None = None) -> None:
        self.name, self.modulus, self.failures = name, modulus, failures or {}

    def judge(self, completion: str, answer: str, *, is_truncated: bool, options: Sequence[str] = ()) -> Judgement:
        remainder = sum(map(ord, completion)) % self.modulus
        if remainder in self.failures:
            raise self.failures[remainder]("on purpose")
        return Judgement(status=Status.CORRECT if remainder else Status.WRONG, extracted_answer=str(remainder))

    def check_answer(self, answer: str, options: Sequence[str] = ()) -> None:
        """Every answer will do."""


PARITY = FakeVerifier("parity")
MOODY = FakeVerifier("moody", modulus=5, failures={2: ZeroDivisionError, 3: MemoryError, 4: RecursionError})
BROKEN = FakeVerifier("broken", failures={0: OSError, 1: OSError})


@dataclasses.dataclass
class Loop:
    """A data root, and the artifacts of what ran in it by a name of this test's own."""

    root: Path
    threads: int = 0
    batch_tokens: int = 65536
    between: Callable[[], object] = lambda: None
    """Called before each stage."""
    experiment: Experiment = EXPERIMENT

    def __post_init__(self) -> None:
        store = Store(self.root)
        store.open_for_writing()
        run = Run(name="test", attempt="a", store=store, threads=self.threads, device="cpu")
        self.place = run.at(1)
        self.artifacts: dict[str, Artifact] = {}

    def __call__(self, name: str, stage: Callable[..., Artifact], **identity: Any) -> Artifact:
        self.between()
        self.artifacts[name] = stage(self.place, **identity)
        return self.artifacts[name]

    def part(self, artifact: str, part: str) -> Part:
        return self.artifacts[artifact].part(part)

    def rows(self, artifact: str, table: str) -> list[Row]:
        rows: list[Row] = self.part(artifact, table).read().to_pylist()
        return rows

    @property
    def digests(self) -> dict[str, str]:
        return {
            f"{name}/{part}": artifact.part(part).digest
            for name, artifact in self.artifacts.items()
            for part in artifact.manifest["parts"]
        }

    def start(self, experiment: Experiment = EXPERIMENT) -> None:
        self("policy", first_policy, source=policy_source(experiment))
        self(
            "prompts",
            prompts,
            source=dataset_source(experiment, "arithmetic", is_benchmark=False),
            tokenizer=self.part("policy", "tokenizer"),
            config=experiment.prompts,
            verifier="parity",
        )

    def sample(
        self, name: str, policy: str, *, step: int | None, asked: str = "prompts", decoding: str = "sampled"
    ) -> None:
        self(
            name,
            generation,
            policy=self.part(policy, "checkpoint"),
            prompts=self.part(asked, "prompts"),
            selection=Selection(step=step, prompts_per_step=NUM_GROUPS if step else None, seed=0),
            sampler=dataclasses.replace(EXPERIMENT.sampler, batch_tokens=self.batch_tokens),
            num_samples=GROUP_SIZE,
            decoding=decoding,
            seed=17,
        )

    def judge(self, name: str, rollouts: str, verifier: str = "parity", asked: str = "prompts") -> None:
        self(
            name,
            verification,
            rollouts=self.part(rollouts, "rollouts"),
            prompts=self.part(asked, "prompts"),
            verifier=verifier,
            verifier_version=VERIFIERS[verifier].version,
            config=VerificationConfig(),
        )

    def credit(
        self, name: str, rollouts: str, verdicts: str, estimator: str = "tempo", *, signals: str | None = None
    ) -> None:
        self(
            name,
            credit,
            rollouts=self.part(rollouts, "rollouts"),
            verdicts=self.part(verdicts, "verdicts"),
            signals=self.part(signals, "signals") if signals else None,
            estimator=estimator,
            config=CreditConfig(),
        )

    def train(
        self,
        name: str,
        policy: str,
        rollouts: str,
        advantages: str,
        *,
        optimizer: str | None = None,
        updates: int = 2,
        critic: str | None = None,
        signals: str | None = None,
        critic_config: CriticConfig | None = None,
        is_critic_warmup: bool = False,
        base: str | None = None,
        adapter: str | None = None,
        **keys: Any,
    ) -> None:
        """`keys`: of the training configuration."""
        self(
            name,
            training,
            policy=self.part(policy, "checkpoint"),
            optimizer=self.part(optimizer, "optimizer") if optimizer else None,
            critic=self.part(critic, "critic") if critic else None,
            base=self.part(base, "checkpoint") if base else None,
            adapter=self.part(adapter, "adapter") if adapter else None,
            prompts=self.part("prompts", "prompts"),
            rollouts=self.part(rollouts, "rollouts"),
            advantages=self.part(advantages, "advantages"),
            signals=self.part(signals, "signals") if signals else None,
            critic_config=critic_config,
            is_critic_warmup=is_critic_warmup,
            config=dataclasses.replace(EXPERIMENT.train, updates_per_step=updates, **keys),
            temperature=1.0,
            max_tokens=MAX_TOKENS,
            seed=23,
        )

    def all_stages(self) -> "Loop":
        """Two steps after a warm start, and the score of the last policy."""
        self.start()
        self(
            "demonstrations",
            demonstrations,
            source=dataset_source(EXPERIMENT, "arithmetic", is_benchmark=False),
            prompts=self.part("prompts", "prompts"),
            tokenizer=self.part("policy", "tokenizer"),
            seed=5,
        )
        self(
            "warm start",
            warm_start,
            policy=self.part("policy", "checkpoint"),
            prompts=self.part("prompts", "prompts"),
            demonstrations=self.part("demonstrations", "demonstrations"),
            config=EXPERIMENT.warm_start,
            max_grad_norm=1.0,
            seed=3,
        )
        for step, policy in ((1, "warm start"), (2, "training 1")):
            self.sample(f"generation {step}", policy, step=step)
            self.judge(f"verification {step}", f"generation {step}")
            self.credit(f"credit {step}", f"generation {step}", f"verification {step}")
            self.train(
                f"training {step}",
                policy,
                f"generation {step}",
                f"credit {step}",
                optimizer="training 1" if step == 2 else None,
            )
        self.evaluate("evaluation", "training 2")
        return self

    def evaluate(self, name: str, policy: str, verifier: str = "parity", decoding: str = "sampled") -> None:
        self(
            f"{name} prompts",
            prompts,
            source=dataset_source(EXPERIMENT, "arithmetic", is_benchmark=True),
            tokenizer=self.part("policy", "tokenizer"),
            config=EXPERIMENT.prompts,
            verifier=verifier,
        )
        self.sample(f"{name} rollouts", policy, step=None, asked=f"{name} prompts", decoding=decoding)
        self.judge(f"{name} verdicts", f"{name} rollouts", verifier, asked=f"{name} prompts")
        self(
            name,
            evaluation,
            benchmark="arithmetic",
            prompts=self.part(f"{name} prompts", "prompts"),
            rollouts=self.part(f"{name} rollouts", "rollouts"),
            verdicts=self.part(f"{name} verdicts", "verdicts"),
        )


@pytest.fixture(scope="module")
def make_loop() -> Iterator[type[Loop]]:
    """The class, while the fake verifiers are registered; what the stages set for the process is put back."""
    import torch

    from tasks.engines import policy as engine

    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        for verifier in (PARITY, MOODY, BROKEN):
            patch.setitem(VERIFIERS, verifier.name, verifier)
        engine.forget_policy()
        yield Loop
        engine.forget_policy()
    torch.set_num_threads(threads)
    torch.set_flush_denormal(False)


@pytest.fixture(scope="module")
def loop(make_loop: type[Loop], tmp_path_factory: pytest.TempPathFactory) -> Loop:
    """All stages, run once for the module."""
    return make_loop(tmp_path_factory.mktemp("loop")).all_stages()


@pytest.fixture
def fresh(make_loop: type[Loop], tmp_path: Path) -> Loop:
    """A data root with a policy and prompts."""
    fresh = make_loop(tmp_path / "data")
    fresh.start()
    return fresh
