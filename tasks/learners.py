"""What training teaches: the policy and, where the estimator needs one, the critic, each with its optimiser."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from storage.artifact import Part
from tasks.config import CriticConfig, TrainConfig
from tasks.core.schedule import learning_rate_factor
from tasks.place import Context

if TYPE_CHECKING:
    import torch

    from tasks.core.objective import Objective
    from tasks.engines.batch import Batch
    from tasks.engines.critic import CriticTrainer
    from tasks.engines.policy import Policy


class Learners:
    """The policy with its optimiser and, where there is one, the critic with its own: loaded, updated, saved."""

    def __init__(
        self,
        policy: "Policy",
        critic: Part | None,
        config: TrainConfig,
        critic_config: CriticConfig | None,
        objective: "Objective",
        adapter: Part | None = None,
    ) -> None:
        from tasks.engines.lora import add_adapters
        from tasks.engines.optimizer import make_optimizer

        self.policy, self.config, self.objective = policy, config, objective
        self.adapted = None
        if config.lora_rank:
            folder = adapter.path if adapter is not None else None
            self.adapted = add_adapters(policy, rank=config.lora_rank, alpha=config.lora_alpha, folder=folder)
            policy.model = self.adapted.get_base_model()
        self.adam, self.names = make_optimizer(
            policy.model,
            **{name: getattr(config, name) for name in ("learning_rate", "weight_decay", "decays")},
            betas=(config.beta1, config.beta2),
        )
        self.critic = None
        if critic is not None:
            assert critic_config is not None
            self.critic = _critic_trainer(critic, policy.device, critic_config, config)

    def load(self, folder: Path) -> None:
        """Go on with stored optimisers."""
        from tasks.engines.optimizer import load_optimizer

        load_optimizer(self.adam, self.names, folder)
        if self.critic is not None:
            self.critic.load(folder)

    def update(self, batch: "Batch", is_critic_warmup: bool) -> dict[str, Any]:
        """One optimiser update of each on a mini-batch; returns the row of the updates table."""
        from tasks.engines.optimizer import set_learning_rate, updates_done
        from tasks.engines.passes import training_passes
        from tasks.engines.trainer import policy_update

        if self.critic is not None and is_critic_warmup:
            return self.critic.warm_up(self.policy, batch)
        term, figures = None, {}
        if self.critic is not None and self.critic.critic.is_shared:
            term = self.critic.term(batch)
        elif self.critic is not None:
            figures = self.critic.update(self.policy, batch)
        set_learning_rate(self.adam, learning_rate(self.config, updates_done(self.adam)))
        passes = ("micro_batch_tokens", "max_grad_norm", "layout", "precision")
        limits = {name: getattr(self.config, name) for name in passes}
        with training_passes(self.policy.model, gradient_checkpointing=self.config.gradient_checkpointing):
            row = policy_update(self.policy, self.adam, batch, self.objective, **limits, value_term=term)
        if term is not None and self.critic is not None:
            figures = self.critic.step(term)
        return row | figures

    def save(self, context: Context) -> None:
        """The parts `optimizer` and, where there are such, `critic` and `adapter`; the policy then has them merged."""
        from tasks.engines.critic import save_critic
        from tasks.engines.lora import merge_adapters, save_adapters
        from tasks.engines.optimizer import save_optimizer

        folder = context.staging.path / "optimizer"
        save_optimizer(self.adam, self.names, folder)
        if self.critic is not None:
            self.critic.save(folder)
            save_critic(self.critic.critic, context.staging.path / "critic")
            context.staging.add_folder("critic", context.staging.path / "critic")
        context.staging.add_folder("optimizer", folder)
        if self.adapted is not None:
            save_adapters(self.adapted, context.staging.path / "adapter")
            context.staging.add_folder("adapter", context.staging.path / "adapter")
            self.policy.model = merge_adapters(self.adapted)


def learning_rate(config: TrainConfig, update: int) -> float:
    """Of an update of the run, counted from 0."""
    return config.learning_rate * learning_rate_factor(
        config.schedule, update, warmup_updates=config.warmup_updates, total_updates=config.schedule_updates
    )


def _critic_trainer(critic: Part, device: "torch.device", config: CriticConfig, train: TrainConfig) -> "CriticTrainer":
    from tasks.engines.critic import CriticTrainer, load_critic
    from tasks.engines.optimizer import make_optimizer

    held = load_critic(critic.path, device)
    rates = {"learning_rate": config.learning_rate, "weight_decay": config.weight_decay}
    adam, names = make_optimizer(held.module, **rates, betas=(train.beta1, train.beta2), decays=train.decays)
    return CriticTrainer(
        critic=held,
        optimizer=adam,
        names=names,
        **{name: getattr(config, name) for name in ("value_clip", "value_coefficient", "max_grad_norm")},
        **{
            name: getattr(train, name)
            for name in ("micro_batch_tokens", "layout", "precision", "gradient_checkpointing")
        },
    )
