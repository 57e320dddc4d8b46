"""The registry: every training set and benchmark, where it comes from, what it must look like, how it is asked.

Revisions are commits of the Hub's datasets, and `num_rows` what they hold. Sampling temperature is 1 everywhere: that
is the distribution which training samples from and changes, so that avg@k and pass@k say what was trained; a lower one
sharpens it, and two policies that differ under 1 may look alike under 0.6. `evaluation.temperature` sets another.
k is 1 where a set is large enough for a small standard error, 16 for the 40 problems of AMC23 (its scores are reported
as avg@16 or more: with one sample a problem moves them by 2.5 points).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tasks import rows
from tasks.rows import Example

MATHS_SUFFIX = "Let's think step by step and output the final answer within \\boxed{}."
CHOICE_SUFFIX = "Let's think step by step and output the letter of the final answer within \\boxed{}."


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A dataset on the Hub (or, without hub_id, one made here)."""

    name: str
    verifier: str
    """Verifier of its answers."""
    hub_id: str | None = None
    configs: tuple[str, ...] = ()
    """Configurations, whose rows follow one another in this order; none: the default one."""
    revision: str
    """Commit of the Hub's dataset, or the version of the generator."""
    train_split: str | None = None
    """Split to train on; None: a benchmark only."""
    eval_split: str = "test"
    """Split that is the benchmark."""
    num_rows: Mapping[str, int] = field(default_factory=dict, compare=False)
    """Rows at that revision of each split; of CONFIG/SPLIT where there are configurations."""
    columns: Mapping[str, str] = field(default_factory=dict, compare=False)
    """Columns that must be there and their types, `a | b` for either."""
    example: Callable[[int, dict[str, Any]], Example] | None = field(default=None, compare=False)
    """A row as an example."""
    check: Callable[[Sequence[Example]], None] | None = field(default=None, compare=False)
    """Raises ValueError for a split that is wrong as a whole."""
    subject_is_config: bool = False
    """The subject of each row must be the name of its configuration."""
    suffix: str = ""
    """Instruction after the question (after the options of a multiple choice)."""
    k: int = 1
    """Completions per prompt of a sampled score."""
    temperature: float = 1.0
    """Sampling temperature of a sampled score."""
    few_shot: str | None = None
    """The dataset whose rows are solved examples; None: there are none."""
    few_shot_split: str | None = None
    """The split of these rows; None: the training split."""


_MATH_COLUMNS = {"problem": "string", "solution": "string"}
_MEDICAL = {
    "anatomy": 135,
    "clinical_knowledge": 265,
    "college_biology": 144,
    "college_medicine": 173,
    "medical_genetics": 100,
    "professional_medicine": 272,
}

_ENTRIES = (
    Dataset(name="arithmetic", verifier="arithmetic", revision="1", train_split="train", k=4),
    Dataset(
        name="gsm8k",
        verifier="gsm8k",
        hub_id="openai/gsm8k",
        configs=("main",),
        revision="740312add88f781978c0658806c59bc2815b9866",
        train_split="train",
        num_rows={"main/train": 7473, "main/test": 1319},
        columns={"question": "string", "answer": "string"},
        example=rows.gsm8k,
        suffix=MATHS_SUFFIX,
        few_shot="gsm8k",
    ),
    Dataset(
        name="math",
        verifier="math",
        hub_id="DigitalLearningGmbH/MATH-lighteval",
        revision="0530c78699ea5e8eb5530600900e1f328b48acad",
        train_split="train",
        num_rows={"train": 7500, "test": 5000},
        columns=_MATH_COLUMNS | {"level": "string", "type": "string"},
        example=rows.math,
        suffix=MATHS_SUFFIX,
        few_shot="math",
    ),
    Dataset(
        name="math500",
        verifier="math",
        hub_id="HuggingFaceH4/MATH-500",
        revision="6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be",
        num_rows={"test": 500},
        columns=_MATH_COLUMNS | {"answer": "string", "subject": "string", "level": "int64"},
        example=rows.math500,
        suffix=MATHS_SUFFIX,
        few_shot="math",
    ),
    Dataset(
        name="amc23",
        verifier="math",
        hub_id="math-ai/amc23",
        revision="80815d37005feb82cd7f8fbc6901d5d3eff43057",
        num_rows={"test": 40},
        columns={"question": "string", "answer": "string | float64 | int64"},
        example=rows.amc23,
        suffix=MATHS_SUFFIX,
        k=16,
        few_shot="math",
    ),
    Dataset(
        name="gsm_hard",
        verifier="numeric",
        hub_id="reasoning-machines/gsm-hard",
        revision="960448f73503112d4226baeb8eb41d3fb5ae2506",
        eval_split="train",  # the only one; its questions are those of GSM8K's test split
        num_rows={"train": 1319},
        columns={"input": "string", "target": "float64"},
        example=rows.gsm_hard,
        suffix=MATHS_SUFFIX,
        few_shot="gsm8k",
    ),
    Dataset(
        name="medqa",
        verifier="choice",
        hub_id="GBaker/MedQA-USMLE-4-options",
        revision="0fb93dd23a7339b6dcd27e241cb9b5eca62d4d18",
        train_split="train",
        num_rows={"train": 10178, "test": 1273},
        columns={
            "question": "string",
            "answer": "string",
            "options": "struct<A: string, B: string, C: string, D: string>",
            "answer_idx": "string",
        },
        example=rows.medqa,
        suffix=CHOICE_SUFFIX,
        few_shot="medqa",
    ),
    Dataset(
        name="medmcqa",
        verifier="choice",
        hub_id="openlifescienceai/medmcqa",
        revision="91c6572c454088bf71b679ad90aa8dffcd0d5868",
        eval_split="validation",  # the test split has no keys
        num_rows={"validation": 4183},
        columns=dict.fromkeys(("question", "opa", "opb", "opc", "opd", "choice_type", "subject_name"), "string")
        | {"cop": "int64"},
        example=rows.medmcqa,
        check=rows.counts_from_zero,
        suffix=CHOICE_SUFFIX,
        few_shot="medqa",  # its own training split has 182,822 rows
    ),
    Dataset(
        name="mmlu_medical",
        verifier="choice",
        hub_id="cais/mmlu",
        configs=tuple(_MEDICAL),
        revision="c30699e8356da336a370243923dbaf21066bb9fe",
        num_rows={f"{subject}/test": count for subject, count in _MEDICAL.items()}
        | {f"{subject}/dev": 5 for subject in _MEDICAL},
        columns={"question": "string", "subject": "string", "choices": "list<string>", "answer": "int64"},
        example=rows.mmlu,
        subject_is_config=True,
        suffix=CHOICE_SUFFIX,
        few_shot="mmlu_medical",
        few_shot_split="dev",
    ),
)

DATASETS = {dataset.name: dataset for dataset in _ENTRIES}
"""Training sets and benchmarks by name."""
