"""Seeds: every random draw comes from one derived from (run seed, stage, step), so a stage can run alone and again."""

import hashlib


def derive_seed(run_seed: int, *path: str | int) -> int:
    """A 63-bit seed for one place of a run: the first 63 bits of sha256("seed/part/part/...").

    Different places get unrelated seeds; the same place always the same one, on every machine and Python version.
    """
    text = "/".join([str(run_seed), *(str(part) for part in path)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
