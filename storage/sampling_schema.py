"""The tables of prompts and of what was sampled from them; see schema.py, which has all tables."""

from storage.table import FLAG, FLAGS, FLOAT64, FLOATS, INT32, INT64, TEXT, TEXTS, TOKENS, Table
from storage.table import column as _c

PROMPT_ID = _c("prompt_id", TEXT, "dataset/split/row, for example gsm8k/train/000042.")
GROUP_ID = _c("group_id", TEXT, "One prompt in one generation: its completions are compared with one another.")
ROLLOUT_ID = _c("rollout_id", TEXT, "group_id and the completion's index in its group.")

PROMPTS = Table(
    name="prompts",
    row="one prompt of a dataset",
    key=("prompt_id",),
    columns=(
        PROMPT_ID,
        _c("dataset", TEXT, "Name in the registry of datasets."),
        _c("revision", TEXT, "Pinned revision of the Hub dataset, or the generator's version."),
        _c("split", TEXT, "Split of the dataset."),
        _c("row_index", INT64, "Row in that split, from 0."),
        _c("template", TEXT, "How the text was made: the checkpoint's chat template (its digest) or plain."),
        _c("prompt_text", TEXT, "The rendered prompt, as the policy reads it."),
        _c("prompt_token_ids", TOKENS, "The prompt's tokens under the policy's tokenizer."),
        _c("question", TEXT, "The question alone: no template, instruction or options.", nullable=True, since=5),
        _c("options", TEXTS, "Texts of the options A, B, ... of a multiple choice.", nullable=True, since=5),
        _c("subject", TEXT, "Subject, where the dataset has subjects.", nullable=True, since=5),
        _c("level", TEXT, "Level of difficulty, where the dataset has levels.", nullable=True, since=5),
        _c("answer", TEXT, "Gold answer, in the verifier's canonical form."),
        _c("verifier", TEXT, "Name of the verifier that judges completions of this prompt."),
    ),
)

DROPPED_PROMPTS = Table(
    name="dropped_prompts",
    row="one row of a dataset that did not become a prompt",
    key=("prompt_id",),
    since=2,
    columns=(
        PROMPT_ID,
        _c("dataset", TEXT, "Name in the registry of datasets."),
        _c("split", TEXT, "Split of the dataset."),
        _c("row_index", INT64, "Row in that split, from 0."),
        _c("reason", TEXT, "'too long' (more than prompts.max_tokens), 'too short' or 'empty'."),
        _c("num_tokens", INT32, "Tokens of the rendered prompt."),
    ),
)

SHARED_PROMPTS = Table(
    name="shared_prompts",
    row="one prompt of a benchmark that shares its words with a training prompt",
    key=("benchmark_prompt_id", "prompt_id"),
    since=2,
    columns=(
        _c("benchmark_prompt_id", TEXT, "The benchmark's prompt_id."),
        _c("prompt_id", TEXT, "prompt_id of the training prompt."),
        _c("prompt_text", TEXT, "The benchmark's question."),
        _c("kind", TEXT, "'exact' (the same words) or '13-gram' (13 words in a row).", nullable=True, since=5),
        _c("num_shared_ngrams", INT32, "Different 13-grams that both contain.", nullable=True, since=5),
    ),
)

ROLLOUTS = Table(
    name="rollouts",
    row="one completion, with how it was sampled",
    key=("rollout_id",),
    columns=(
        ROLLOUT_ID,
        GROUP_ID,
        PROMPT_ID,
        _c("token_ids", TOKENS, "Sampled tokens, T of them, the end-of-sequence token included when it was drawn."),
        _c("sampler_logprobs", FLOATS, "[T] log-probability of each token under the distribution it was drawn from."),
        _c("text", TEXT, "token_ids decoded without special tokens."),
        _c("finish_reason", TEXT, "'stop' (end of sequence drawn) or 'length' (max_tokens or context reached)."),
        _c("policy", TEXT, "Policy that sampled: policies.policy."),
        _c("sampler", TEXT, "Engine that sampled."),
        _c("seed", INT64, "Seed of this completion's own random stream."),
        _c("decoding", TEXT, "'sampled' or 'greedy'."),
        _c("temperature", FLOAT64, "Divides the logits before sampling; 0 for greedy decoding."),
        _c("top_p", FLOAT64, "Smallest set of tokens with at least this mass is kept; 1 keeps all."),
        _c("max_tokens", INT32, "Most tokens a completion may have."),
        _c("epoch", INT32, "Epoch of the prompt's draw, from 0; NULL in an evaluation.", nullable=True, since=2),
        _c("loss_mask", FLAGS, "[T] tokens that are trained on; NULL: all of them.", nullable=True, since=3),
    ),
)

GENERATIONS = Table(
    name="generations",
    row="one generation: what was sampled, and where its time went",
    key=("policy", "sampler"),
    since=4,
    columns=(
        _c("policy", TEXT, "Policy that sampled: policies.policy."),
        _c("sampler", TEXT, "Engine that sampled."),
        _c("num_prompts", INT32, "Prompts."),
        _c("num_completions", INT32, "Completions."),
        _c("num_tokens", INT64, "Completion tokens."),
        _c("num_prompt_tokens", INT64, "Prompt tokens, counted once a completion."),
        _c("num_cached_prompt_tokens", INT64, "Those found in the engine's prefix cache.", is_measurement=True),
        _c(
            "num_restarts", INT32, "Times the engine died while it sampled, and was started again.", is_measurement=True
        ),
        _c("read_seconds", FLOAT64, "Reading the prompts and the policy.", is_measurement=True),
        _c("sync_seconds", FLOAT64, "Handing the weights to the engine, and the check of them.", is_measurement=True),
        _c("sampling_seconds", FLOAT64, "Waiting for the engine's completions.", is_measurement=True),
        _c("text_seconds", FLOAT64, "Decoding token ids to text.", is_measurement=True),
        _c("write_seconds", FLOAT64, "Laying out and writing the rollouts.", is_measurement=True),
    ),
)

WEIGHT_SYNCS = Table(
    name="weight_syncs",
    row="the check of the weights that one generation sampled from, in an engine of its own",
    key=("policy", "engine"),
    since=4,
    columns=(
        _c("policy", TEXT, "Policy whose weights were checked: policies.policy."),
        _c("engine", TEXT, "Engine that holds them."),
        _c("dtype", TEXT, "The engine's weights and activations: fp32 or bf16."),
        _c("tolerance", FLOAT64, "Largest difference allowed, in nats.", is_measurement=True),
        _c("num_tokens", INT32, "Probe tokens compared, over all engines.", is_measurement=True),
        _c("max_difference", FLOAT64, "Largest |trainer - engine| of a log-probability, in nats.", is_measurement=True),
        _c("mean_difference", FLOAT64, "Mean |trainer - engine|, in nats.", is_measurement=True),
        _c("is_new", FLAG, "Checked by this generation; false: an earlier one had loaded them.", is_measurement=True),
        _c("num_starts", INT32, "Engines started to load them; 0: loaded in place.", is_measurement=True),
        _c("export_seconds", FLOAT64, "Writing the checkpoint for the engine.", is_measurement=True),
        _c("start_seconds", FLOAT64, "Starting engines.", is_measurement=True),
        _c("reload_seconds", FLOAT64, "Loading the weights in place.", is_measurement=True),
        _c("check_seconds", FLOAT64, "The check, on both sides.", is_measurement=True),
    ),
)
