"""Evidence of a computation that was refused: rows that outlive their stage's staging folder, for a question in SQL.

evidence/<name>.parquet     below the data root; `tempo gc` removes it
"""

import os
import re
import shlex
import uuid
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from storage.dropping import flush

FOLDER = "evidence"


def keep_evidence(root: Path, name: str, rows: pa.Table) -> Path:
    """Write rows to evidence/<name>.parquet in one rename, replacing earlier ones; returns the file's absolute path."""
    folder = root.resolve() / FOLDER
    folder.mkdir(exist_ok=True)
    written, target = folder / f".{uuid.uuid4().hex[:8]}", folder / f"{name}.parquet"
    try:
        pq.write_table(rows, written)
        flush(written)
        os.rename(written, target)
    finally:
        written.unlink(missing_ok=True)
    flush(folder)
    return target


def sql_command(root: Path, statement: str, file: Path) -> str:
    """The command that asks `statement` of a file below `root`; FILE stands for it. It works as printed in a shell."""
    quoted = str(file).replace("'", "''")
    sql = re.sub(r'(["$`\\])', r"\\\1", statement.replace("FILE", f"read_parquet('{quoted}')"))
    return f'tempo sql "{sql}" --data-root {shlex.quote(str(root.resolve()))}'
