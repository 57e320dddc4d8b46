"""Flow `train`: the loop of an experiment under Prefect."""

from collections.abc import Sequence
from pathlib import Path

from prefect import flow

from flows.loop import train_experiment
from tasks.experiment import load_experiment


@flow(name="train", flow_run_name="train {experiment}", persist_result=False)
def train(experiment: str = "quickstart", overrides: Sequence[str] = (), data_root: str = "data") -> None:
    """Train as the experiment says; stages that are stored already are served from storage.

    Args:
        experiment: a name in deployments/experiments, or the path of a .toml file.
        overrides: `key=value` entries over the experiment's keys, as with `tempo train --set`.
        data_root: folder that holds artifacts, log and tables.
    """
    settings = load_experiment(experiment, overrides)
    train_experiment(settings, Path(data_root), uses_prefect=True)
