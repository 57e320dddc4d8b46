"""The quickstart's computation with neither artifacts nor Prefect: tables, weights and optimiser stay in memory."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from flows.loop import walk
from storage.artifact import Artifact, Part, Store
from storage.parquet import make_table
from tasks.call import Call
from tasks.config import Experiment
from tasks.engines import optimizer as optimizers
from tasks.engines import policy as engine
from tasks.place import Context, Listener, Run


@dataclass(frozen=True)
class Memory(Part):
    """A part that was never written."""

    table: pa.Table | None = None
    identity: str = ""

    @property
    def digest(self) -> str:
        return self.identity

    @property
    def path(self) -> Path:
        return Path(self.identity)

    @property
    def is_dropped(self) -> bool:
        return False

    def read(self, columns: list[str] | None = None) -> pa.Table:
        assert self.table is not None
        return self.table.select(columns) if columns is not None else self.table

    def open(self) -> pq.ParquetFile:
        """A stage that reads row groups gets them from memory: writing them is a cost that only this run has."""
        buffer = pa.BufferOutputStream()
        pq.write_table(self.table, buffer, compression="none", use_dictionary=False)
        return pq.ParquetFile(pa.BufferReader(buffer.getvalue()))


class InMemory(Artifact):
    def part(self, name: str) -> Part:
        return Memory(self, name, PARTS.get((self.key, name)), f"{self.key}/{name}")


PARTS: dict[tuple[str, str], pa.Table] = {}
_optimizers: dict[str, Any] = {}


class MemoryWriter:
    """What a stage needs of a table that is written in chunks."""

    def __init__(self) -> None:
        self.chunks: list[dict[str, Any]] = []

    def add(self, columns: dict[str, Any]) -> None:
        self.chunks.append(columns)


class MemoryStaging:
    """What a stage needs of a staging folder."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.path = Path(f"{key}")
        self.parts: dict[str, dict[str, str]] = {}

    def add_table(self, name: str, columns: dict[str, Any]) -> pa.Table:
        rows = make_table(name, columns)  # rows in key order, as the next stage expects them
        PARTS[self.key, name] = rows
        return rows

    @contextmanager
    def open_table(self, name: str) -> Iterator["MemoryWriter"]:
        writer = MemoryWriter()
        yield writer
        PARTS[self.key, name] = pa.concat_tables([make_table(name, columns) for columns in writer.chunks])

    def add_folder(self, name: str, folder: Path) -> None:
        self.parts[name] = {"digest": f"{self.key}/{name}"}


def train_bare(experiment: Experiment, listener: Listener, data: Path) -> None:
    """Walk the run; what is before the first step is found in `data`, and the steps write nothing."""
    number = 0
    store = Store(data)
    store.open_for_writing()
    run = Run("bare", "", store, listener=listener, device=experiment.device)

    def perform(call: Call) -> Artifact:
        nonlocal number
        if call.place.step == 0:
            return call.run()[0]
        number += 1
        listener.stage_started(call.place, call.stage)
        key = f"{number:012d}"
        context = Context(
            staging=MemoryStaging(key), key=key, identity=key, device="auto", threads=0, progress=lambda *_: None
        )  # type: ignore[arg-type]
        call.compute(context, **call.identity)
        return InMemory(call.stage, key, Path(key))

    save_policy, stored = engine.save_policy, (optimizers.save_optimizer, optimizers.load_optimizer)
    engine.save_policy = lambda policy, folder: save_policy(policy, folder) if folder.is_absolute() else None
    optimizers.save_optimizer = lambda adam, names, folder: _optimizers.update(last=(adam.state, names))
    optimizers.load_optimizer = lambda adam, names, folder: adam.state.update(_optimizers["last"][0])
    try:
        walk(replace(run, perform=perform), experiment)
    finally:
        engine.save_policy = save_policy
        optimizers.save_optimizer, optimizers.load_optimizer = stored
