"""Flow `rerun`: a stage of a stored run is computed again, and then whatever depends on it."""

from pathlib import Path
from typing import Annotated, Literal

from prefect import flow
from pydantic import Field

from flows.forms import Settings, overrides
from flows.loop import train_experiment
from flows.planning import request_rerun
from flows.takes import Rerun, StageName


@flow(name="rerun", flow_run_name="rerun {run} from {from_stage}", persist_result=False)
def rerun(
    run: str,
    from_stage: StageName,
    step: Annotated[int, Field(ge=0, strict=True)] | None = None,
    purpose: Literal["train", "eval"] = "train",
    force: bool = False,
    settings: Settings = Settings(),  # noqa: B008 (frozen)
    data_root: str = "data",
) -> None:
    """Compute a stage of a stored run again, and what depends on it; the earlier attempt stays stored.

    Args:
        run: a stored run, or the beginning of its name.
        from_stage: the stage to compute again.
        step: at this step only; empty: at every step.
        purpose: 'eval' for the generation and verification of the benchmarks.
        force: also compute again what depends on it when the new contents equal the old ones.
        settings: keys that hold from that step on.
        data_root: folder that holds artifacts, log and tables.
    """
    request = Rerun(
        from_stage=from_stage, step=step, purpose=purpose, force=force, overrides=tuple(overrides(settings))
    )
    experiment, request = request_rerun(Path(data_root), run, request)
    train_experiment(experiment, Path(data_root), uses_prefect=True, rerun=request)
