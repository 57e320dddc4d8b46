"""Data roots of every schema version open with this one: what a version did not have yet is NULL.

Each folder of golden/ was made by the code of its version (make_golden.py says how).
"""

import json
import shutil
from pathlib import Path

import pytest

from storage.catalog import VIEWS, NewerSchema, open_catalog
from storage.integrity import check
from storage.schema import SCHEMA_VERSION, TABLES

GOLDEN = Path(__file__).parent / "golden"
ROOTS = sorted(GOLDEN.iterdir())


def test_there_is_a_golden_root_of_every_version():
    assert [root.name for root in ROOTS] == [f"v{version}" for version in range(1, SCHEMA_VERSION + 1)]


@pytest.mark.parametrize("root", ROOTS, ids=lambda root: root.name)
def test_every_table_and_view_opens_with_the_rows_that_were_stored(root):
    catalog = open_catalog(root)
    counts = {name: catalog.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in (*TABLES, *VIEWS)}
    # 8 training and 3 benchmark prompts; step 1: 2 prompts x 3 completions; scores of steps 0 and 1: 3 prompts x (2
    # sampled + 1 greedy); 2 updates of the warm start and 1 of training
    expected = {"prompts": 11, "rollouts": 6 + 2 * 9, "verdicts": 24, "advantages": 6, "scores": 4, "updates": 3}
    assert {name: counts[name] for name in expected} == expected
    (tokens,) = catalog.execute("SELECT sum(len(token_ids)) FROM rollouts WHERE purpose = 'train'").fetchone()
    assert counts["token_credit"] == tokens
    assert catalog.execute("SELECT count(*) FROM missing_files").fetchone() == (0,)


@pytest.mark.parametrize("root", ROOTS, ids=lambda root: root.name)
def test_its_digests_are_those_of_its_own_version(root):
    assert check(root) == []


@pytest.mark.parametrize("root", ROOTS, ids=lambda root: root.name)
def test_columns_and_tables_of_later_versions_are_null_and_empty(root):
    catalog, version = open_catalog(root), int(root.name[1:])
    for table in TABLES.values():
        for column in table.columns:
            if column.since > version:
                assert catalog.execute(f"SELECT count({column.name}) FROM {table.name}").fetchone() == (0,)
    (epochs,) = catalog.execute("SELECT count(epoch) FROM rollouts").fetchone()
    assert epochs == (0 if version == 1 else 6)


def test_files_of_two_versions_make_one_view(tmp_path):
    root = tmp_path / "data"
    shutil.copytree(GOLDEN / "v1", root)
    shutil.copytree(GOLDEN / "v2" / "artifacts", root / "artifacts", dirs_exist_ok=True)
    with (root / "log.jsonl").open("a") as log:
        log.write((GOLDEN / "v2" / "log.jsonl").read_text().replace('"run": "quickstart"', '"run": "second"'))
    rows = open_catalog(root).execute(
        "SELECT run, count(*), count(epoch) FROM rollouts WHERE purpose = 'train' GROUP BY run ORDER BY run"
    )
    assert rows.fetchall() == [("quickstart", 6, 0), ("second", 6, 6)]


def test_a_root_that_a_newer_version_has_written_to_is_refused_with_the_remedy(tmp_path):
    lines = [json.loads(line) for line in (GOLDEN / "v2" / "log.jsonl").read_text().splitlines()]
    newer = [line | ({"schema_version": SCHEMA_VERSION + 1} if line["event"] == "stage" else {}) for line in lines]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in newer))
    with pytest.raises(NewerSchema, match=rf"schema version {SCHEMA_VERSION + 1}; .*git pull && make setup"):
        open_catalog(tmp_path)
