"""Where the time of a generation goes, and what the check of the weights costs: the tables of a quickstart on vLLM.

The run is the quickstart's, with Prefect, a shorter warm start and no benchmark. Medians over its steps but the first,
in which the engine is started:

    read, sync, sampling, text, write   of the table generations
    commit       what else the stage's own time holds: its key, contracts, digests, fsync, the log
    next stage   from the end of the stage to the beginning of the next one: Prefect's tasks
    step         from the beginning of the generation to the end of the training
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from training_worker import ROOT

from storage.catalog import open_catalog

SETTINGS = ("sampler.engine=vllm", "warm_start.updates=20", "benchmarks=[]")
OF_SAMPLING, OF_STEP, RELOAD_SECONDS = 0.05, 0.02, 2.0
PARTS = ("read", "sync", "sampling", "text", "write", "commit", "next stage")
STEPS = """
WITH stages AS (
    SELECT step, stage, started_at, epoch(started_at) AS begin, epoch(started_at) + seconds AS done, seconds
    FROM stage_runs WHERE purpose = 'train' AND outcome = 'ran'
)
SELECT g.read_seconds, g.sync_seconds, g.sampling_seconds, g.text_seconds, g.write_seconds,
       s.seconds - (g.read_seconds + g.sync_seconds + g.sampling_seconds + g.text_seconds + g.write_seconds),
       v.begin - s.done, t.done - s.begin, g.num_tokens,
       w.export_seconds + w.reload_seconds, w.check_seconds
FROM generations g
JOIN weight_syncs w ON w.step = g.step AND w.purpose = 'train'
JOIN stages s ON s.step = g.step AND s.stage = 'generation'
JOIN stages v ON v.step = g.step AND v.stage = 'verification'
JOIN stages t ON t.step = g.step AND t.stage = 'training'
WHERE g.purpose = 'train' AND w.is_new AND w.num_starts = 0 ORDER BY g.step
"""


def split_table(steps: int) -> None:
    """Run the quickstart and print the split, and what the goals say of it."""
    with tempfile.TemporaryDirectory(prefix="tempo-split-") as name:
        data = Path(name)
        settings = [word for setting in (*SETTINGS, f"steps={steps + 1}") for word in ("--set", setting)]
        command = [sys.executable, "-m", "flows.cli", "train", "quickstart", "--data-root", name, *settings]
        done = subprocess.run(
            command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
        )
        if done.returncode:
            sys.exit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        rows = open_catalog(data).execute(STEPS).fetchall()
    split = {part: [row[i] for row in rows] for i, part in enumerate(PARTS)}
    whole, num_tokens, reload, check = ([row[i] for row in rows] for i in range(len(PARTS), len(PARTS) + 4))
    inside = [
        sum(values) for values in zip(*(split[part] for part in ("read", "text", "write", "commit")), strict=True)
    ]
    with_prefect = [a + b for a, b in zip(inside, split["next stage"], strict=True)]
    facts = f"{median(num_tokens):.0f} tokens, medians over {len(rows)} steps"
    print(f"\na generation of the quickstart on vLLM, {facts} (ms):")
    print("".join(f"{part:>11}" for part in (*PARTS, "step")))
    print("".join(f"{median(values) * 1e3:>11.1f}" for values in (*split.values(), whole)))

    def share(parts: list[float], of: list[float]) -> float:
        return median(part / total for part, total in zip(parts, of, strict=True))

    say("read + text + write + commit of the sampling", share(inside, split["sampling"]), OF_SAMPLING)
    say("the same with the way to the next stage", share(with_prefect, split["sampling"]), OF_SAMPLING)
    say("check of the weights of the whole step", share(check, whole), OF_STEP)
    seconds = median(a + b for a, b in zip(reload, check, strict=True))
    met = "met" if seconds <= RELOAD_SECONDS else "MISSED"
    print(f"  export + reload + check <= {RELOAD_SECONDS:g} s: {seconds:.3f} s, {met}", flush=True)


def say(what: str, value: float, most: float) -> None:
    print(f"  {what} <= {most:.0%}: {value:.1%}, {'met' if value <= most else 'MISSED'}")
