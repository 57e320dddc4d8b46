"""Stage `demonstrations`: completions to imitate, one table, for the warm start."""

from storage.artifact import Part
from tasks.datasets import DatasetSource
from tasks.stage import Context, Summary, stage


@stage("demonstrations", version=1)
def demonstrations(context: Context, *, source: DatasetSource, prompts: Part, tokenizer: Part, seed: int) -> Summary:
    """Tokenize each prompt's solutions and end them with the tokenizer's end-of-sequence token."""
    from transformers import AutoTokenizer

    tokenize = AutoTokenizer.from_pretrained(tokenizer.path, local_files_only=True)
    known = set(prompts.read(["prompt_id"]).column("prompt_id").to_pylist())
    ids, indices, texts = [], [], []
    for example in source.examples(tutor_seed=seed):
        prompt_id = f"{source.dataset}/{source.split}/{example.row_index:06d}"
        if prompt_id in known:
            for index, text in enumerate(example.solutions):
                ids.append(prompt_id)
                indices.append(index)
                texts.append(text)
    if not ids:
        raise ValueError(
            f"warm_start.updates: the dataset {source.dataset} brings no completions to imitate; set it to 0, or use a "
            "dataset with solutions"
        )
    token_ids = [[*tokens, tokenize.eos_token_id] for tokens in tokenize(texts, add_special_tokens=False).input_ids]
    context.staging.add_table(
        "demonstrations", {"prompt_id": ids, "index": indices, "text": texts, "token_ids": token_ids}
    )
    return {"num_demonstrations": len(ids), "tokens": sum(map(len, token_ids))}
