"""Whole groups of completions out of Parquet files: a bounded number of row groups at a time, never a run at once.

The rows of a group lie one after the other in the rollouts, but may straddle row groups: what is left of the last group
is carried into the next chunk. Tables beside the rollouts (verdicts, signals) have the same rows in the same order.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from storage.schema import TABLES

ROWS_PER_CHUNK = 16 * 1024
"""Completions read at once: the prefix tree takes 1.5 times as long in chunks of 2,048."""
TOKENS_PER_CHUNK = 4 * 2**20
"""Tokens read at once, where completions are longer than 256 on average; one row group at least."""

Columns = Mapping[str, Sequence[str]]


class GroupReader:
    """Rollouts and the tables beside them, by name; the first one is the rollouts."""

    def __init__(self, tables: Mapping[str, pq.ParquetFile]) -> None:
        self.tables = tables
        self.rollouts = tables["rollouts"]

    def check(self, *, finite: Mapping[str, str]) -> None:
        """Read the ids, and refuse what cannot be credited before any of it is: ValueError by name.

        Refused: a table whose rollout_ids are not those of the rollouts in their order, a group whose rows are not
        adjacent, groups that are not in ascending order, and a number of the columns `finite` that is not finite.
        """
        columns = {name: ["rollout_id", *([finite[name]] if name in finite else [])] for name in self.tables}
        last_group: str | None = None
        for chunk in self._together({**columns, "rollouts": [*columns["rollouts"], "group_id"]}):
            for name, rows in chunk.items():
                _check_same_rows(name, rows, chunk["rollouts"])
                if name in finite:
                    _check_finite(name, finite[name], rows)
            names, _ = group_runs(chunk["rollouts"].column("group_id"))
            goes_on = len(names) > 0 and names[0].as_py() == last_group
            ordered = names[1:] if goes_on else names
            before = pa.concat_arrays([pa.array([last_group], pa.string()), ordered[:-1]])
            falls = pc.index(pc.less_equal(ordered, before[: len(ordered)]), True).as_py()
            if falls >= 0:
                self._refuse_order(ordered[falls].as_py(), before[falls].as_py())
            last_group = names[-1].as_py() if len(names) else last_group

    def chunks(self, columns: Columns) -> Iterator[pa.Table]:
        """Tables of whole groups with the columns asked of each table, in the rollouts' order; checked before."""
        left: pa.Table | None = None
        for chunk in self._together({**columns, "rollouts": [*columns["rollouts"], "group_id"]}):
            rows = chunk["rollouts"]
            for name, table in chunk.items():
                for field in table.schema if name != "rollouts" else ():
                    rows = rows.append_column(field, table.column(field.name))
            rows = pa.concat_tables([left, rows]) if left is not None and left.num_rows else rows
            _, starts = group_runs(rows.column("group_id"))
            cut = int(starts[-2]) if starts.size > 1 else 0
            left = rows.slice(cut)
            if cut:
                yield rows.slice(0, cut)
        if left is not None and left.num_rows:
            yield left

    def _together(self, columns: Columns) -> Iterator[dict[str, pa.Table]]:
        """The same rows of every table, chunk by chunk."""
        readers = {name: _Rows(name, self.tables[name], columns[name]) for name in self.tables}
        for num_rows in self._plan():
            yield {name: reader.take(num_rows) for name, reader in readers.items()}

    def _plan(self) -> Iterator[int]:
        """Rows of each chunk: row groups until there are ROWS_PER_CHUNK completions or TOKENS_PER_CHUNK tokens."""
        metadata = self.rollouts.metadata
        paths = [self.rollouts.schema.column(i).path for i in range(len(self.rollouts.schema.names))]
        place = paths.index("token_ids.list.element")
        rows = tokens = 0
        for i in range(metadata.num_row_groups):
            group = metadata.row_group(i)
            size = group.column(place).num_values
            if rows and (rows + group.num_rows > ROWS_PER_CHUNK or tokens + size > TOKENS_PER_CHUNK):
                yield rows
                rows = tokens = 0
            rows, tokens = rows + group.num_rows, tokens + size
        yield rows + 1  # one more than there are: a table beside the rollouts that has too many must show it

    def _refuse_order(self, group: str, before: str) -> None:
        ids = self.rollouts.read(["group_id"]).column("group_id")
        names, starts = group_runs(ids)
        rows = [int(starts[i]) for i in pc.indices_nonzero(pc.equal(names, group)).to_pylist()]
        if len(rows) > 1:
            raise ValueError(
                f"rollouts: expected the completions of a group in adjacent rows, got group {group!r} at row {rows[0]} "
                f"and again at row {rows[1]}; apart they would be compared with fewer than all of their group. Sort "
                "the rows by group: name them rollout_id = group_id and the index in the group, with leading zeros"
            )
        raise ValueError(
            f"rollouts: expected groups in the order of group_id, got {group!r} after {before!r}; their nodes are "
            "stored in that order. Name the rollouts rollout_id = group_id and the index in the group"
        )


class _Rows:
    """A table read row group by row group; columns that its schema version did not have yet are NULL."""

    def __init__(self, name: str, file: pq.ParquetFile, columns: Sequence[str]) -> None:
        self.file = file
        stored = file.schema_arrow.names
        self.columns = [column for column in columns if column in stored]
        self.absent = [TABLES[name].column(column) for column in columns if column not in stored]
        self.next_group, self.held = 0, file.schema_arrow.empty_table().select(self.columns)

    def take(self, num_rows: int) -> pa.Table:
        """The next rows; fewer at the end."""
        first = self.next_group
        waiting = self.held.num_rows
        while waiting < num_rows and self.next_group < self.file.metadata.num_row_groups:
            waiting += self.file.metadata.row_group(self.next_group).num_rows
            self.next_group += 1
        if self.next_group > first:
            read = self.file.read_row_groups(list(range(first, self.next_group)), self.columns)
            self.held = pa.concat_tables([self.held, read]) if self.held.num_rows else read
        rows, self.held = self.held.slice(0, num_rows), self.held.slice(num_rows)
        for column in self.absent:
            rows = rows.append_column(column.name, pa.nulls(rows.num_rows, column.type))
        return rows


def group_runs(group_id: pa.ChunkedArray) -> tuple[pa.Array, np.ndarray[tuple[int], np.dtype[np.int64]]]:
    """Names of the runs of equal group_ids, and offsets [P+1] of their rows."""
    runs = pc.run_end_encode(group_id.combine_chunks(), run_end_type=pa.int64())
    return runs.values, np.concatenate([[0], runs.run_ends.to_numpy()]).astype(np.int64)


def _check_same_rows(name: str, rows: pa.Table, rollouts: pa.Table) -> None:
    ids, expected = rows.column("rollout_id"), rollouts.column("rollout_id")
    if ids.equals(expected):
        return
    both = min(len(ids), len(expected))
    place = pc.index(pc.not_equal(ids.slice(0, both), expected.slice(0, both)), True).as_py()
    place = both if place < 0 else place
    got = ids[place].as_py() if place < len(ids) else None
    wanted = expected[place].as_py() if place < len(expected) else None
    group = f" of group {rollouts.column('group_id')[place].as_py()!r}" if wanted is not None else ""
    raise ValueError(
        f"{name}: expected a row for each rollout, in their order, got {'none' if got is None else repr(got)} where "
        f"the rollouts have {'none' if wanted is None else repr(wanted)}{group}; a group would be compared with a part "
        "of itself. If the group is split over two files, put its rows into one; else make this table anew from these "
        "rollouts"
    )


def _check_finite(name: str, column: str, rows: pa.Table) -> None:
    values = rows.column(column)
    place = pc.index(pc.is_finite(values), False).as_py()
    if place >= 0:
        raise ValueError(
            f"{name}: expected finite numbers in the column {column}, got {values[place].as_py()} for the rollout "
            f"{rows.column('rollout_id')[place].as_py()!r}; it would spread to its whole group: mend what computed it, "
            "or leave the completion out (NULL)"
        )
