"""Reduce a data root to what the catalogue reads, to keep it as an example of its schema version.

    tempo train quickstart --no-server --data-root /tmp/root --set steps=1 --set prompts_per_step=2 --set group_size=3 \
        --set train.updates_per_step=1 --set arithmetic.num_train=8 --set arithmetic.num_test=3 \
        --set warm_start.updates=2 --set warm_start.batch_size=4 --set evaluation.num_samples=2
    python tests/storage/make_golden.py /tmp/root tests/storage/golden/vN

Weights are left out, and said to be dropped; the machine's name is too.
"""

import json
import shutil
import sys
from pathlib import Path

WEIGHTS = ("checkpoint", "optimizer", "critic")


def main() -> None:
    source, target = Path(sys.argv[1]), Path(sys.argv[2])
    for manifest in sorted(source.glob("artifacts/*/*/manifest.json")):
        kept = target / manifest.parent.relative_to(source)
        shutil.copytree(manifest.parent, kept, ignore=shutil.ignore_patterns(*WEIGHTS))
        dropped = [name for name in json.loads(manifest.read_text())["parts"] if name in WEIGHTS]
        if dropped:
            (kept / "dropped.json").write_text(json.dumps(dropped))
    events = [json.loads(line) for line in (source / "log.jsonl").read_text().splitlines()]
    for event in events:
        event["host"] = "golden"
        if "code" in event:
            event["code"] |= {"machine": "golden"}
    (target / "log.jsonl").write_text("".join(json.dumps(event, sort_keys=True) + "\n" for event in events))


if __name__ == "__main__":
    main()
