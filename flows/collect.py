"""Flow `collect-garbage`: find, and if asked remove, what no kept run needs."""

from pathlib import Path

from prefect import flow, get_run_logger


@flow(name="collect-garbage", persist_result=False)
def collect_garbage(delete: bool = False, data_root: str = "data") -> None:
    """Say what could be removed from the data root and how much room it takes.

    Args:
        delete: remove it too. What a kept run needs always stays.
        data_root: folder that holds artifacts, log and tables.
    """
    from storage.garbage import collect

    get_run_logger().info(collect(Path(data_root), delete=delete).summary())
