"""Stage `critic`: the first critic of a run, made from its first (warm-started) policy; training then updates it."""

from storage.artifact import Part
from tasks.stage import Context, Summary, stage


@stage("critic", version=1)
def first_critic(context: Context, *, policy: Part, backbone: str, seed: int) -> Summary:
    """Write the folder `critic`: a copy of the policy with a value head, or the head alone (engines/critic.py)."""
    from tasks.engines import critic as machine
    from tasks.engines import policy as engine

    held = engine.load_policy(policy.path, policy.digest, engine.choose_device(context.device))
    made = machine.make_critic(held, backbone, seed)
    machine.save_critic(made, context.staging.path / "critic")
    context.staging.add_folder("critic", context.staging.path / "critic")
    return {"backbone": backbone, "num_parameters": made.num_parameters}
