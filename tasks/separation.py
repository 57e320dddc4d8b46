"""Stage `separation`: which prompts of a benchmark are training prompts too. There must be none."""

import pyarrow.compute as pc

from storage.artifact import Part
from tasks.stage import Context, Summary, stage


@stage("separation", version=1)
def separation(context: Context, *, prompts: Part, benchmark: Part, allow_benchmark_prompts: bool) -> Summary:
    """Compare the rendered texts exactly. A contract refuses shared ones, unless `allow_benchmark_prompts`.

    The permission is part of the identity: what was once allowed is looked at again where it is not.
    """
    training = prompts.read(["prompt_id", "prompt_text"])
    scored = benchmark.read(["prompt_id", "prompt_text"]).rename_columns(["benchmark_prompt_id", "prompt_text"])
    shared = scored.join(training, "prompt_text", join_type="inner")
    columns = {name: shared.column(name) for name in ("benchmark_prompt_id", "prompt_id", "prompt_text")}
    columns |= {"kind": ["exact"] * shared.num_rows, "num_shared_ngrams": [None] * shared.num_rows}
    context.staging.add_table("shared_prompts", columns)
    num_shared = pc.count_distinct(shared.column("benchmark_prompt_id")).as_py()
    return {"num_prompts": scored.num_rows, "num_shared": num_shared}
