"""What training teaches: the policy and, where the estimator needs one, the critic, each with its optimiser."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from storage.artifact import Part
from tasks.config import CriticConfig, TrainConfig
from tasks.place import Context

if TYPE_CHECKING:
    import torch

    from tasks.engines.critic import CriticTrainer
    from tasks.engines.policy import Policy
    from tasks.engines.trainer import Batch, Objective


class Learners:
    """The policy with its optimiser and, where there is one, the critic with its own: loaded, updated, saved."""

    def __init__(
        self,
        policy: "Policy",
        critic: Part | None,
        config: TrainConfig,
        critic_config: CriticConfig | None,
        objective: "Objective",
    ) -> None:
        from tasks.engines import trainer

        self.policy, self.objective = policy, objective
        self.limits = {"micro_batch_tokens": config.micro_batch_tokens, "max_grad_norm": config.max_grad_norm}
        betas = (config.beta1, config.beta2)
        self.adam, self.names = trainer.make_optimizer(
            policy, learning_rate=config.learning_rate, weight_decay=config.weight_decay, betas=betas
        )
        self.critic = None
        if critic is not None:
            assert critic_config is not None
            self.critic = _critic_trainer(critic, policy.device, critic_config, config)

    def load(self, folder: Path) -> None:
        from tasks.engines import policy as engine

        engine.load_optimizer(self.adam, self.names, folder)
        if self.critic is not None:
            self.critic.load(folder)

    def update(self, batch: "Batch", is_critic_warmup: bool) -> dict[str, Any]:
        """One optimiser update of each on a mini-batch; returns the row of the updates table."""
        from tasks.engines.trainer import policy_update

        if self.critic is not None and is_critic_warmup:
            return self.critic.warm_up(self.policy, batch)
        term, figures = None, {}
        if self.critic is not None and self.critic.critic.is_shared:
            term = self.critic.term(batch)
        elif self.critic is not None:
            figures = self.critic.update(self.policy, batch)
        self.policy.model.train()
        row = policy_update(self.policy, self.adam, batch, self.objective, **self.limits, value_term=term)
        self.policy.model.eval()
        if term is not None and self.critic is not None:
            figures = self.critic.step(term)
        return row | figures

    def save(self, context: Context) -> None:
        """The parts `optimizer` and, with a critic, `critic`."""
        from tasks.engines import policy as engine
        from tasks.engines.critic import save_critic

        folder = context.staging.path / "optimizer"
        engine.save_optimizer(self.adam, self.names, folder)
        if self.critic is not None:
            self.critic.save(folder)
            save_critic(self.critic.critic, context.staging.path / "critic")
            context.staging.add_folder("critic", context.staging.path / "critic")
        context.staging.add_folder("optimizer", folder)


def _critic_trainer(critic: Part, device: "torch.device", config: CriticConfig, train: TrainConfig) -> "CriticTrainer":
    from tasks.engines import critic as machine

    held = machine.load_critic(critic.path, device)
    return machine.CriticTrainer(
        critic=held,
        optimizer=machine.make_critic_optimizer(
            held,
            learning_rate=config.learning_rate,
            weight_decay=config.weight_decay,
            betas=(train.beta1, train.beta2),
        ),
        value_clip=config.value_clip,
        value_coefficient=config.value_coefficient,
        max_grad_norm=config.max_grad_norm,
        micro_batch_tokens=train.micro_batch_tokens,
    )
