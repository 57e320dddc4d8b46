"""Data contracts: what must hold of a new artifact, as SQL over its tables before it is committed.

A contract is one file of queries/contracts that returns the rows that break it; empty means that it holds. Its head
says what must hold, why, and what to do. A stage's tables are seen as they lie in memory (in their files, if they were
written in chunks), its inputs as they lie in their Parquet files, under the names of its arguments, and limits as
prepared parameters; a contract whose limit was not given is left out.
"""

import contextlib
import functools
import json
import re
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from storage.artifact import Part, Staging
from storage.schema import TABLES

if TYPE_CHECKING:
    import duckdb

FOLDER = Path(__file__).parent / "queries" / "contracts"
EVIDENCE_ROWS = 1000
"""Most violating rows kept in breach.json; the tables themselves are kept beside it."""
SHOWN_ROWS = 3

CONTRACTS: Mapping[str, tuple[str, ...]] = {
    "prompts": ("prompt_has_tokens", "prompt_is_unique"),
    "separation": ("no_benchmark_prompt_in_training",),
    "generation": ("completion_has_logprobs", "logprobs_are_log_probabilities", "group_is_complete"),
    "verification": ("rollout_has_one_verdict", "reward_fits_status", "few_null_verdicts"),
    "credit": (
        "credit_covers_rewards",
        "advantages_fit_tokens",
        "no_signal_no_credit",
        "td_telescopes",
        "node_values_add_up",
    ),
    "signals": ("signals_fit_tokens",),
    "warm_start": ("updates_are_finite",),
    "training": ("updates_are_finite", "sampler_and_trainer_agree", "group_is_trained_once"),
    "evaluation": ("score_counts_every_completion",),
}
"""Which contracts hold for the tables of which stage."""


class ContractBreach(ValueError):
    """A stage's result breaks a contract; it was set aside, and nothing of it committed."""

    exit_code = 1


@dataclass(frozen=True)
class Contract:
    """One contract: its sentences and the query for the rows that break it."""

    name: str
    holds: str
    why: str
    remedy: str
    sql: str
    limits: frozenset[str]
    """Names of the parameters of the query."""


@functools.cache
def contract(name: str) -> Contract:
    """Read queries/contracts/NAME.sql: a head of three comments (what holds, `Why:`, `Do:`), then one query."""
    text = (FOLDER / f"{name}.sql").read_text(encoding="utf-8")
    head = " ".join(line.removeprefix("-- ") for line in text.splitlines() if line.startswith("-- "))
    holds, why, remedy = (part.strip() for part in re.split(r" Why: | Do: ", head))
    sql = text[text.index("\n", text.rindex("\n-- ") + 1) :].strip()
    return Contract(name, holds, why, remedy, sql, frozenset(re.findall(r"\$(\w+)", sql)))


def check_contracts(
    stage: str, staging: Staging, inputs: Mapping[str, Part], limits: Mapping[str, float | bool]
) -> None:
    """Raise ContractBreach if a staged table breaks a contract of its stage; the staging folder is then evidence.

    `inputs` are the stage's parts by argument name, `limits` the figures that contracts compare with.
    """
    applied = [contract(name) for name in CONTRACTS.get(stage, ())]
    applied = [each for each in applied if each.limits <= set(limits)]
    if not applied:
        return
    seen = set(re.findall(r"\w+", " ".join(each.sql for each in applied)))
    staged = {name: rows for name, rows in staging.tables.items() if name in seen and not isinstance(rows, Path)}
    read = {name: _stored(part) for name, part in inputs.items() if name in seen and name not in staged}
    read |= {name: _rows(file) for name, file in staging.tables.items() if name in seen and isinstance(file, Path)}
    # Signals are raised in the main thread. In DuckDB, which calls Python for rows, they would end as an error of its
    # own, and a run that was told to stop would be one that failed.
    with ThreadPoolExecutor(1) as elsewhere:
        broken = elsewhere.submit(_broken, applied, staged, read, limits).result()
    if broken:
        raise _breach(stage, staging, *broken)


_LOCK = threading.Lock()


@functools.cache
def _connection() -> "duckdb.DuckDBPyConnection":
    """One in-memory database per process; opening one costs 10 ms, a check a few.

    Without threads of its own: idle ones make glibc give free memory back to the system, up to ten times a second, and
    training then pays for getting it again (70,000 page faults in a step of the quickstart, 10 % of its time).
    """
    import duckdb

    return duckdb.connect(config={"threads": 1, "async_threads": 0, "autoinstall_known_extensions": "false"})


@contextlib.contextmanager
def _database(tables: Mapping[str, Any]) -> Iterator["duckdb.DuckDBPyConnection"]:
    """The connection with these tables, for one thread at a time.

    The thread that uses it holds the lock: one whose start was interrupted by a signal is one that nobody waits for.
    """
    with _LOCK:
        connection = _connection()
        try:
            for name, rows in tables.items():
                connection.register(name, rows)
            yield connection
        finally:
            for name in tables:
                connection.unregister(name)


def _broken(
    applied: list[Contract], staged: Mapping[str, Any], read: Mapping[str, str], limits: Mapping[str, float | bool]
) -> tuple[Contract, int, list[dict[str, Any]]] | None:
    """The first broken contract, how many rows break it, and these rows. All contracts are one statement."""
    counts = "\nUNION ALL\n".join(f"SELECT '{each.name}', count(*) FROM (\n{each.sql}\n)" for each in applied)
    used = {name: limits[name] for each in applied for name in each.limits}
    with _database(staged) as connection:
        num_rows = dict(connection.execute(_reading(read) + counts, used).fetchall())
        for each in applied:
            if num_rows[each.name]:
                used = {name: limits[name] for name in each.limits}
                rows = f"{_reading(read)}SELECT to_json(b) FROM (\n{each.sql}\n) b LIMIT {EVIDENCE_ROWS}"
                answer = connection.execute(rows, used).fetchall()
                return each, num_rows[each.name], [json.loads(row) for (row,) in answer]
    return None


def _stored(part: Part) -> str:
    """A query for the rows of an input; columns that its schema version did not have yet are NULL."""
    version = part.artifact.manifest["schema_version"]
    missing = [column.null for column in TABLES[part.name].columns if column.since > version]
    return ", ".join(["SELECT *", *missing]) + f" {_rows(part.path)}"


def _rows(file: Path) -> str:
    quoted = str(file).replace("'", "''")
    return f"FROM read_parquet('{quoted}')"


def _reading(queries: Mapping[str, str]) -> str:
    """A WITH clause that gives the rows of files the names of the tables."""
    tables = ", ".join(f"{name} AS NOT MATERIALIZED ({query})" for name, query in queries.items())
    return f"WITH {tables}\n" if tables else ""


def _breach(
    stage: str, staging: Staging, contract: Contract, num_rows: int, rows: list[dict[str, Any]]
) -> ContractBreach:
    """Set the staging folder aside with breach.json; the error names contract, rows, reason, remedy and folder."""
    first = "\n".join(f"    {json.dumps(row, ensure_ascii=False)[:300]}" for row in rows[:SHOWN_ROWS])
    evidence = staging.evidence(stage)
    message = (
        f"the contract {contract.name} is broken by {num_rows} rows of the stage {stage}, which is not stored.\n"
        f"  Expected: {contract.holds}\n  Got:\n{first}\n  Why it matters: {contract.why}\n  What to do: "
        f"{contract.remedy}\n  The tables and rows are kept in {evidence}"
    )
    facts = {"stage": stage, "contract": contract.name, "message": message, "num_rows": num_rows, "rows": rows}
    staging.set_aside(evidence, facts)
    return ContractBreach(message)
