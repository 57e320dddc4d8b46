"""Stage `separation`: which prompts of a benchmark share their words with training prompts. None may be one of them."""

from storage.artifact import Part
from tasks.core.overlap import find_shared
from tasks.stage import Context, Summary, stage


@stage("separation", version=2)
def separation(context: Context, *, prompts: Part, benchmark: Part, allow_benchmark_prompts: bool) -> Summary:
    """Compare the questions alone, without options, templates and instructions (tasks/core/overlap.py).

    A contract refuses prompts with the same words as a training prompt, unless `allow_benchmark_prompts`; 13 words in a
    row are stored and told. The permission is part of the identity: what was once allowed is looked at again where it
    is not.
    """
    training = prompts.read(["prompt_id", "question"]).to_pydict()
    scored = benchmark.read(["prompt_id", "dataset", "question"]).to_pydict()
    shared = find_shared(scored["question"], training["question"])
    context.staging.add_table(
        "shared_prompts",
        {
            "benchmark_prompt_id": [scored["prompt_id"][each.text] for each in shared],
            "prompt_id": [training["prompt_id"][each.other] for each in shared],
            "prompt_text": [scored["question"][each.text] for each in shared],
            "kind": ["exact" if each.is_exact else "13-gram" for each in shared],
            "num_shared_ngrams": [each.num_ngrams for each in shared],
        },
    )
    return {
        "benchmark": scored["dataset"][0],
        "num_prompts": len(scored["question"]),
        "num_exact": len({each.text for each in shared if each.is_exact}),
        "num_13gram": len({each.text for each in shared if not each.is_exact}),
    }
