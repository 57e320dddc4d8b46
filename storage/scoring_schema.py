"""The tables of verdicts and scores; see schema.py, which has all tables."""

from storage.sampling_schema import GROUP_ID, ROLLOUT_ID
from storage.table import FLOAT64, INT32, TEXT, Table
from storage.table import column as _c

VERDICTS = Table(
    name="verdicts",
    row="one completion judged by one verifier version",
    key=("rollout_id", "verifier", "verifier_version"),
    columns=(
        ROLLOUT_ID,
        GROUP_ID,
        _c("verifier", TEXT, "Name of the verifier."),
        _c("verifier_version", INT32, "Its version."),
        _c("status", TEXT, "correct, wrong, unparseable, truncated, timeout, out_of_memory or crashed."),
        _c("reward", FLOAT64, "Reward; NULL when no verdict was reached: never a silent 0.", nullable=True),
        _c("extracted_answer", TEXT, "What the verifier took as the answer; NULL when it found none.", nullable=True),
        _c("failure", TEXT, "How the verifier failed (timeout, out_of_memory, crashed).", nullable=True, since=5),
        _c("num_attempts", INT32, "2 where a worker broke on it and it was tried again.", nullable=True, since=5),
        _c("seconds", FLOAT64, "Time of the judgement, in seconds.", is_measurement=True),
    ),
)

_BENCHMARK = _c("benchmark", TEXT, "Name of the benchmark.")
_POLICY = _c("policy", TEXT, "Policy scored.")
_DECODING = _c("decoding", TEXT, "'sampled' or 'greedy'.")

SCORES = Table(
    name="scores",
    row="one benchmark, policy and decoding",
    key=("benchmark", "policy", "decoding"),
    columns=(
        _BENCHMARK,
        _POLICY,
        _DECODING,
        _c("n", INT32, "Prompts."),
        _c("k", INT32, "Completions per prompt."),
        _c("mean", FLOAT64, "Mean over prompts of the share of correct completions: avg@k.", nullable=True),
        _c("stderr", FLOAT64, "Standard error of the mean, clustered by prompt.", nullable=True),
        _c("macro_mean", FLOAT64, "Mean over subjects of each one's mean; NULL: no subjects.", nullable=True, since=5),
        _c("pass_at_k", FLOAT64, "Share of prompts with at least one correct completion among k.", nullable=True),
        _c("maj_at_k", FLOAT64, "Share of prompts whose most frequent answer is correct.", nullable=True, since=5),
        _c("truncation_rate", FLOAT64, "Share of completions that ended by length."),
        _c("num_unassigned", INT32, "Completions without a reward (NULL), left out of the mean."),
        _c("scorer", TEXT, "Verifier and version."),
        _c("prompt_hash", TEXT, "Digest of the prompts table that was scored."),
        _c("dataset_revision", TEXT, "Revision of the dataset."),
        _c("temperature", FLOAT64, "Sampling temperature; 0 for greedy."),
        _c("top_p", FLOAT64, "Nucleus mass.", nullable=True, since=5),
        _c("max_tokens", INT32, "Most tokens of a completion.", nullable=True, since=5),
        _c("sampler", TEXT, "Engine that sampled.", nullable=True, since=5),
    ),
)

SCORE_PARTS = Table(
    name="score_parts",
    row="one part of a score: a subject or a level of the benchmark",
    key=("benchmark", "policy", "decoding", "kind", "part"),
    since=5,
    columns=(
        _BENCHMARK,
        _POLICY,
        _DECODING,
        _c("kind", TEXT, "'subject' or 'level'."),
        _c("part", TEXT, "Name of the subject or level."),
        _c("n", INT32, "Prompts of the part."),
        _c("mean", FLOAT64, "Mean over its prompts of the share of correct completions.", nullable=True),
        _c("stderr", FLOAT64, "Standard error of that mean, clustered by prompt; NULL: one prompt.", nullable=True),
        _c("truncation_rate", FLOAT64, "Share of its completions that ended by length."),
    ),
)

SCORE_PASSES = Table(
    name="score_passes",
    row="one score at one number of attempts",
    key=("benchmark", "policy", "decoding", "attempts"),
    since=5,
    columns=(
        _BENCHMARK,
        _POLICY,
        _DECODING,
        _c("attempts", INT32, "k of pass@k: 1, 2, 4, ... up to the completions per prompt."),
        _c("pass_at_k", FLOAT64, "Mean over prompts of 1 - C(n - c, k) / C(n, k): c of n are correct.", nullable=True),
    ),
)

SCORE_STATUSES = Table(
    name="score_statuses",
    row="one status among the verdicts of a score",
    key=("benchmark", "policy", "decoding", "status"),
    since=5,
    columns=(
        _BENCHMARK,
        _POLICY,
        _DECODING,
        _c("status", TEXT, "As in verdicts; every status has a row."),
        _c("num_completions", INT32, "Completions with this verdict."),
        _c("rate", FLOAT64, "Their share of all completions."),
    ),
)
