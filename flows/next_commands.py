"""What to type next, after a command that ended or was stopped."""

import shlex
import shutil
import sys
from pathlib import Path

from tasks.config import Experiment


def next_commands(experiment: Experiment, data_root: Path, again: str) -> list[str]:
    """Three commands that work right away on what was just stored; `again` is the command that stored it."""
    tempo = command_name()
    root = "" if data_root == Path("data") else f" --data-root {shlex.quote(str(data_root))}"
    run = f"WHERE run = '{experiment.run}'"
    by_step = (
        f"SELECT step, avg(reward) AS accuracy FROM verdicts {run} AND purpose = 'train' GROUP BY step ORDER BY step"
    )
    by_td = f"SELECT step, token, td, advantage, base_advantage FROM token_credit {run} ORDER BY abs(td) DESC LIMIT 10"
    by_status = f"SELECT step, status, count(*) FROM verdicts {run} AND purpose = 'eval' GROUP BY ALL ORDER BY ALL"
    if experiment.steps and again.split()[1] == "train":
        grpo = f"{again} --set run={experiment.run}-grpo --set estimator=grpo"
        return [f'{tempo} sql "{by_step}"{root}', f'{tempo} sql "{by_td}"{root}', grpo]
    scores = f"{tempo} sql --query scores --run {experiment.run}{root}"
    return [scores, f'{tempo} sql "{by_status}"{root}', f"{tempo} runs{root}"]


def command_name() -> str:
    """How to call the command from here: its name when it is on the PATH, else the path of the one that runs."""
    if shutil.which("tempo"):
        return "tempo"
    path = Path(sys.executable).with_name("tempo")
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
