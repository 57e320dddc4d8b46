"""math-verify by itself, in a process of its own: without what algebra.py adds to it and changes in it."""

import json
import subprocess
import sys
from pathlib import Path

from tasks.core.verdict import Comparison

ROOT = Path(__file__).resolve().parents[2]
DIRECT = """
import json, resource, sys
from math_verify import LatexExtractionConfig, parse, verify
pairs, room = json.loads(sys.argv[1]), int(sys.argv[2])
def read(text):
    found = parse(f"\\\\boxed{{{text}}}", extraction_config=[LatexExtractionConfig()], parsing_timeout=None,
                  fallback_mode="no_fallback")
    return found
read("x+1")
if room:
    mapped = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + room, mapped + room))
print(json.dumps([verify(read(gold), found, timeout_seconds=None) if (found := read(answer)) else None
                  for answer, gold in pairs]))
"""


def directly(pairs: list[Comparison], room: int = 0) -> list[bool | None]:
    """What math-verify says, with `room` bytes of memory (0: any)."""
    asked = json.dumps([(each.answer, each.gold) for each in pairs])
    done = subprocess.run(
        [sys.executable, "-c", DIRECT, asked, str(room)], capture_output=True, text=True, cwd=ROOT, timeout=60
    )
    answer: list[bool | None] = json.loads(done.stdout)
    return answer
