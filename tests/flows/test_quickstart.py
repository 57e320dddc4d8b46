"""The main job as a person runs it, reduced: the command line, a real Prefect server, resuming, refusing."""

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEMPO = Path(sys.executable).with_name("tempo")
REDUCED = [
    "steps=3",
    "prompts_per_step=6",
    "group_size=4",
    "train.updates_per_step=2",
    "evaluate_every=2",
    "arithmetic.num_train=48",
    "arithmetic.num_test=8",
    "warm_start.updates=6",
    "warm_start.batch_size=16",
    "evaluation.num_samples=2",
]
SETTINGS = [argument for setting in REDUCED for argument in ("--set", setting)]
NUM_STAGES = 4 + 2 + 3 * 4 + 3 * (1 + 2 * 3)
"""Stage executions of the reduced run: 4 before the first step, the benchmark's prompts and their separation from the
training's, 4 in each of 3 steps, and for the scores of steps 0, 2 and 3 the prompts and generation, verification and
evaluation of each of 2 decodings: 39."""


def environment(tmp_path: Path) -> dict[str, str]:
    """No configured server, no colours, and a home without Prefect profiles."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT", "TEMPO"))}
    return kept | {"HOME": str(tmp_path), "PREFECT_PROFILES_PATH": str(tmp_path / "none.toml"), "NO_COLOR": "1"}


def tempo(tmp_path: Path, *arguments: str, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(TEMPO), *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=ROOT,
        env=environment(tmp_path),
        stdin=subprocess.DEVNULL,
    )


def sql(tmp_path: Path, data: Path, statement: str) -> list[dict[str, object]]:
    done = tempo(tmp_path, "sql", statement, "--format", "json", "--data-root", str(data))
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


CONTENTS = (
    "SELECT stage, step, purpose, label, outputs FROM stage_runs WHERE outcome <> 'failed' "
    "QUALIFY row_number() OVER (PARTITION BY stage, step, purpose, label ORDER BY line DESC) = 1 "
    "ORDER BY stage, step, purpose, label"
)
"""The content digest of every part of every stage: equal tables mean equal rows, weights and scores."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, subprocess.CompletedProcess[str]]:
    """A reduced quickstart that ran to its end under a Prefect server of its own: (home, data root, output)."""
    home = tmp_path_factory.mktemp("home")
    data = tmp_path_factory.mktemp("data root's") / "data"
    done = tempo(home, "train", "quickstart", "--data-root", str(data), *SETTINGS)
    assert done.returncode == 0, done.stderr
    return home, data, done


def test_the_run_prints_progress_a_closing_table_and_three_commands_without_noise(finished):
    _, data, done = finished
    assert len(re.findall(r"^step +\d/3  accuracy", done.stderr, re.MULTILINE)) == 3
    assert "Scores of quickstart" in done.stdout
    assert str(data) in done.stdout
    assert len(re.findall(r"^  \S*tempo (sql|train) ", done.stdout, re.MULTILINE)) == 3
    for noise in ("Traceback", "Warning", "WARNING", "leaked", "Error logging"):
        assert noise not in done.stdout + done.stderr


def test_every_table_is_filled_and_its_rows_join(finished):
    home, data, _ = finished
    (row,) = sql(
        home,
        data,
        """
        WITH train AS (FROM rollouts WHERE purpose = 'train')
        SELECT (SELECT count(*) FROM train) AS rollouts,
               (SELECT count(*) FROM train JOIN verdicts USING (run, step, rollout_id)) AS judged,
               (SELECT count(*) FROM train JOIN advantages USING (run, step, rollout_id)) AS credited,
               (SELECT count(*) FROM train JOIN prompts USING (run, prompt_id)) AS asked,
               (SELECT count(*) FROM prefix_nodes WHERE parent IS NULL) AS trees,
               (SELECT count(*) FROM updates WHERE phase = 'training') AS updates,
               (SELECT count(DISTINCT policy) FROM policies) AS policies,
               (SELECT count(*) FROM scores) AS scores
        """,
    )
    # 3 steps x 6 prompts x 4 completions = 72; 18 groups; 3 x 2 updates; first, warm-started and 3 trained policies;
    # 3 evaluations x 2 decodings.
    complete = {"rollouts": 72, "judged": 72, "credited": 72, "asked": 72}
    assert row == complete | {"trees": 18, "updates": 6, "policies": 5, "scores": 6}


def test_token_credit_adds_up_to_the_reward_minus_the_group_mean(finished):
    home, data, _ = finished
    rows = sql(
        home,
        data,
        "SELECT abs(sum(t.td) - (any_value(t.reward) - any_value(a.group_mean))) AS error FROM token_credit t "
        "JOIN advantages a USING (run, step, rollout_id) GROUP BY t.run, t.step, t.rollout_id",
    )
    assert len(rows) == 72
    assert max(row["error"] for row in rows) < 1e-6


def test_prefect_keeps_readable_names_and_states_of_every_stage(finished):
    _, data, _ = finished
    with sqlite3.connect(data / "prefect" / "prefect.db") as database:
        names = database.execute("SELECT name, state_name FROM task_run").fetchall()
        flows = database.execute("SELECT name, state_name FROM flow_run").fetchall()
    assert flows[0] == ("train quickstart", "Completed")
    assert ("step 001 generation", "Completed") in names
    assert ("step 002 evaluation arithmetic greedy", "Completed") in names
    assert len(names) == NUM_STAGES


def test_the_local_server_is_stopped_when_the_command_ends(finished):
    _, data, _ = finished
    assert not (data / "prefect" / "server.json").exists()
    running = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert str(data / "prefect") not in running


def test_run_again_every_stage_is_cached_and_the_numbers_are_the_same(finished):
    home, data, first = finished
    before = sql(home, data, CONTENTS)
    again = tempo(home, "train", "quickstart", "--data-root", str(data), *SETTINGS)
    assert again.returncode == 0, again.stderr
    assert re.search(rf"all +│ +0 │ +{NUM_STAGES} │", again.stdout)
    assert sql(home, data, CONTENTS) == before
    with sqlite3.connect(data / "prefect" / "prefect.db") as database:
        (cached,) = database.execute("SELECT count(*) FROM task_run WHERE state_name = 'Cached'").fetchone()
    # the first command found the test prompts of steps 0, 2 and 3 in storage; the second found all stages there
    assert cached == 3 + NUM_STAGES
    scores = re.search(r"Scores of.*?└", first.stdout, re.DOTALL)
    assert scores is not None
    assert scores.group() in again.stdout


@pytest.mark.slow  # the short form is tests/flows/test_violence.py
def test_killed_with_9_and_run_again_it_ends_with_the_same_contents(finished, tmp_path):
    home, data, _ = finished
    broken = tmp_path / "data"
    for delay in (0.1, 1.2, 2.5):  # seconds after the stages begin: in the first ones, the warm start, the steps
        command = subprocess.Popen(
            [str(TEMPO), "train", "quickstart", "--no-server", "--data-root", str(broken), *SETTINGS],
            cwd=ROOT, env=environment(tmp_path), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        deadline = time.monotonic() + 60
        while not (broken / "log.jsonl").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(delay)
        command.kill()
        command.wait(30)
    done = tempo(tmp_path, "train", "quickstart", "--no-server", "--data-root", str(broken), *SETTINGS)
    assert done.returncode == 0, done.stderr
    assert sql(tmp_path, broken, CONTENTS) == sql(home, data, CONTENTS)
    assert list((broken / "artifacts" / ".staging").iterdir()) == []


@pytest.mark.parametrize(
    "stop",
    [
        pytest.param(signal.SIGINT, id="ctrl-c"),
        pytest.param(signal.SIGTERM, id="sigterm", marks=pytest.mark.slow),  # in CI a cancelled deployment gets it
    ],
)
def test_a_polite_stop_ends_cleanly_and_says_how_to_go_on(tmp_path, stop):
    data = tmp_path / "data"
    command = subprocess.Popen(
        [str(TEMPO), "train", "quickstart", "--data-root", str(data), *SETTINGS, "--set", "warm_start.updates=500"],
        cwd=ROOT, env=environment(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # tests in the background inherit its absence
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not list(data.glob("artifacts/demonstrations/*/manifest.json")) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(1)
    command.send_signal(stop)
    _, errors = command.communicate(timeout=60)
    assert command.returncode == 130
    assert "Stopped. Every finished stage is stored; go on from there with:" in errors
    assert f"tempo train quickstart --data-root {data} --set steps=3" in errors
    assert "Traceback" not in errors
    (state,) = sql(tmp_path, data, "SELECT state FROM runs")
    assert state == {"state": "interrupted"}
    assert not (data / "prefect" / "server.json").exists()


def test_a_second_command_on_the_same_run_is_told_who_holds_it(tmp_path):
    data = tmp_path / "data"
    holder = subprocess.Popen(
        [str(TEMPO), "train", "quickstart", "--no-server", "--set", "warm_start.updates=5000", "--data-root", data],
        cwd=ROOT, env=environment(tmp_path), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while not (data / "log.jsonl").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        second = tempo(tmp_path, "train", "quickstart", "--no-server", "--data-root", str(data), *SETTINGS)
        assert second.returncode == 1
        assert f"'quickstart' is already being worked on by process {holder.pid}" in second.stderr
        assert "--set run=NAME" in second.stderr
    finally:
        holder.kill()
        holder.wait(30)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["train", "quickstrat"], "did you mean 'quickstart'?"),
        (["train", "quickstart", "--set", "train.lerning_rate=1"], "did you mean 'train.learning_rate'?"),
        (["train", "quickstart", "--set", "group_size=0"], "group_size: expected a whole number at least 1, got 0"),
        (["train", "quickstart", "--set", "dataset=gsm9k"], "did you mean 'gsm8k'?"),
        (["train", "quickstart", "--set", "policy=./nowhere"], "no checkpoint folder './nowhere'"),
        (
            ["train", "gsm8k", "--set", "policy=builtin/tiny-qwen3", "--set", "hub_root=/nowhere"],
            "which does not exist",
        ),
        (["train", "gsm8k", "--hub-root", "/nowhere", "--set", "policy=builtin/tiny-qwen3"], "which does not exist"),
        (["train", "quickstart", "--set", "dataset=amc23"], "'amc23' is a benchmark, without a split to train on"),
        (["train", "quickstart", "--set", "prompts.max_tokens=3"], "--set prompts.overlong=drop"),
        (["train", "quickstart", "--set", "sampler.top_p=0.9"], "Set train.importance_sampling=token"),
        (["train", "quickstart", "--set", "device=gpu"], "cannot use 'gpu' here"),
        (["evaluate", "quickstart@1"], "no run has been stored"),
        (["evaluate", "quickstart"], "RUN@STEP such as quickstart@40"),
        (["sql", "SELECT 1"], "no run has been stored"),
    ],
)
def test_bad_input_gets_one_clear_error_before_any_work(tmp_path, arguments, expected):
    data = tmp_path / "data"
    server = ["--no-server"] if arguments[0] in ("train", "evaluate") else []
    done = tempo(tmp_path, *arguments, *server, "--data-root", str(data))
    assert done.returncode == 2
    assert done.stderr.startswith("tempo: ") or "overlong" in expected
    assert expected in done.stderr
    assert "Traceback" not in done.stderr
    committed = {path.parent.parent.name for path in data.glob("artifacts/*/*/manifest.json")}
    assert committed <= {"policy"}  # overlong prompts are known only once the policy's tokenizer has read them


def test_a_data_root_that_is_not_writable_is_refused_with_the_remedy(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    done = tempo(tmp_path, "train", "quickstart", "--data-root", str(tmp_path / "file" / "data"))
    assert done.returncode == 1
    assert "cannot be written to" in done.stderr
    assert "--data-root" in done.stderr


def test_a_stored_policy_is_scored_again_on_more_samples_without_training(finished):
    home, data, _ = finished
    done = tempo(
        home, "evaluate", "quickstart@2", "--no-server", "--data-root", str(data), "--set", "evaluation.num_samples=3"
    )
    assert done.returncode == 0, done.stderr
    # the run's own scores (k = 2) stay beside the new ones
    scores = sql(home, data, "SELECT k, n FROM scores WHERE step = 2 AND decoding = 'sampled' ORDER BY k")
    assert scores == [{"k": 2, "n": 8}, {"k": 3, "n": 8}]
    assert sql(home, data, "SELECT count(*) AS n FROM updates WHERE phase = 'training'") == [{"n": 6}]


def test_each_rollout_joins_exactly_one_prompt_also_in_evaluations(finished):
    home, data, _ = finished
    (row,) = sql(
        home,
        data,
        "SELECT (SELECT count(*) FROM rollouts) AS rollouts, count(*) AS joined "
        "FROM rollouts r JOIN prompts p USING (run, prompt_id)",
    )
    assert row["joined"] == row["rollouts"]


def test_other_settings_under_the_same_name_say_what_becomes_of_the_earlier_rows(tmp_path):
    data = tmp_path / "data"
    small = ["--no-server", "--data-root", str(data), *SETTINGS, "--set", "steps=1", "--set", "benchmarks=[]"]
    first = tempo(tmp_path, "train", "quickstart", *small)
    assert "stay stored" not in first.stderr
    changed = tempo(tmp_path, "train", "quickstart", *small, "--set", "train.learning_rate=1e-3")
    assert "the rows of attempt" in changed.stderr
    assert sql(tmp_path, data, "SELECT DISTINCT learning_rate FROM updates WHERE step = 1") == [{"learning_rate": 1e-3}]
    back = tempo(tmp_path, "train", "quickstart", *small)
    assert "are used again" in back.stderr
    assert sql(tmp_path, data, "SELECT DISTINCT learning_rate FROM updates WHERE step = 1") == [{"learning_rate": 2e-4}]


@pytest.mark.parametrize("way", ["prefect_server", "without_server"])
def test_analytics_are_off_before_prefect_is_imported_whatever_the_server(tmp_path, way):
    code = (
        "import os, sys; from pathlib import Path; from flows import server\n"
        "server._start, server._stop = (lambda home: 'http://127.0.0.1:1/api'), (lambda home: None)\n"
        f"with server.{way}(Path({str(tmp_path)!r})):\n"
        "    env = os.environ\n"
        "    print(env['DO_NOT_TRACK'], env['PREFECT_SERVER_ANALYTICS_ENABLED'], 'prefect' in sys.modules)"
    )
    clean = {name: value for name, value in environment(tmp_path).items() if name != "DO_NOT_TRACK"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=clean, timeout=60)
    assert done.stdout == "1 false False\n", done.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["sql"]])
def test_help_and_sql_answer_without_loading_anything_heavy(tmp_path, arguments):
    code = (
        "import sys; from flows.cli import main\n"
        f"try: main({arguments!r})\n"
        "except SystemExit: pass\n"
        "print([name for name in ('torch', 'transformers', 'prefect', 'datasets') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr
