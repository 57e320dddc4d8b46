"""The models of a step: policy, reference, the critic of estimators that need one; and what they say of its tokens."""

from dataclasses import dataclass, replace

from storage.artifact import Artifact, Part
from tasks.config import Experiment
from tasks.core.seeds import derive_seed
from tasks.critic import first_critic
from tasks.signals import OF_POLICY, needs_critic, signals, wanted_signals
from tasks.stage import Place, Run


@dataclass(frozen=True)
class Models:
    """What a step starts from: artifacts that hold the policy, the critic (if there is one) and the optimisers."""

    policy: Artifact
    reference: Artifact
    """The policy before the first step: what the KL term compares with."""
    critic: Artifact | None = None
    optimizer: Artifact | None = None
    base: Artifact | None = None
    """The policy that low-rank adapters are added to, while they are what learns."""
    adapter: Artifact | None = None

    @property
    def parts(self) -> dict[str, Part | None]:
        """What training goes on from, as it calls them."""
        folders = {"optimizer": "optimizer", "critic": "critic", "base": "checkpoint", "adapter": "adapter"}
        held = {name: getattr(self, name) for name in folders}
        parts = {name: artifact.part(folders[name]) if artifact else None for name, artifact in held.items()}
        return {"policy": self.policy.part("checkpoint"), **parts}

    def after(self, trained: Artifact) -> "Models":
        """What the next step starts from."""
        return replace(
            self,
            policy=trained,
            optimizer=trained,
            critic=trained if self.critic else None,
            adapter=trained if self.base else None,
        )


def with_critic(run: Run, experiment: Experiment, models: Models, step: int) -> Models:
    """With a critic exactly if the estimator needs one; the first is made from the policy that it begins with."""
    if not needs_critic(experiment):
        return replace(models, critic=None)
    if models.critic is not None:
        return models
    made = first_critic(
        run.at(step - 1),
        policy=models.policy.part("checkpoint"),
        backbone=experiment.critic.backbone,
        seed=derive_seed(experiment.seed, "critic"),
    )
    return replace(models, critic=made)


def with_base(experiment: Experiment, models: Models) -> Models:
    """With a base exactly if adapters are trained: the policy that they begin with."""
    if not experiment.train.lora_rank:
        return replace(models, base=None, adapter=None)
    return models if models.base is not None else replace(models, base=models.policy)


def signals_of_step(place: Place, experiment: Experiment, models: Models, asked: Part, sampled: Part) -> Part | None:
    """What the step needs to know of its rollouts from models, with those models alone; None if it is nothing."""
    wanted = wanted_signals(experiment)
    if not wanted:
        return None
    is_shared = "values" in wanted and experiment.critic.backbone == "shared"
    return signals(
        place,
        wanted=wanted,
        policy=models.policy.part("checkpoint") if is_shared or set(wanted) & set(OF_POLICY) else None,
        reference=models.reference.part("checkpoint") if "reference_logprobs" in wanted else None,
        critic=models.critic.part("critic") if models.critic is not None and "values" in wanted else None,
        prompts=asked,
        rollouts=sampled,
        temperature=experiment.sampler.temperature,
        top_p=experiment.sampler.top_p if "kept_mass" in wanted else 1.0,
        precision=experiment.train.precision,
    ).part("signals")
