"""Stage `evaluation`: one benchmark's verdicts under one decoding become a row of scores."""

import math

import numpy as np
import pyarrow.compute as pc

from storage.artifact import Part
from tasks.core.statistics import clustered_mean, pass_at_all
from tasks.stage import Context, Summary, stage


@stage("evaluation", version=1)
def evaluation(context: Context, *, benchmark: str, prompts: Part, rollouts: Part, verdicts: Part) -> Summary:
    """Accuracy with its standard error over prompts; completions without a reward are counted, not scored."""
    sampled = rollouts.read(["rollout_id", "prompt_id", "finish_reason", "policy", "decoding", "temperature"])
    judged = verdicts.read(["rollout_id", "verifier", "verifier_version", "reward"])
    assert sampled.column("rollout_id").equals(judged.column("rollout_id"))  # both are in key order
    has_reward = judged.column("reward").is_valid().to_numpy()
    _, prompt_index_R = np.unique(sampled.column("prompt_id").to_numpy(), return_inverse=True)
    rewards_R = judged.column("reward").to_numpy()[has_reward]
    mean = stderr = best = None
    if rewards_R.size:
        mean, stderr = clustered_mean(rewards_R, prompt_index_R[has_reward])
        best = pass_at_all(rewards_R, prompt_index_R[has_reward])
    first = {name: sampled.column(name)[0].as_py() for name in ("policy", "decoding", "temperature")}
    num_prompts = int(prompt_index_R.max()) + 1
    truncated = pc.equal(sampled.column("finish_reason"), "length").to_numpy()
    context.staging.add_table(
        "scores",
        {
            "benchmark": [benchmark],
            "policy": [first["policy"]],
            "decoding": [first["decoding"]],
            "n": [num_prompts],
            "k": [sampled.num_rows // num_prompts],
            "mean": [mean],
            "stderr": [None if stderr is None or math.isnan(stderr) else stderr],
            "macro_mean": [None],
            "pass_at_k": [best],
            "maj_at_k": [None],
            "truncation_rate": [float(truncated.mean())],
            "num_unassigned": [int((~has_reward).sum())],
            "scorer": [f"{judged.column('verifier')[0]}@{judged.column('verifier_version')[0]}"],
            "prompt_hash": [prompts.digest],
            "dataset_revision": [prompts.read(["revision"]).column("revision")[0].as_py()],
            "temperature": [first["temperature"]],
            "top_p": [None],
            "max_tokens": [None],
            "sampler": [None],
        },
    )
    stderr = None if stderr is None or math.isnan(stderr) else stderr
    return {"benchmark": benchmark, "decoding": first["decoding"], "mean": mean, "stderr": stderr, "n": num_prompts}
