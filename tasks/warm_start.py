"""Stage `warm_start`: supervised fine-tuning of a policy on (prompt, completion) pairs."""

import numpy as np

from storage.artifact import Part
from storage.parquet import flat_list
from tasks.config import WarmStartConfig
from tasks.core.schedule import learning_rate_factor
from tasks.policy import add_policy
from tasks.stage import Context, Summary, stage
from tasks.training import update_columns

MICRO_BATCH_TOKENS = 4096
WEIGHT_DECAY, BETA1 = 0.01, 0.9
"""AdamW's defaults in torch."""


@stage("warm_start", version=2)
def warm_start(
    context: Context,
    *,
    policy: Part,
    prompts: Part,
    demonstrations: Part,
    config: WarmStartConfig,
    max_grad_norm: float,
    seed: int,
) -> Summary:
    """AdamW on the mean negative log-likelihood of completion tokens; batches are slices of seeded permutations."""
    from tasks.engines import optimizer as optimizers
    from tasks.engines import policy as engine
    from tasks.engines import trainer

    trained = engine.load_policy(policy.path, policy.digest, engine.choose_device(context.device))
    engine.forget_policy()
    engine.configure_cpu(context.threads, trained.num_parameters)
    prompt_ids, prompt_tokens = _pairs(prompts, demonstrations)
    completions = _rows(demonstrations, "token_ids")
    optimizer, _ = optimizers.make_optimizer(
        trained.model, learning_rate=config.learning_rate, weight_decay=WEIGHT_DECAY, betas=(BETA1, config.beta2)
    )
    trained.model.train()
    rows = []
    for update, batch in enumerate(_batches(len(completions), config, seed)):
        factor = learning_rate_factor(
            "cosine", update, warmup_updates=config.warmup_updates, total_updates=config.updates
        )
        optimizers.set_learning_rate(optimizer, config.learning_rate * factor)
        rows.append(
            trainer.supervised_update(
                trained,
                optimizer,
                [prompt_tokens[prompt_ids[i]] for i in batch],
                [completions[i] for i in batch],
                micro_batch_tokens=MICRO_BATCH_TOKENS,
                max_grad_norm=max_grad_norm,
            )
        )
        context.progress(update + 1, config.updates)
    trained.model.eval()
    trained.digest = add_policy(context, trained, parent=policy.digest, origin="warm_start")
    context.staging.add_table("updates", update_columns(rows, "warm_start"))
    engine.keep_policy(trained)
    return {"loss": round(rows[-1]["loss"], 4), "tokens": sum(row["num_tokens"] for row in rows)}


def _rows(part: Part, column: str) -> list[np.ndarray]:
    values, offsets = flat_list(part.read([column]).column(column))
    return np.split(values, offsets[1:-1])


def _pairs(prompts: Part, demonstrations: Part) -> tuple[list[str], dict[str, np.ndarray]]:
    """prompt_id of every demonstration, and the tokens of every prompt."""
    ids = prompts.read(["prompt_id"]).column("prompt_id").to_pylist()
    tokens = dict(zip(ids, _rows(prompts, "prompt_token_ids"), strict=True))
    return demonstrations.read(["prompt_id"]).column("prompt_id").to_pylist(), tokens


def _batches(num_pairs: int, config: WarmStartConfig, seed: int) -> list[np.ndarray]:
    """Indices of each update's pairs: consecutive slices of one permutation per epoch."""
    rng = np.random.default_rng(seed)
    needed, order = config.updates * config.batch_size, np.zeros(0, dtype=np.int64)
    while order.size < needed:
        order = np.concatenate([order, rng.permutation(num_pairs)])
    return np.split(order[:needed], config.updates)
