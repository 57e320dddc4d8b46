"""Flow `recredit`: another verifier or estimator over the stored rollouts of a run."""

from pathlib import Path

from prefect import flow

from flows.forms import CreditingSettings, EstimatorName, VerifierName, overrides
from flows.recrediting import recredit_run


@flow(name="recredit", flow_run_name="recredit {run}", persist_result=False)
def recredit(
    run: str,
    estimator: EstimatorName | None = None,
    verifier: VerifierName | None = None,
    settings: CreditingSettings = CreditingSettings(),  # noqa: B008 (frozen)
    data_root: str = "data",
) -> None:
    """Judge and credit a run's stored rollouts once more; the rows are added beside those of training.

    Args:
        run: a stored run, or the beginning of its name.
        estimator: another advantage estimator; empty: the run's own.
        verifier: another verifier, or another version of it; empty: the run's own.
        settings: keys of credit and verification that differ from the run's.
        data_root: folder that holds artifacts, log and tables.
    """
    changes = {"estimator": estimator, "verifier": verifier, "overrides": overrides(settings)}
    recredit_run(run, **changes, data_root=Path(data_root), uses_prefect=True)
