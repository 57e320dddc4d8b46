"""Stage `prompts`: a dataset's split becomes the prompts table, rendered and tokenized for the run's policy."""

import hashlib
from typing import Any

from storage.artifact import Part
from tasks.config import PromptsConfig
from tasks.core.seeds import derive_seed
from tasks.core.verifiers import get_verifier
from tasks.datasets import DATASETS, DatasetSource, Example
from tasks.stage import Context, Summary, stage


class BadPrompts(ValueError):
    """The dataset does not give prompts that can be used."""


@stage("prompts", version=2)
def prompts(
    context: Context, *, source: DatasetSource, tokenizer: Part, config: PromptsConfig, verifier: str
) -> Summary:
    """Render, tokenize, and refuse what cannot be used: an empty set, overlong prompts, answers without a verdict."""
    from transformers import AutoTokenizer

    tokenize = AutoTokenizer.from_pretrained(tokenizer.path, local_files_only=True)
    dataset = DATASETS[source.dataset]
    examples = _limited(list(source.examples()), config.limit)
    _check_answers(examples, verifier, source)
    texts, template = _render(tokenize, [example.question for example in examples], dataset.suffix)
    token_ids = [tokenize(text, add_special_tokens=template == "plain").input_ids for text in texts]
    kept = _within_limit(token_ids, config, source)
    if not kept:
        raise BadPrompts(
            f"dataset {source.dataset}, split {source.split}: expected at least one prompt, got none of "
            f"{len(examples)} rows (all are empty or longer than prompts.max_tokens = {config.max_tokens})"
            if examples
            else f"dataset {source.dataset}: the split {source.split} has no rows: there is nothing to train on"
        )
    context.staging.add_table(
        "prompts",
        {
            "prompt_id": [_prompt_id(source, examples[i]) for i in kept],
            "dataset": [source.dataset] * len(kept),
            "revision": [source.revision] * len(kept),
            "split": [source.split] * len(kept),
            "row_index": [examples[i].row_index for i in kept],
            "template": [template] * len(kept),
            "prompt_text": [texts[i] for i in kept],
            "prompt_token_ids": [token_ids[i] for i in kept],
            "question": [examples[i].question for i in kept],
            "options": [None] * len(kept),
            "subject": [None] * len(kept),
            "level": [None] * len(kept),
            "answer": [examples[i].answer for i in kept],
            "verifier": [verifier] * len(kept),
        },
    )
    context.staging.add_table("dropped_prompts", _dropped(source, examples, token_ids, kept))
    return {"num_prompts": len(kept), "num_dropped": len(examples) - len(kept)}


def _prompt_id(source: DatasetSource, example: Example) -> str:
    return f"{source.dataset}/{source.split}/{example.row_index:06d}"


def _dropped(
    source: DatasetSource, examples: list[Example], token_ids: list[list[int]], kept: list[int]
) -> dict[str, Any]:
    """Columns of dropped_prompts: the rows that were left out, and why."""
    dropped = sorted(set(range(len(examples))) - set(kept))
    return {
        "prompt_id": [_prompt_id(source, examples[i]) for i in dropped],
        "dataset": [source.dataset] * len(dropped),
        "split": [source.split] * len(dropped),
        "row_index": [examples[i].row_index for i in dropped],
        "reason": ["too long" if token_ids[i] else "empty" for i in dropped],
        "num_tokens": [len(token_ids[i]) for i in dropped],
    }


def _limited(examples: list[Example], limit: int | None) -> list[Example]:
    """`limit` rows, without replacement, in their order; the same ones in every run."""
    if limit is None or limit >= len(examples):
        return examples
    import numpy as np

    chosen = np.random.default_rng(derive_seed(0, "prompts", "limit")).permutation(len(examples))[:limit]
    return [examples[i] for i in sorted(chosen)]


def _check_answers(examples: list[Example], verifier: str, source: DatasetSource) -> None:
    check = get_verifier(verifier).check_answer
    bad = []
    for example in examples:
        try:
            check(example.answer)
        except ValueError as error:
            bad.append(f"row {example.row_index}: {error}")
    if bad:
        raise BadPrompts(
            f"dataset {source.dataset}, split {source.split}: {len(bad)} of {len(examples)} answers cannot be compared "
            f"by the verifier {verifier!r}; the first: {bad[0]}. Choose the verifier that fits the dataset"
        )


def _render(tokenizer: Any, questions: list[str], suffix: str) -> tuple[list[str], str]:
    """The prompts' texts, and what made them: the checkpoint's chat template (by digest) or plain text."""
    asked = [f"{question} {suffix}" if suffix else question for question in questions]
    if tokenizer.chat_template is None:
        return ([f"{text}\n" for text in asked] if suffix else asked), "plain"
    texts = [
        tokenizer.apply_chat_template([{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True)
        for text in asked
    ]
    return texts, f"chat:{hashlib.sha256(str(tokenizer.chat_template).encode()).hexdigest()[:16]}"


def _within_limit(token_ids: list[list[int]], config: PromptsConfig, source: DatasetSource) -> list[int]:
    """Indices of the prompts that are short enough; refuses longer ones unless the experiment drops them."""
    overlong = [i for i, ids in enumerate(token_ids) if len(ids) > config.max_tokens]
    if overlong and config.overlong == "refuse":
        longest = max(len(ids) for ids in token_ids)
        raise BadPrompts(
            f"dataset {source.dataset}, split {source.split}: {len(overlong)} of {len(token_ids)} prompts are longer "
            f"than prompts.max_tokens = {config.max_tokens} (the longest has {longest} tokens). Raise the limit, or "
            "leave them out with --set prompts.overlong=drop"
        )
    return [i for i, ids in enumerate(token_ids) if 0 < len(ids) <= config.max_tokens]
