"""The catalogue: which rows a data root shows, what the two views compute, and that SQL can only read them."""

import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from storage.catalog import DamagedTable, NotReading, damage_explained, open_catalog, run_query

Columns = dict[str, Any]


# --- which rows are shown


def test_views_attach_run_step_and_purpose_to_the_rows_of_a_file(data_root, words):
    data_root.log(data_root.commit("k1", vocabulary=words("a", "b")), run="demo", step=3, purpose="eval")
    rows = data_root.sql("SELECT run, step, purpose, token_id, text FROM vocabulary ORDER BY token_id")
    assert rows == [("demo", 3, "eval", 0, "a"), ("demo", 3, "eval", 1, "b")]


def test_two_runs_and_two_steps_that_share_an_artifact_each_show_its_rows(data_root, words):
    shared = data_root.commit("k1", vocabulary=words("a"))
    data_root.log(shared, run="one", step=1)
    data_root.log(shared, run="one", step=2, outcome="cached")
    data_root.log(shared, run="two", step=1, outcome="cached")
    rows = data_root.sql("SELECT run, step, text FROM vocabulary ORDER BY ALL")
    assert rows == [("one", 1, "a"), ("one", 2, "a"), ("two", 1, "a")]


def test_an_artifact_of_a_killed_writer_that_is_not_in_the_log_is_not_shown(data_root, words):
    data_root.log(data_root.commit("k1", vocabulary=words("a")))
    data_root.commit("k2", vocabulary=words("never logged"))
    assert data_root.sql("SELECT text FROM vocabulary") == [("a",)]


def test_a_later_attempt_hides_the_earlier_ones_rows_and_going_back_shows_them_again(data_root, words):
    texts = "SELECT step, text FROM vocabulary ORDER BY step"
    data_root.log(data_root.commit("k1", vocabulary=words("first 1")), step=1, attempt="a1")
    data_root.log(data_root.commit("k2", vocabulary=words("first 2")), step=2, attempt="a1")
    data_root.log(data_root.commit("k3", vocabulary=words("second 1")), step=1, attempt="a2")
    assert data_root.sql(texts) == [(1, "second 1")]  # nothing of step 2: the second attempt has not come that far
    data_root.log(None, event="run", state="started", attempt="a1")
    assert data_root.sql(texts) == [(1, "first 1"), (2, "first 2")]
    assert data_root.sql("SELECT run, attempt FROM runs") == [("demo", "a1")]


def test_another_runs_attempt_hides_nothing(data_root, words):
    data_root.log(data_root.commit("k1", vocabulary=words("a")), run="one", attempt="a1")
    data_root.log(data_root.commit("k2", vocabulary=words("b")), run="two", attempt="a2")
    assert data_root.sql("SELECT run, text FROM vocabulary ORDER BY run") == [("one", "a"), ("two", "b")]


def test_the_newest_line_of_one_place_wins_and_other_places_keep_theirs(data_root, words):
    for key, text, label in [("k1", "old", ""), ("k2", "other label", "x"), ("k3", "new", "")]:
        data_root.log(data_root.commit(key, vocabulary=words(text)), label=label)
    data_root.log(data_root.commit("k4", stage="other", vocabulary=words("other stage")))
    data_root.log(data_root.commit("k5", vocabulary=words("other purpose")), purpose="eval")
    texts = {text for (text,) in data_root.sql("SELECT text FROM vocabulary")}
    assert texts == {"new", "other label", "other stage", "other purpose"}


def test_a_stage_that_failed_leaves_the_rows_of_its_last_success(data_root, words):
    data_root.log(data_root.commit("k1", vocabulary=words("a")))
    data_root.log(None, stage="stage", outcome="failed", error="ValueError: no", key="k1")
    assert data_root.sql("SELECT text FROM vocabulary") == [("a",)]
    assert data_root.sql("SELECT outcome, error FROM stage_runs ORDER BY line") == [
        ("ran", None),
        ("failed", "ValueError: no"),
    ]


def test_runs_count_what_ran_and_what_was_cached_and_name_the_last_stage(data_root, words):
    artifact = data_root.commit("k1", vocabulary=words("a"))
    data_root.log(None, event="run", state="started", at="2026-01-01 00:00:00")
    data_root.log(artifact, step=0, outcome="ran", at="2026-01-01 00:00:01")
    data_root.log(artifact, step=7, outcome="cached", at="2026-01-01 00:00:02")
    data_root.log(artifact, step=8, outcome="cached", at="2026-01-01 00:00:03")
    data_root.log(None, event="run", state="completed", at="2026-01-01 00:00:04")
    columns = "run, state, last_stage, num_ran, num_cached, epoch(last_event_at - started_at)"
    assert data_root.sql(f"SELECT {columns} FROM runs") == [("demo", "completed", "stage 8", 1, 2, 4.0)]


def test_a_torn_line_in_the_log_hides_nothing_but_itself(data_root, words):
    data_root.log(data_root.commit("k1", vocabulary=words("a")), step=1)
    with data_root.log_file.open("ab") as log:
        log.write(b'{"event": "stage", "run": "torn", "at')
    data_root.log(data_root.commit("k2", vocabulary=words("b")), step=2)
    assert data_root.sql("SELECT step, text FROM vocabulary ORDER BY step") == [(1, "a"), (2, "b")]
    assert data_root.sql("SELECT run FROM runs") == [("demo",)]


def test_a_committed_file_that_is_gone_is_named_and_the_other_rows_are_still_there(data_root, words):
    lost = data_root.commit("k1", vocabulary=words("lost"))
    data_root.log(lost, step=1)
    data_root.log(data_root.commit("k2", vocabulary=words("kept")), step=2)
    shutil.rmtree(lost.path)
    assert data_root.sql("SELECT step, text FROM vocabulary") == [(2, "kept")]
    rows = data_root.sql("SELECT run, step, stage, part, file FROM missing_files")
    assert rows == [("demo", 1, "stage", "vocabulary", str(lost.part("vocabulary").path))]


@pytest.mark.parametrize(
    "damage", [Path.unlink, lambda file: os.truncate(file, 20), lambda file: file.write_bytes(b"x")]
)
def test_a_damaged_file_is_named_with_the_command_that_mends_it(data_root, words, damage):
    damaged = data_root.commit("k1", vocabulary=words("lost"))
    data_root.log(damaged, step=1)
    damage(damaged.part("vocabulary").path)
    with pytest.raises(DamagedTable, match=r"vocabulary.parquet.*`tempo fsck --repair` sets it aside"):
        data_root.sql("SELECT text FROM vocabulary")


def test_a_flipped_bit_is_answered_or_told_with_the_remedy_and_never_blamed_on_the_sql(data_root, words):
    # a file of 770 bytes, half of it the footer; DuckDB has a dozen ways of failing on it, most without the file's name
    artifact = data_root.commit("k1", vocabulary=words("a", "b"))
    data_root.log(artifact)
    file = artifact.part("vocabulary").path
    whole, told = file.read_bytes(), 0
    for position in range(0, len(whole), 17):
        file.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        try:
            with damage_explained(catalog := open_catalog(data_root.path)):
                run_query(catalog, "SELECT * FROM vocabulary").fetchall()
        except DamagedTable as error:
            assert "`tempo fsck --repair` sets it aside" in str(error)  # noqa: PT017
            told += 1
    assert told > 5


@pytest.mark.parametrize(
    "statement", ["SELECT nothing FROM vocabulary", "SELEC 1", "SELECT 'a'::INTEGER", "SELECT error('mine')"]
)
def test_an_error_in_the_sql_is_no_damage(data_root, words, statement: str):
    data_root.log(data_root.commit("k1", vocabulary=words("a")))
    with pytest.raises(duckdb.Error):
        data_root.sql(statement)


def test_a_root_without_a_log_is_an_error_that_says_how_to_start_a_run(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"no run has been stored under .* start one with `tempo train"):
        open_catalog(tmp_path)


# --- what the views compute


def rollouts(tokens: dict[str, list[int]], logprobs: dict[str, list[float]]) -> Columns:
    num = len(tokens)
    text = ("group_id", "prompt_id", "text", "finish_reason", "policy", "sampler", "decoding")
    return {name: ["g"] * num for name in text} | {
        "rollout_id": list(tokens),
        "token_ids": list(tokens.values()),
        "sampler_logprobs": [logprobs[rollout] for rollout in tokens],
        "loss_mask": [None] * num,
        "seed": [0] * num,
        "epoch": [0] * num,
        "temperature": [1.0] * num,
        "top_p": [1.0] * num,
        "max_tokens": [9] * num,
    }


def advantages(rows: list[Columns]) -> Columns:
    same = {"estimator": "tempo", "estimator_version": 1, "group_mean": 0.5, "group_std": 0.7, "leaf_node": 1}
    later = dict.fromkeys(("token_returns", "num_trained_tokens", "num_branch_tokens", "divergence"))
    rows = [same | later | {"group_id": "g", "td_weight": 1.0, "token_advantages": None} | row for row in rows]
    return {name: [row[name] for row in rows] for name in rows[0]}


def credit(rollout_id: str, reward: float, base: float, td: dict[int, float], **columns: Any) -> Columns:
    places = {"td_positions": list(td), "td_values": list(td.values())}
    return {"rollout_id": rollout_id, "reward": reward, "base_advantage": base} | places | columns


CREDIT = "SELECT rollout_id, position, token, td, advantage FROM token_credit ORDER BY rollout_id, position"


def test_token_credit_is_base_advantage_plus_td_weight_times_td_at_the_branch_token(data_root, words):
    # two completions of one prompt, "a b" with reward 1 and "a c" with reward 0: V(root) = V(a) = 1/2, V(ab) = 1,
    # V(ac) = 0. td is 0 at position 0 and +-1/2 at position 1; with base +-3/4 and weight 2:
    # position 0: 3/4, position 1: 3/4 + 2 * 1/2 = 7/4, and the same with the other sign
    tokens = {"r1": [0, 1], "r2": [0, 2]}
    logprobs = {"r1": [-0.25, -0.5], "r2": [-0.25, -1.0]}
    rows = [
        credit("r1", 1.0, 0.75, {1: 0.5}, td_weight=2.0),
        credit("r2", 0.0, -0.75, {1: -0.5}, td_weight=2.0),
    ]
    data_root.log(data_root.commit("k0", vocabulary=words("a", "b", "c")), step=0)
    data_root.log(data_root.commit("k1", rollouts=rollouts(tokens, logprobs)), step=1, stage="generation")
    data_root.log(data_root.commit("k2", advantages=advantages(rows)), step=1, stage="credit")
    assert data_root.sql(CREDIT) == [
        ("r1", 0, "a", 0.0, 0.75),
        ("r1", 1, "b", 0.5, 1.75),
        ("r2", 0, "a", 0.0, -0.75),
        ("r2", 1, "c", -0.5, -1.75),
    ]
    assert data_root.sql("SELECT reward, sampler_logprob FROM token_credit WHERE token = 'c'") == [(0.0, -1.0)]


def test_token_credit_of_a_dense_estimator_is_what_it_stored(data_root):
    # no vocabulary is stored: the token is unknown (NULL), its credit is not
    rows = [credit("r1", 1.0, 9.0, {1: 9.0}, token_advantages=[0.125, -0.25], token_returns=[0.5, 1.0])]
    data_root.log(data_root.commit("k1", rollouts=rollouts({"r1": [0, 1]}, {"r1": [-1, -1]})), stage="generation")
    data_root.log(data_root.commit("k2", advantages=advantages(rows)), stage="credit")
    assert [row[2::2] for row in data_root.sql(CREDIT)] == [(None, 0.125), (None, -0.25)]
    assert data_root.sql("SELECT token_return FROM token_credit ORDER BY position") == [(0.5,), (1.0,)]


def test_token_credit_joins_within_a_step_and_leaves_out_evaluation(data_root, words):
    sampled = data_root.commit("k1", rollouts=rollouts({"r1": [0]}, {"r1": [-1]}))
    credited = data_root.commit("k2", advantages=advantages([credit("r1", 1.0, 0.5, {})]))
    data_root.log(data_root.commit("k0", vocabulary=words("a")), step=0)
    for step in (1, 2):
        data_root.log(sampled, step=step, stage="generation")
        data_root.log(credited, step=step, stage="credit")
    data_root.log(sampled, step=2, stage="generation", purpose="eval")
    assert data_root.sql("SELECT step, advantage FROM token_credit ORDER BY step") == [(1, 0.5), (2, 0.5)]


def test_a_token_that_is_not_trained_on_has_no_advantage(data_root):
    # base 3/4, weight 2, td 1/2 at position 1: 3/4 and 7/4, but position 1 is masked; the second rollout has no mask
    tokens = {"r1": [0, 1], "r2": [0]}
    masked = rollouts(tokens, {"r1": [-1, -1], "r2": [-1]}) | {"loss_mask": [[True, False], None]}
    rows = [credit("r1", 1.0, 0.75, {1: 0.5}, td_weight=2.0), credit("r2", 0.0, -0.75, {})]
    data_root.log(data_root.commit("k1", rollouts=masked), stage="generation")
    data_root.log(data_root.commit("k2", advantages=advantages(rows)), stage="credit")
    assert data_root.sql("SELECT td, advantage, is_trained FROM token_credit ORDER BY rollout_id, position") == [
        (0.0, 0.75, True),
        (0.5, 0.0, False),
        (0.0, -0.75, True),
    ]


def test_branch_statistics_by_step_purpose_and_estimator(data_root):
    # group g: two completions of two tokens part after the first: one branch token each; group h: two alike, none.
    # (1 + 1 + 0 + 0) / 4 completions = 1/2 branch tokens, the same number with td. g parts after 1 token, h never.
    # td: 2 (|1/2| + |1/2|) = 2 of weight 2; base: 2 tokens * (3/4 + 3/4) = 3, so td moves 2/5.
    # group h's rewards are equal: 1 of 2 groups gives no signal
    tokens = {name: [0, 1] for name in ("g1", "g2", "h1", "h2")}
    logprobs = {name: [-1.0, -1.0] for name in tokens}
    figures = {"num_trained_tokens": 2, "td_weight": 2.0}
    part, alike = {"num_branch_tokens": 1, "divergence": 1}, {"num_branch_tokens": 0, "group_id": "h", "group_std": 0.0}
    rows = [
        credit("g1", 1.0, 0.75, {1: 0.5}, **figures, **part),
        credit("g2", 0.0, -0.75, {1: -0.5}, **figures, **part),
        credit("h1", 1.0, 0.0, {}, **figures, **alike),
        credit("h2", 1.0, 0.0, {}, **figures, **alike),
    ]
    # grpo has no td; hepo is dense: |advantage| counts as base
    other = [
        row | {"estimator": "hepo", "td_positions": [], "td_values": [], "token_advantages": [0.5, 0.0]} for row in rows
    ]
    masked = rollouts(tokens, logprobs) | {"loss_mask": [[True, False], None, None, None]}
    credited = data_root.commit("k1", advantages=advantages(rows))
    for step in (1, 2):
        data_root.log(data_root.commit("k0", rollouts=rollouts(tokens, logprobs)), step=step)
        data_root.log(credited, step=step, stage="credit")
    place = {"step": 2, "stage": "credit", "purpose": "recredit"}
    data_root.log(data_root.commit("k2", advantages=advantages(other)), **place, label="hepo")
    unscaled = [row | {"td_weight": 0.0} for row in rows]  # td_scale = 0: no token has credit of its own
    data_root.log(data_root.commit("k5", advantages=advantages(unscaled)), **place, label="tempo td_scale=0")
    assert data_root.sql("SELECT * FROM branch_statistics ORDER BY step, purpose DESC, label") == [
        ("demo", 1, "train", "", "tempo", 0.5, 0.5, 1.0, 0.4, 2, 1),
        ("demo", 2, "train", "", "tempo", 0.5, 0.5, 1.0, 0.4, 2, 1),
        ("demo", 2, "recredit", "hepo", "hepo", 0.5, 0.0, 1.0, 0.0, 2, 1),
        ("demo", 2, "recredit", "tempo td_scale=0", "tempo", 0.5, 0.0, 1.0, 0.0, 2, 1),
    ]
    # masked, g1's td does not count, and of its tokens one: td 1, base 3/4 + 2 * 3/4; 1 of 4 completions has td
    rows[0] |= {"num_trained_tokens": 1}
    data_root.log(data_root.commit("k3", rollouts=masked), step=3)
    data_root.log(data_root.commit("k4", advantages=advantages(rows)), step=3, stage="credit")
    (found,) = data_root.sql("SELECT td_tokens, td_share FROM branch_statistics WHERE step = 3")
    assert found == (0.25, pytest.approx(1 / (1 + 9 / 4)))


# --- reading only


@pytest.fixture(scope="module")
def root(new_data_root, words, tmp_path_factory) -> Path:
    """A data root with two words and, beside and below it, what must not be read."""
    data_root = new_data_root(tmp_path_factory.mktemp("reading") / "data")
    data_root.log(data_root.commit("k1", vocabulary=words("a", "b")))
    outside = data_root.path.parent / "secret.txt"
    outside.write_text("secret\n")
    (data_root.path.parent / "datax").mkdir()
    (data_root.path.parent / "datax" / "secret.txt").write_text("secret\n")
    os.symlink(outside, data_root.path / "link.txt")
    os.symlink(outside.parent, data_root.path / "folder")
    return data_root.path


@pytest.fixture(scope="module")
def catalog(root: Path) -> duckdb.DuckDBPyConnection:
    return open_catalog(root)


def files(root: Path) -> list[Path]:
    return sorted(root.rglob("*"))


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT text FROM vocabulary ORDER BY token_id LIMIT 1",
        "-- a comment\nFROM vocabulary SELECT text WHERE token_id = 0;",
        "WITH v AS (FROM vocabulary) SELECT text FROM v WHERE token_id = 0",
        "VALUES ('a')",
    ],
)
def test_statements_that_read_are_answered(catalog, statement: str):
    assert run_query(catalog, statement).fetchall() == [("a",)]


@pytest.mark.parametrize(
    ("statement", "word"),
    [
        ("DESCRIBE vocabulary", "purpose"),
        ("SHOW TABLES", "token_credit"),
        ("SUMMARIZE vocabulary", "token_id"),
        ("EXPLAIN SELECT text FROM vocabulary", "physical_plan"),
        ("EXPLAIN ANALYZE SELECT text FROM vocabulary", "analyzed_plan"),
        ("explain (analyze, format json) SELECT text FROM vocabulary", "analyzed_plan"),
        ("EXPLAIN (SELECT text FROM vocabulary)", "physical_plan"),
    ],
)
def test_statements_about_tables_and_plans_are_answered(catalog, statement: str, word: str):
    assert word in str(run_query(catalog, statement).fetchall())


def test_one_connection_answers_several_questions_and_goes_on_after_an_error(catalog):
    assert run_query(catalog, "SELECT 1").fetchall() == [(1,)]
    with pytest.raises(duckdb.Error):
        run_query(catalog, "SELECT error('no')").fetchall()
    assert run_query(catalog, "SELECT count(*) FROM vocabulary").fetchall() == [(2,)]


WRITING = [
    "INSERT INTO links SELECT * FROM links",
    "UPDATE links SET run = 'x'",
    "DELETE FROM links",
    "DROP VIEW vocabulary",
    "CREATE TABLE t AS SELECT 1",
    "CREATE OR REPLACE VIEW vocabulary AS SELECT 1",
    "COPY (SELECT 1) TO '{root}/stolen.csv'",
    "EXPORT DATABASE '{root}/stolen'",
    "ATTACH '{root}/other.db'",
    "SET threads = 1",
    "RESET threads",
    "SET enable_external_access = true",
    "PRAGMA threads = 1",
    "PRAGMA enable_profiling",
    "INSTALL httpfs",
    "LOAD httpfs",
    "CALL pragma_version()",
    "PREPARE p AS SELECT 1",
    "BEGIN",
    "COMMIT",
    "SELECT 1; SELECT 2",
    "SELECT 1; COPY (SELECT 1) TO '{root}/stolen.csv'",
    "EXPLAIN SELECT 1; COPY (SELECT 1) TO '{root}/stolen.csv'",
    "EXPLAIN ANALYZE COPY (SELECT 1) TO '{root}/stolen.csv'",
    "EXPLAIN (ANALYZE) COPY (SELECT 1) TO '{root}/stolen.csv'",
    "/* c */ EXPLAIN ANALYZE COPY (SELECT 1) TO '{root}/stolen.csv'",
    "EXPLAIN EXPLAIN ANALYZE COPY (SELECT 1) TO '{root}/stolen.csv'",
    "",
    ";",
    "-- nothing",
]


@pytest.mark.parametrize("statement", WRITING)
def test_any_other_statement_is_refused_with_its_kind_and_changes_no_file(root: Path, catalog, statement: str):
    before = files(root)
    with pytest.raises(NotReading, match=r"expected one reading statement .* got "):
        run_query(catalog, statement.format(root=root))
    assert files(root) == before
    assert run_query(catalog, "SELECT count(*) FROM vocabulary").fetchall() == [(2,)]


@pytest.mark.parametrize(
    "statement",
    [
        "EXPLAIN /* c */ ANALYZE COPY (SELECT 1) TO '{root}/stolen.csv'",
        "WITH x AS (INSERT INTO links SELECT * FROM links RETURNING *) SELECT * FROM x",
        "SELECT * FROM query('DROP VIEW vocabulary')",
        "SELECT * FROM force_checkpoint()",
        "SELECT * FROM enable_logging('QueryLog', storage = 'file', storage_path = '{root}')",
    ],
)
def test_writing_dressed_as_reading_is_refused_by_the_database(root: Path, catalog, statement: str):
    before = files(root)
    with pytest.raises(duckdb.Error):
        run_query(catalog, statement.format(root=root)).fetchall()
    assert files(root) == before
    assert run_query(catalog, "SELECT count(*) FROM vocabulary").fetchall() == [(2,)]


@pytest.mark.parametrize(
    "expression",
    [
        "read_text('{outside}')",
        "read_csv('{outside}')",
        "read_blob('/proc/self/environ')",
        "read_text('{root}/../secret.txt')",
        "read_text('{root}/artifacts/../../secret.txt')",
        "read_text('{root}/link.txt')",
        "read_text('{root}/folder/secret.txt')",
        "read_text('{root}x/secret.txt')",
        "'{outside}'",
        "glob('{outside}')",
        "parquet_metadata('{outside}')",
        "sniff_csv('{outside}')",
        "read_text('http://127.0.0.1:9/x')",
    ],
)
def test_files_outside_the_data_root_cannot_be_read(root: Path, catalog, expression: str):
    outside = root.parent / "secret.txt"
    with pytest.raises(duckdb.Error, match=r"Permission Error|secret.txt does not exist"):
        run_query(catalog, "SELECT * FROM " + expression.format(outside=outside, root=root)).fetchall()


@pytest.mark.parametrize("path", ["link.txt", "folder/secret.txt", "../secret.txt", "../datax/secret.txt"])
def test_without_the_guard_those_files_could_be_read(root: Path, path: str):
    assert duckdb.connect().execute(f"SELECT content FROM read_text('{root}/{path}')").fetchall() == [("secret\n",)]


def test_files_of_the_data_root_can_be_read(catalog):
    (path,) = run_query(catalog, "SELECT file FROM links").fetchone()
    assert run_query(catalog, f"SELECT count(*) FROM '{path}'").fetchall() == [(2,)]


def test_python_variables_of_the_caller_are_no_tables(catalog):
    secret = pa.table({"answer": [42]})
    assert duckdb.connect().execute("SELECT answer FROM secret").fetchall() == [(42,)]  # without the guard
    with pytest.raises(duckdb.CatalogException, match="secret does not exist"):
        run_query(catalog, "SELECT answer FROM secret")
    assert secret.num_rows == 1


@pytest.mark.parametrize("setting", ["enable_external_access = true", "lock_configuration = false", "threads = 1"])
def test_the_configuration_is_locked_even_for_who_holds_the_connection(root: Path, setting: str):
    with pytest.raises(duckdb.Error, match=r"locked|cannot be changed"):
        open_catalog(root).execute(f"SET {setting}")


# --- names that bite


@pytest.mark.parametrize("name", ["it's a 'quoted' root", 'double "quotes"', "ünï cödé", "per%20cent; DROP", "a[1]"])
def test_a_data_root_may_have_any_name(new_data_root, words, tmp_path: Path, name: str):
    data_root = new_data_root(tmp_path / name)
    data_root.log(data_root.commit("k1", vocabulary=words("a")))
    assert data_root.sql("SELECT text FROM vocabulary") == [("a",)]


def test_a_data_root_may_be_relative_or_a_link_and_its_artifacts_may_be_on_another_disk(
    new_data_root, words, tmp_path: Path, monkeypatch
):
    (tmp_path / "real").mkdir()
    (tmp_path / "disk").mkdir()
    os.symlink(tmp_path / "disk", tmp_path / "real" / "artifacts")
    os.symlink(tmp_path / "real", tmp_path / "link")
    monkeypatch.chdir(tmp_path)
    data_root = new_data_root(Path("link"))
    data_root.log(data_root.commit("k1", vocabulary=words("a")))
    for path in (Path("link"), Path("real"), tmp_path / "real"):
        assert run_query(open_catalog(path), "SELECT text FROM vocabulary").fetchall() == [("a",)]


def test_values_of_the_log_and_of_the_tables_are_never_taken_for_sql(data_root, words):
    hostile = "x'); DROP TABLE links; --"
    artifact = data_root.commit("k1", vocabulary=words(hostile))
    places = {"label": hostile, "purpose": hostile, "attempt": hostile, "error": hostile}
    data_root.log(artifact, run=hostile, **places)
    assert data_root.sql("SELECT run, purpose, text FROM vocabulary") == [(hostile, hostile, hostile)]
    assert data_root.sql("SELECT run, attempt FROM runs") == [(hostile, hostile)]


def test_a_part_in_the_log_that_is_no_table_is_no_view(data_root, words):
    artifact = data_root.commit("k1", vocabulary=words("a"))
    file = str(artifact.part("vocabulary").path.relative_to(data_root.path))
    data_root.log(artifact, files={"vocabulary": file, "x; DROP TABLE links": file, "it's": file})
    assert Counter(data_root.sql("SELECT part FROM links")) == Counter(
        [("vocabulary",), ("x; DROP TABLE links",), ("it's",)]
    )
    assert data_root.sql("SELECT text FROM vocabulary") == [("a",)]
