"""Flow `train`: the loop of an experiment under Prefect."""

from pathlib import Path

from prefect import flow

from flows.forms import ExperimentName, RerunForm, Settings, overrides
from flows.loop import train_experiment
from flows.planning import check_rerun
from flows.takes import Rerun
from tasks.experiment import load_experiment


@flow(name="train", flow_run_name="train {experiment}", persist_result=False)
def train(
    experiment: ExperimentName = "quickstart",
    settings: Settings = Settings(),  # noqa: B008 (frozen)
    rerun: RerunForm | None = None,
    data_root: str = "data",
) -> None:
    """Train as the experiment says; stages that are stored already are served from storage.

    Args:
        experiment: a name in deployments/experiments, or the path of a .toml file.
        settings: keys that differ from the experiment's file.
        rerun: a stage to compute again, and then what depends on it.
        data_root: folder that holds artifacts, log and tables.
    """
    loaded = load_experiment(experiment, overrides(settings))
    request = None
    if rerun is not None:
        loaded, request = check_rerun(loaded, Path(data_root), _request(rerun))
    train_experiment(loaded, Path(data_root), uses_prefect=True, rerun=request)


def _request(form: RerunForm) -> Rerun:
    return Rerun(
        from_stage=form.from_stage,
        step=form.step,
        purpose=form.purpose,
        force=bool(form.force),
        overrides=tuple(overrides(form.settings)),
    )
