"""Every table and every column, declared once: Arrow type, unit or shape, and one sentence.

The Parquet writer, the content digest, the views of the catalogue and the listing of `tempo sql` are made from here.
Keys that say where a row belongs (run, step, purpose, label) are not stored in the files: an artifact can serve
several runs, so the catalogue attaches them from the commit log (see catalog.py).
"""

from storage.sampling_schema import (
    DROPPED_PROMPTS,
    GENERATIONS,
    GROUP_ID,
    PROMPT_ID,
    PROMPTS,
    ROLLOUT_ID,
    ROLLOUTS,
    SHARED_PROMPTS,
    WEIGHT_SYNCS,
)
from storage.scoring_schema import SCORE_PARTS, SCORE_PASSES, SCORE_STATUSES, SCORES, VERDICTS
from storage.table import FLAG, FLAGS, FLOAT64, FLOATS, INT32, INT64, TEXT, TOKENS, Column, Table
from storage.table import column as _c

__all__ = ["FLAGS", "FLOATS", "LINK_COLUMNS", "SCHEMA_VERSION", "TABLES", "TOKENS", "Column", "Table"]

SCHEMA_VERSION = 5

LINK_COLUMNS = (
    _c("run", TEXT, "The run that made or used the row (the experiment's `run` key)."),
    _c("step", INT32, "Iteration of the loop, from 1; 0 is before the first one (prompts, warm start, first scores)."),
    _c("purpose", TEXT, "'train'; 'eval' for a benchmark; 'recredit' for credit added later to stored rollouts."),
    _c(
        "label",
        TEXT,
        "What tells rows of one step and purpose apart: benchmark and decoding; a recredit's settings; ''.",
    ),
)
"""Columns that every view has in front, attached by the catalogue."""

PREFIX_NODES = Table(
    name="prefix_nodes",
    row="one node of a group's path-compressed prefix tree",
    key=("group_id", "node"),
    columns=(
        GROUP_ID,
        _c("node", INT32, "Number of the node in its group; 0 is the root, the prompt itself."),
        _c("parent", INT32, "Parent node; NULL at the root.", nullable=True),
        _c("depth", INT32, "Tokens from the end of the prompt to the end of this node's edge."),
        _c("token_ids", TOKENS, "Tokens of the edge from the parent to this node; empty at the root."),
        _c("num_completions", INT32, "|D(s)|: completions of the group that start with this prefix."),
        _c("value", FLOAT64, "V(s): mean reward of those completions."),
        _c("is_branch", FLAG, "Two or more different tokens follow."),
    ),
)

ADVANTAGES = Table(
    name="advantages",
    row="one completion credited by one estimator version",
    key=("rollout_id", "estimator", "estimator_version"),
    columns=(
        ROLLOUT_ID,
        GROUP_ID,
        _c("estimator", TEXT, "Name of the estimator."),
        _c("estimator_version", INT32, "Version of the credit stage that computed it."),
        _c("reward", FLOAT64, "Reward used."),
        _c("group_mean", FLOAT64, "Mean reward of the group: V(root)."),
        _c("group_std", FLOAT64, "Standard deviation of the group's rewards (ddof = 1; 0 for one completion)."),
        _c("base_advantage", FLOAT64, "Advantage that every token of the completion shares."),
        _c("td_weight", FLOAT64, "Advantage of a token = base_advantage + td_weight * td of the token."),
        _c("td_positions", TOKENS, "Positions (from 0) of the branch tokens whose td is not 0."),
        _c("td_values", FLOATS, "td there: V(s_{t+1}) - V(s_t), in units of reward; tempo_loo's own for tempo_loo."),
        _c("leaf_node", INT32, "prefix_nodes.node at which the completion ends."),
        _c("token_advantages", FLOATS, "[T] only for estimators that are dense; else NULL.", nullable=True),
        _c("token_returns", FLOATS, "[T] the critic's targets (ppo): advantage + value.", nullable=True, since=3),
        _c(
            "num_trained_tokens", INT32, "Tokens that are trained on: T, or those of loss_mask.", nullable=True, since=3
        ),
        _c("num_branch_tokens", INT32, "Tokens at which fewer completions go on than before.", nullable=True, since=3),
        _c("divergence", INT32, "Tokens before the group's first branch token; NULL: none.", nullable=True, since=3),
    ),
)

UPDATES = Table(
    name="updates",
    row="one optimiser step",
    key=("update",),
    columns=(
        _c("update", INT32, "Number of the update within its stage, from 0."),
        _c("phase", TEXT, "'warm_start', 'critic_warmup' (only the critic learns) or 'training'."),
        _c("loss", FLOAT64, "Loss that was differentiated."),
        _c("grad_norm", FLOAT64, "Euclidean norm of the gradient before clipping."),
        _c("learning_rate", FLOAT64, "Learning rate of this update."),
        _c("num_completions", INT32, "Completions in the mini-batch."),
        _c("num_tokens", INT64, "Completion tokens in the mini-batch: the loss's denominator for token_mean."),
        _c("entropy", FLOAT64, "Mean entropy of the policy's next-token distribution, in nats.", nullable=True),
        _c("kl", FLOAT64, "Mean k3 estimate of KL(sampler || trainer), in nats.", nullable=True),
        _c("reference_kl", FLOAT64, "Mean KL estimate to the reference, in nats.", nullable=True, since=3),
        _c("importance_weight", FLOAT64, "Mean truncated importance weight.", nullable=True, since=3),
        _c("importance_capped", FLOAT64, "Share of tokens whose weight met the cap.", nullable=True, since=3),
        _c("clip_fraction_low", FLOAT64, "Share of tokens clipped at 1 - clip_low.", nullable=True),
        _c("clip_fraction_high", FLOAT64, "Share of tokens clipped at 1 + clip_high.", nullable=True),
        _c("clip_fraction_dual", FLOAT64, "Share of tokens held by the dual clip.", nullable=True),
        _c("ratio_min", FLOAT64, "Smallest importance ratio trainer/sampler.", nullable=True),
        _c("ratio_p05", FLOAT64, "5 % quantile of the importance ratio.", nullable=True),
        _c("ratio_p50", FLOAT64, "Median importance ratio.", nullable=True),
        _c("ratio_p95", FLOAT64, "95 % quantile of the importance ratio.", nullable=True),
        _c("ratio_max", FLOAT64, "Largest importance ratio.", nullable=True),
        _c("mismatch_min", FLOAT64, "Smallest trainer - log kept mass - sampler logprob.", nullable=True, since=4),
        _c("mismatch_p05", FLOAT64, "5 % quantile of that difference, in nats.", nullable=True, since=4),
        _c("mismatch_p50", FLOAT64, "Median of that difference.", nullable=True, since=4),
        _c("mismatch_p95", FLOAT64, "95 % quantile of that difference.", nullable=True, since=4),
        _c("mismatch_max", FLOAT64, "Largest such difference.", nullable=True, since=4),
        _c("mismatch_kl", FLOAT64, "k3 of KL(sampler || trainer) from it, in nats.", nullable=True, since=4),
        _c("kept_mass", FLOAT64, "Mean mass of the trainer's nucleus; NULL: top_p is 1.", nullable=True, since=4),
        _c("value_loss", FLOAT64, "The critic's clipped value loss; NULL without a critic.", nullable=True, since=3),
        _c("value_clip_fraction", FLOAT64, "Share of tokens whose value was clipped.", nullable=True, since=3),
        _c("explained_variance", FLOAT64, "1 - Var(return - value) / Var(return).", nullable=True, since=3),
        _c("critic_grad_norm", FLOAT64, "Norm of the critic's gradient before clipping.", nullable=True, since=3),
        _c("seconds", FLOAT64, "Time of the update, in seconds.", is_measurement=True),
    ),
)

SIGNALS = Table(
    name="signals",
    row="one completion with what models say of its tokens; a signal that nothing asked for is NULL",
    key=("rollout_id",),
    since=3,
    columns=(
        ROLLOUT_ID,
        GROUP_ID,
        _c("trainer_logprobs", FLOATS, "[T] log-probability under the trainer's own engine.", nullable=True),
        _c("entropies", FLOATS, "[T] entropy of the distribution that drew the token, in nats.", nullable=True),
        _c("kept_mass", FLOATS, "[T] mass of the trainer's nucleus (top_p < 1).", nullable=True, since=4),
        _c("reference_logprobs", FLOATS, "[T] log-probability under the reference policy.", nullable=True),
        _c("values", FLOATS, "[T] V(s_t): the critic's value before the token, in units of reward.", nullable=True),
    ),
)

UPDATE_GROUPS = Table(
    name="update_groups",
    row="one group taken by one optimiser step of training",
    key=("update", "group_id"),
    since=2,
    columns=(
        _c("update", INT32, "Number of the update within its stage, as in updates."),
        GROUP_ID,
        _c("num_completions", INT32, "Credited completions of the group, all in this update."),
    ),
)

POLICIES = Table(
    name="policies",
    row="one policy",
    key=("policy",),
    columns=(
        _c("policy", TEXT, "First 16 digits of the fingerprint."),
        _c("parent", TEXT, "Policy it was trained from (itself if only the critic learned); or NULL.", nullable=True),
        _c("fingerprint", TEXT, "Digest of weights, model configuration and tokenizer."),
        _c("origin", TEXT, "Stage that made it."),
        _c("num_parameters", INT64, "Trainable parameters."),
        _c("checkpoint", TEXT, "Folder of the checkpoint, below the data root.", is_measurement=True),
    ),
)

DEMONSTRATIONS = Table(
    name="demonstrations",
    row="one completion to imitate in the warm start",
    key=("prompt_id", "index"),
    columns=(
        PROMPT_ID,
        _c("index", INT32, "Number of the demonstration of its prompt, from 0."),
        _c("text", TEXT, "The completion."),
        _c("token_ids", TOKENS, "Its tokens, the end-of-sequence token included."),
    ),
)

VOCABULARY = Table(
    name="vocabulary",
    row="one token of the policy's tokenizer",
    key=("token_id",),
    columns=(
        _c("token_id", INT32, "Token."),
        _c("text", TEXT, "What the token decodes to on its own."),
    ),
)

TABLES = {
    table.name: table
    for table in (
        PROMPTS, DROPPED_PROMPTS, SHARED_PROMPTS, ROLLOUTS, GENERATIONS, WEIGHT_SYNCS, VERDICTS, PREFIX_NODES,
        SIGNALS, ADVANTAGES, UPDATES, UPDATE_GROUPS, POLICIES, SCORES, SCORE_PARTS, SCORE_PASSES, SCORE_STATUSES,
        DEMONSTRATIONS, VOCABULARY,
    )
}  # fmt: skip
