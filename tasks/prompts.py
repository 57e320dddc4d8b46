"""Stage `prompts`: a dataset's split becomes the prompts table, rendered and tokenized for the run's policy."""

from collections import Counter
from typing import Any

from storage.artifact import Part
from tasks.config import PromptsConfig
from tasks.core.seeds import derive_seed
from tasks.core.verifiers import get_verifier
from tasks.datasets import SHOWN_ROWS, DatasetSource
from tasks.few_shot import draw
from tasks.registry import DATASETS
from tasks.rows import Example
from tasks.stage import Context, Summary, stage
from tasks.templates import PLAIN, asked, render


class BadPrompts(ValueError):
    """The dataset does not give prompts that can be used."""


@stage("prompts", version=3)
def prompts(
    context: Context, *, source: DatasetSource, tokenizer: Part, config: PromptsConfig, verifier: str
) -> Summary:
    """Render, tokenize, and refuse what cannot be used: an empty set, overlong prompts, answers without a verdict."""
    from transformers import AutoTokenizer

    tokenize = AutoTokenizer.from_pretrained(tokenizer.path, local_files_only=True)
    dataset = DATASETS[source.dataset]
    examples = _limited(source.examples(), config.limit)
    _check_answers(examples, verifier, source)
    solved = list(map(draw(source, config.few_shot), examples))
    texts, template = render(tokenize, [asked(dataset, example) for example in examples], config, solved, dataset)
    token_ids = [tokenize(text, add_special_tokens=template == PLAIN).input_ids for text in texts]
    reasons = [_reason(len(ids), config) for ids in token_ids]
    _check_lengths(token_ids, reasons, config, source)
    kept = [i for i, reason in enumerate(reasons) if reason is None]
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
            "options": [list(examples[i].options) or None for i in kept],
            "subject": [examples[i].subject for i in kept],
            "level": [examples[i].level for i in kept],
            "answer": [examples[i].answer for i in kept],
            "verifier": [verifier] * len(kept),
        },
    )
    context.staging.add_table("dropped_prompts", _dropped(source, examples, token_ids, reasons))
    by_reason = Counter(f"num_{reason.replace(' ', '_')}" for reason in reasons if reason)
    return {"num_prompts": len(kept), "num_dropped": len(examples) - len(kept), **by_reason}


def _prompt_id(source: DatasetSource, example: Example) -> str:
    return f"{source.dataset}/{source.split}/{example.row_index:06d}"


def _reason(num_tokens: int, config: PromptsConfig) -> str | None:
    """Why a row does not become a prompt; None for one that does."""
    if not num_tokens:
        return "empty"
    if num_tokens < config.min_tokens:
        return "too short"
    return "too long" if num_tokens > config.max_tokens else None


def _dropped(
    source: DatasetSource, examples: list[Example], token_ids: list[list[int]], reasons: list[str | None]
) -> dict[str, Any]:
    """Columns of dropped_prompts: the rows that were left out, and why."""
    dropped = [i for i, reason in enumerate(reasons) if reason is not None]
    return {
        "prompt_id": [_prompt_id(source, examples[i]) for i in dropped],
        "dataset": [source.dataset] * len(dropped),
        "split": [source.split] * len(dropped),
        "row_index": [examples[i].row_index for i in dropped],
        "reason": [reasons[i] for i in dropped],
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
            check(example.answer, example.options)
        except ValueError as error:
            bad.append(f"row {example.row_index}: {error}")
    if bad:
        more = f"; and {len(bad) - SHOWN_ROWS} more" if len(bad) > SHOWN_ROWS else ""
        raise BadPrompts(
            f"dataset {source.dataset}, split {source.split}: {len(bad)} of {len(examples)} answers cannot be compared "
            f"by the verifier {verifier!r}: {'; '.join(bad[:SHOWN_ROWS])}{more}. Choose the verifier that fits the "
            "dataset"
        )


def _check_lengths(
    token_ids: list[list[int]], reasons: list[str | None], config: PromptsConfig, source: DatasetSource
) -> None:
    """Refuse overlong prompts, unless the experiment drops them, and a set of which nothing is left."""
    where = f"dataset {source.dataset}, split {source.split}"
    num_overlong = reasons.count("too long")
    if num_overlong and config.overlong == "refuse":
        longest = max(len(ids) for ids in token_ids)
        raise BadPrompts(
            f"{where}: {num_overlong} of {len(token_ids)} prompts are longer than prompts.max_tokens = "
            f"{config.max_tokens} (the longest has {longest} tokens). Raise the limit, or leave them out with --set "
            "prompts.overlong=drop"
        )
    if not token_ids:
        raise BadPrompts(f"{where}: the split has no rows: there is nothing to train on or to score")
    if None not in reasons:
        counts = ", ".join(f"{count} {reason}" for reason, count in sorted(Counter(map(str, reasons)).items()))
        raise BadPrompts(
            f"{where}: expected at least one prompt, got none of {len(token_ids)} rows ({counts}; prompts.min_tokens = "
            f"{config.min_tokens}, prompts.max_tokens = {config.max_tokens})"
        )
