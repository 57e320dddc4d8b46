"""Flow `recredit`: another verifier or estimator over the stored rollouts of a run; no policy is loaded."""

from pathlib import Path

from prefect import flow

from flows.forms import EstimatorName, VerifierName


@flow(name="recredit", flow_run_name="recredit {run}", persist_result=False)
def recredit(
    run: str, estimator: EstimatorName | None = None, verifier: VerifierName | None = None, data_root: str = "data"
) -> None:
    """Judge and credit a run's stored rollouts once more; the rows are added beside those of training.

    Args:
        run: a stored run, or the beginning of its name.
        estimator: another advantage estimator; empty: the run's own.
        verifier: another verifier; empty: the run's own.
        data_root: folder that holds artifacts, log and tables.
    """
    from flows.recrediting import recredit_run

    recredit_run(run, estimator, verifier, Path(data_root), uses_prefect=True)
