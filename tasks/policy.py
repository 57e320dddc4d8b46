"""Stage `policy`: the run's first policy, built in or from a Hugging Face checkpoint, as an artifact of its own."""

from dataclasses import dataclass, field
from pathlib import Path

from storage.fingerprint import NOT_IDENTITY
from tasks.config import Experiment
from tasks.core.seeds import derive_seed
from tasks.stage import Context, Summary, stage

POLICY_ID_DIGITS = 16
BUILTIN = "builtin/tiny-qwen3"
"""The policy that needs no checkpoint."""


@dataclass(frozen=True, kw_only=True)
class PolicySource:
    """What the first policy is, and not where: a digest of the checkpoint's files, or the built-in one and its seed."""

    digest: str
    seed: int | None
    folder: str | None = field(default=None, metadata=NOT_IDENTITY)


def policy_source(experiment: Experiment) -> PolicySource:
    """Find the experiment's policy. Raises NotFound for a missing folder and for a Hub id that cannot be fetched."""
    from tasks.engines.hub import find_checkpoint

    if experiment.policy == BUILTIN:
        return PolicySource(digest=experiment.policy, seed=derive_seed(experiment.seed, "policy"))
    folder, digest = find_checkpoint(experiment.policy)
    return PolicySource(digest=digest, seed=None, folder=str(folder))


def check_layout(source: PolicySource, layout: str) -> None:
    """Raise ValueError where the checkpoint's attention does not allow the layout; its weights are not loaded."""
    if source.folder is None or layout in ("auto", "padded"):
        return
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from tasks.engines.micro_batches import refuse_layout

    config = AutoConfig.from_pretrained(source.folder, local_files_only=True)
    with torch.device("meta"):
        refuse_layout(AutoModelForCausalLM.from_config(config), layout)


@stage("policy", version=2)
def first_policy(context: Context, *, source: PolicySource) -> Summary:
    """Write the policy's checkpoint (fp32), its tokenizer on its own, and the vocabulary, decoded."""
    from tasks.core.arithmetic import CHARACTERS
    from tasks.engines import policy as engine

    if source.folder is None:
        assert source.seed is not None
        policy = engine.make_tiny_policy(CHARACTERS, source.seed)
    else:
        policy = engine.load_policy(Path(source.folder), source.digest, engine.choose_device(context.device))
    add_policy(context, policy, parent=None, origin="policy")
    engine.forget_policy()
    tokenizer = context.staging.path / "tokenizer"
    policy.tokenizer.save_pretrained(tokenizer)
    context.staging.add_folder("tokenizer", tokenizer)
    ids, texts = engine.vocabulary(policy.tokenizer)
    context.staging.add_table("vocabulary", {"token_id": ids, "text": texts})
    return {"num_parameters": policy.num_parameters}


def add_policy(context: Context, policy: object, *, parent: str | None, origin: str) -> str:
    """Save the policy's checkpoint as the part `checkpoint`, with its row of the policies table; returns its digest."""
    from tasks.engines import policy as engine

    assert isinstance(policy, engine.Policy)
    folder = context.staging.path / "checkpoint"
    engine.save_policy(policy, folder)
    context.staging.add_folder("checkpoint", folder)
    digest = str(context.staging.parts["checkpoint"]["digest"])
    context.staging.add_table(
        "policies",
        {
            "policy": [digest[:POLICY_ID_DIGITS]],
            "parent": [parent[:POLICY_ID_DIGITS] if parent else None],
            "fingerprint": [digest],
            "origin": [origin],
            "num_parameters": [policy.num_parameters],
            "checkpoint": [f"artifacts/{origin}/{context.key}/checkpoint"],
        },
    )
    return digest
