"""The whole quickstart, as `make demo` runs it: what it promises to a newcomer. Minutes: `pytest -m slow`."""

import json
import re
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEMPO = Path(sys.executable).with_name("tempo")


def train(data: Path) -> tuple[subprocess.CompletedProcess[str], float]:
    started = time.monotonic()
    command = [str(TEMPO), "train", "quickstart", "--data-root", str(data)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=900)
    assert done.returncode == 0, done.stderr
    return done, time.monotonic() - started


def compare_with_the_readme(data: Path) -> None:
    """The answers printed in README.md are this run's, digit by digit (on a machine of the kind that made them)."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    questions = re.findall(r'^    \$ tempo sql "([^"]*)"\n((?:    [^\n]*\n)+)', readme, re.MULTILINE)
    assert len(questions) >= 5
    for statement, shown in questions:
        if "quickstart-vllm" in statement:  # another run, and its answer has seconds
            continue
        command = [str(TEMPO), "sql", statement, "--data-root", str(data)]
        answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert [line.removeprefix("    ") for line in shown.splitlines()] == answer.splitlines()


@pytest.mark.slow
def test_tempo_overturns_the_tutors_habits_and_a_second_run_is_served_from_storage(tmp_path):
    data = tmp_path / "data"
    first, first_seconds = train(data)
    statement = "SELECT step, decoding, mean FROM scores WHERE step IN (0, 40)"
    answer = subprocess.run(
        [str(TEMPO), "sql", statement, "--format", "json", "--data-root", str(data)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    scores = {(row["step"], row["decoding"]): row["mean"] for row in map(json.loads, answer.stdout.splitlines())}
    assert scores[0, "greedy"] < 0.5
    assert 0.2 < scores[0, "sampled"] < 0.45
    assert scores[40, "greedy"] > 0.9
    assert scores[40, "sampled"] >= 0.75
    (peak,) = re.findall(r"peak memory ([\d,]+) MB", first.stdout)
    assert int(peak.replace(",", "")) < 2000
    compare_with_the_readme(data)
    second, seconds = train(data)
    assert re.search(r"all +│ +0 │", second.stdout)
    assert seconds < first_seconds / 5  # 25 s to 300 s on a slow machine, most of it Prefect's server
    table = re.compile(r"Scores of.*?└", re.DOTALL)
    assert table.findall(second.stdout) == table.findall(first.stdout)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed: make setup-vllm")
def test_on_vllm_it_learns_as_on_transformers_with_one_engine_and_checks_that_cost_next_to_nothing(tmp_path):
    data = ["--data-root", str(tmp_path / "data")]
    command = [str(TEMPO), "train", "quickstart", "--no-server", "--set", "sampler.engine=vllm", *data]
    subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=1200, check=True)
    statement = """
        SELECT (SELECT max(mean) FROM scores WHERE step = 40 AND decoding = 'sampled') AS score,
               sum(num_starts) AS starts, count(*) AS syncs, max(max_difference) AS difference,
               max(export_seconds + reload_seconds + check_seconds) FILTER (num_starts = 0) AS seconds,
               median(check_seconds) / (
                   SELECT median(seconds) FROM (
                       SELECT sum(seconds) AS seconds FROM stage_runs WHERE purpose = 'train' AND step > 0 GROUP BY step
                   )
               ) AS share
        FROM weight_syncs WHERE is_new"""
    answer = subprocess.run(
        [str(TEMPO), "sql", statement, "--format", "json", *data], capture_output=True, text=True, check=True
    )
    figures = json.loads(answer.stdout)
    assert figures["score"] >= 0.75
    assert (figures["starts"], figures["syncs"]) == (1, 41)  # the warm-started policy, and one after each of 40 steps
    assert figures["difference"] < 1e-3
    assert figures["seconds"] < 2
    assert figures["share"] < 0.02


@pytest.mark.slow
def test_ppo_learns_and_so_does_its_critic(tmp_path):
    """The explained variance is that of values on rollouts the critic has not seen, before the update on them.

    It rises to 0: the critic learns the mean reward; whether a step of a chain is right it does not in 160 updates.
    """
    data = ["--data-root", str(tmp_path / "data")]
    command = [str(TEMPO), "train", "quickstart", "--no-server", "--set", "estimator=ppo", *data]
    subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=900, check=True)
    statement = """
        SELECT avg(explained_variance) FILTER (step <= 5) AS before,
               avg(explained_variance) FILTER (step > 20) AS after,
               avg(value_loss) FILTER (step <= 5) AS loss_before, avg(value_loss) FILTER (step > 35) AS loss_after,
               (SELECT max(mean) FROM scores WHERE step = 40 AND decoding = 'sampled') AS score
        FROM updates WHERE phase = 'training'"""
    answer = subprocess.run(
        [str(TEMPO), "sql", statement, "--format", "json", *data], capture_output=True, text=True, check=True
    )
    figures = json.loads(answer.stdout)
    assert figures["after"] > figures["before"] + 0.01
    assert figures["loss_after"] < 0.8 * figures["loss_before"]
    assert figures["score"] >= 0.7
