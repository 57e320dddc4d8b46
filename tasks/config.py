"""The experiment: everything that decides what a run computes, as frozen dataclasses.

Fields marked NOT_IDENTITY say where or how fast, never what: they are left out of every stage's key. The defaults are
the paper's (arXiv 2509.18314) where it gives one; quickstart.toml and the other experiments override them.
"""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from storage.fingerprint import NOT_IDENTITY
from tasks.bounds import Bounds, Count, Fraction, NonNegative, Positive, PositiveFloat, Share
from tasks.verification_config import VerificationConfig
from tasks.vllm_config import VllmConfig

Estimator = Literal["tempo", "tempo_loo", "grpo", "dr_grpo", "rloo", "reinforce_pp", "hepo", "prm_weighted", "ppo"]
"""Names of tasks.core.estimators.ESTIMATORS, written out for the type checker; a test keeps them equal."""
Normalization = Literal["token_mean", "sequence_mean", "prompt_mean", "constant"]


@dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """How completions are drawn."""

    engine: Literal["transformers", "vllm", "vllm-server"] = "transformers"
    """Machine that samples: in this process; a vLLM that the run starts and keeps; `vllm serve` endpoints."""
    dtype: Literal["fp32", "bf16"] = "fp32"
    """Weights and activations of a vLLM; transformers samples in fp32, as it trains."""
    temperature: PositiveFloat = 1.0
    """Divides the logits before sampling. The paper: 1."""
    top_p: Share = 1.0
    """Nucleus mass; 1 keeps every token. Training below 1 needs train.importance_sampling. The paper: 1."""
    max_tokens: Positive = 2048
    """Most tokens of a completion, the end-of-sequence token included; fewer where the context ends before. The paper:
    2048."""
    batch_tokens: Positive = field(default=65536, metadata=NOT_IDENTITY)
    """Most tokens (prompt + max_tokens, summed over rows) sampled at once by transformers: bounds memory."""
    vllm: VllmConfig = field(default=VllmConfig(), metadata=NOT_IDENTITY)
    """Where and how fast vLLM samples."""


@dataclass(frozen=True, kw_only=True)
class PromptsConfig:
    """How rows of a dataset become prompts."""

    max_tokens: Positive = 1024
    """Most tokens of a rendered prompt. The paper: 1024."""
    overlong: Literal["refuse", "drop"] = "refuse"
    """What to do with longer ones: refuse the dataset, or drop them and say how many."""
    min_tokens: Positive = 1
    """Fewest tokens of a rendered prompt; shorter ones are dropped."""
    system: str = ""
    """System message before every prompt; empty: none (a chat template may bring its own)."""
    thinking: Literal["default", "on", "off"] = "default"
    """The chat template's switch `enable_thinking` (Qwen3): left alone, on or off."""
    few_shot: Count = 0
    """Solved examples before every prompt, the same ones for all (in MMLU, for all of a subject), drawn by a seed of
    their own from a split that the registry names; never the prompt's own row."""
    limit: Positive | None = None
    """Use only this many rows, drawn without replacement by the dataset's own seed; absent: all."""


@dataclass(frozen=True, kw_only=True)
class ArithmeticConfig:
    """The built-in task: chains of one-digit terms, evaluated from left to right modulo 10."""

    num_train: Positive = 4096
    """Training prompts."""
    num_test: Positive = 256
    """Held-out prompts; disjoint from the training prompts."""
    min_terms: Annotated[int, Bounds(at_least=2)] = 4
    """Fewest terms of a chain."""
    max_terms: Annotated[int, Bounds(at_least=2)] = 6
    """Most terms of a chain."""


@dataclass(frozen=True, kw_only=True)
class WarmStartConfig:
    """Supervised fine-tuning before the first step, on the dataset's (prompt, completion) pairs."""

    updates: Count = 0
    """Optimiser steps; 0 leaves the policy as it is."""
    batch_size: Positive = 96
    """Pairs per update."""
    learning_rate: PositiveFloat = 3e-3
    """Peak learning rate; falls to 0 along a cosine."""
    warmup_updates: Count = 30
    """Updates over which the learning rate rises to its peak; without them the tiny model learns half as fast."""
    beta2: Annotated[float, Bounds(at_least=0, at_most=0.99999)] = 0.98
    """AdamW's decay of the second moment; 0.98 (arXiv 1706.03762) suits a few hundred updates better than 0.999."""


@dataclass(frozen=True, kw_only=True)
class CreditConfig:
    """Switches of the advantage estimators (formulas: tasks/core/estimators.py)."""

    epsilon: PositiveFloat = 1e-6
    """Added to each standard deviation before a division. The TEMPO authors': 1e-6."""
    normalize: bool = True
    """Divide by the standard deviation of the group's rewards; false is Dr.GRPO's choice."""
    td_scale: NonNegative = 1.0
    """Factor of tempo's td term. The paper: 1."""
    td_clip: NonNegative = 0.0
    """tempo's td is clipped to +- this, in units of reward and before the scale; 0 clips nothing. The paper: 0."""
    min_support: Positive = 1
    """tempo's td counts only where at least so many completions share the prefix with the token. The paper: 1."""
    td_normalization: Literal["reward", "td"] = "reward"
    """What tempo divides td by: the std of the group's rewards (the paper), or of its td at the branch tokens
    that are trained on (credit.normalize or not)."""
    hepo_fraction: Share = 0.2
    """Share of the step's tokens that hepo credits: those of the highest entropy. Its paper (arXiv 2506.01939): 0.2."""
    gae_lambda: Fraction = 1.0
    """ppo's lambda (arXiv 1506.02438): 1 is reward minus value, 0 the one-step difference. The paper's ppo, verl: 1."""
    gae_gamma: Fraction = 1.0
    """ppo's discount. The paper: 1."""
    whiten: bool = True
    """ppo and reinforce_pp: subtract the mean and divide by the std of the step's token advantages, as verl does."""


@dataclass(frozen=True, kw_only=True)
class CriticConfig:
    """The learned critic of estimators that need values (ppo): what it is and how it learns (tasks/engines/critic.py).

    The optimiser is AdamW with train.beta1 and train.beta2; each mini-batch of the policy is one of the critic.
    """

    backbone: Literal["own", "shared"] = "own"
    """own: a copy of the first policy with a value head, and an optimiser of its own (verl, TRL); shared: a value head
    on the policy itself, whose gradient then is that of policy loss + value_coefficient * value loss (PPO2)."""
    learning_rate: PositiveFloat = 1e-5
    """Constant learning rate of the critic; with a shared backbone that of the head. verl's critic.optim.lr: 1e-5."""
    value_clip: PositiveFloat = 0.5
    """A value may move this far, in units of reward, from the stored one before its loss is clipped. verl: 0.5."""
    value_coefficient: PositiveFloat = 0.5
    """Weight of the value loss in a shared backbone's loss; own ignores it. PPO2 (OpenAI baselines): 0.5."""
    warmup_steps: Count = 0
    """First steps in which only the critic learns and the policy stays as it is. verl's critic_warmup: 0."""
    max_grad_norm: PositiveFloat = 1.0
    """The critic's gradient is scaled down to this norm. verl's critic.grad_clip: 1.0."""
    weight_decay: NonNegative = 0.01
    """AdamW's decoupled weight decay of the critic. verl: 0.01."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One step's optimiser updates (objective: tasks/core/objective.py)."""

    learning_rate: PositiveFloat = 1e-6
    """Peak learning rate of AdamW. The paper: 1e-6, constant."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How the learning rate falls to 0 over schedule_updates (tasks/core/schedule.py)."""
    warmup_updates: Count = 0
    """Updates of the run over which the learning rate rises linearly to its peak."""
    schedule_updates: Count = 0
    """Updates of the run after which a linear or cosine schedule has reached 0; those two need it."""
    updates_per_step: Positive = 8
    """Updates a step: the step's groups are split into this many mini-batches. The paper: 512 prompts / 64 = 8."""
    weight_decay: NonNegative = 0.01
    """AdamW's decoupled weight decay. The paper: 0.01."""
    decays: Literal["matrices", "all"] = "matrices"
    """Parameters that decay: those of two dimensions or more (no norms, no biases; as in transformers), or all."""
    beta1: Annotated[float, Bounds(at_least=0, at_most=0.9999)] = 0.9
    """AdamW's decay of the first moment."""
    beta2: Annotated[float, Bounds(at_least=0, at_most=0.99999)] = 0.999
    """AdamW's decay of the second moment."""
    max_grad_norm: PositiveFloat = 1.0
    """Gradients longer than this are scaled down to it. The paper: 1."""
    clip_low: Annotated[float, Bounds(above=0, at_most=1)] = 0.2
    """Importance ratios are clipped below at 1 - clip_low."""
    clip_high: PositiveFloat = 0.28
    """Importance ratios are clipped above at 1 + clip_high ("clip-higher", arXiv 2503.14476)."""
    dual_clip: Annotated[float, Bounds(above=1)] = 3.0
    """For negative advantages the loss of a token is at most this times |advantage| (arXiv 1912.09729)."""
    normalization: Normalization = "token_mean"
    """Denominator of the loss, counted over the whole mini-batch."""
    kl_coefficient: NonNegative = 0.0
    """Weight of the KL to the first policy in the loss; 0, as in the paper's code, computes none."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    """How the KL is estimated from the sampled tokens (tasks/core/objective.py); k3 is GRPO's."""
    entropy_coefficient: float = 0.0
    """Weight of the entropy bonus; 0 for none."""
    importance_sampling: Literal["none", "token", "sequence"] = "none"
    """Correct for a sampler that is not the trainer by truncated importance weights; none compares the two directly."""
    importance_mode: Literal["truncate", "mask"] = "truncate"
    """Weights above the cap become the cap, or 0."""
    importance_cap: PositiveFloat = 2.0
    """Largest importance weight. verl: 2."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Forward and backward passes in fp32, or under autocast to bf16; weights and optimiser stay fp32."""
    lora_rank: Count = 0
    """Rank of low-rank adapters on every projection (needs the extra `lora`); 0 trains all weights."""
    lora_alpha: PositiveFloat = 32.0
    """Adapters are scaled by lora_alpha / lora_rank."""
    layout: Literal["auto", "padded", "packed", "tree"] = field(default="auto", metadata=NOT_IDENTITY)
    """How completions lie in memory (tasks/core/layout.py); auto takes the tree where the model allows it and prefixes
    are shared."""
    micro_batch_tokens: Positive = field(default=4096, metadata=NOT_IDENTITY)
    """Most tokens (padding included) of one forward pass; the gradients add up: bounds memory, changes nothing else."""
    gradient_checkpointing: bool = field(default=False, metadata=NOT_IDENTITY)
    """Keep one activation a layer and compute the others again in the backward pass: less memory, a third more time."""
    num_processes: Annotated[int, Bounds(at_least=1, at_most=1)] = field(default=1, metadata=NOT_IDENTITY)
    """Training processes; this version trains in one."""


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """How a policy is scored on each benchmark."""

    num_samples: Count | None = None
    """Sampled completions per prompt (avg@k); 0 for greedy decoding only; absent: each benchmark's own k."""
    greedy: bool = True
    """Also decode each prompt once greedily. The paper validates greedily."""
    temperature: PositiveFloat | None = None
    """Sampling temperature of the scored samples; absent: each benchmark's own."""
    limit: Positive | None = None
    """Score only this many prompts of a benchmark; absent: all."""


@dataclass(frozen=True, kw_only=True)
class ContractsConfig:
    """What the contracts between stages tolerate (storage/contracts.py). They are checked when a stage is computed."""

    max_null_verdicts: Fraction = 0.1
    """Largest share of a generation's completions on which the verifier may fail."""
    max_mismatch: NonNegative = 0.2
    """How far the 5 % and 95 % quantiles of p_trainer / p_sampler may be from 1 at the first update."""
    allow_benchmark_prompts: bool = False
    """Let training prompts be prompts of a benchmark too."""


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One run, from the dataset to the scores."""

    run: str
    """Name of the run: its rows carry it, and two processes cannot work on one run at once."""
    seed: Count = 0
    """Every random draw comes from a seed derived from (this seed, stage, step)."""
    steps: Count = 15
    """Steps of generate, verify, credit, train."""
    prompts_per_step: Positive = 512
    """Prompts a step, drawn without replacement within an epoch. The paper: 512."""
    group_size: Positive = 7
    """G: completions per prompt. The paper: 7."""
    policy: str = "builtin/tiny-qwen3"
    """First policy: builtin/tiny-qwen3, a Hugging Face checkpoint folder, or a Hub id (optionally ID@REVISION)."""
    dataset: str = "arithmetic"
    """Training set: a name in the registry (tasks/datasets.py)."""
    hub_root: str | None = field(default=None, metadata=NOT_IDENTITY)
    """Folder that mirrors the Hub's layout; absent: datasets come from the Hub."""
    verifier: str | None = None
    """Verifier of the training completions; absent: the dataset's own."""
    estimator: Estimator = "tempo"
    """Advantage estimator."""
    benchmarks: tuple[str, ...] = ()
    """Benchmarks to score: names in the registry."""
    evaluate_every: Count = 0
    """Score the policy every so many steps; it is always scored before the first and after the last step."""
    keep_policies: str = field(default="all", metadata=NOT_IDENTITY)
    """Weights to keep: all, last(n) or every(n) steps. The first and the newest policy are always kept; a dropped one
    is rebuilt from its rollouts and advantages where it is needed."""
    device: str = field(default="auto", metadata=NOT_IDENTITY)
    """Torch device; auto takes CUDA where there is one."""
    threads: Count = field(default=0, metadata=NOT_IDENTITY)
    """CPU threads of torch; 0 chooses: 1 for models under 5 M parameters (more threads are slower there), else all."""
    prompts: PromptsConfig = PromptsConfig()
    """Rows to prompts."""
    arithmetic: ArithmeticConfig = ArithmeticConfig()
    """The built-in dataset."""
    sampler: SamplerConfig = SamplerConfig()
    """Generation."""
    warm_start: WarmStartConfig = WarmStartConfig()
    """Supervised start."""
    credit: CreditConfig = CreditConfig()
    """Advantages."""
    critic: CriticConfig = CriticConfig()
    """The learned critic, for estimators that need one."""
    train: TrainConfig = TrainConfig()
    """Updates."""
    verification: VerificationConfig = field(default=VerificationConfig())
    """Verdicts and rewards."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """Scores."""
    contracts: ContractsConfig = field(default=ContractsConfig(), metadata=NOT_IDENTITY)
    """What the contracts between stages tolerate."""
