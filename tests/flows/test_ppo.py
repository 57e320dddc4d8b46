"""PPO as a person runs it, reduced: a critic beside the policy, stored, dropped, rebuilt and credited again."""

import dataclasses
import hashlib
import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows.history import stored_experiment
from flows.loop import train_experiment
from flows.planning import learn_makers, request_rerun
from flows.run import at_attempt
from flows.takes import Rerun
from storage.artifact import Artifact, Store
from storage.catalog import open_catalog
from tasks.experiment import load_experiment
from tasks.rebuilding import rebuild
from tasks.stage import Run

Tempo = Callable[..., tuple[int, str, str]]
PPO = ["estimator=ppo", "steps=3", "benchmarks=[]", "critic.learning_rate=1e-3", "critic.warmup_steps=1"]


def train(data: Path, learning: list[str], *overrides: str) -> None:
    train_experiment(load_experiment("quickstart", [*learning, *PPO, *overrides]), data, uses_prefect=False)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, learning: list[str]) -> Path:
    data = tmp_path_factory.mktemp("ppo") / "data"
    train(data, learning)
    return data


@pytest.fixture
def ppo(trained: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, to be changed."""
    return Path(shutil.copytree(trained, tmp_path / "data", symlinks=True))


def query(data: Path, statement: str) -> list[tuple[Any, ...]]:
    return open_catalog(data).execute(statement).fetchall()


def ran_since(data: Path, line: int) -> list[tuple[int, str, str]]:
    return query(
        data, f"SELECT step, purpose, stage FROM stage_runs WHERE outcome = 'ran' AND line > {line} ORDER BY line"
    )


def num_lines(data: Path) -> int:
    return len((data / "log.jsonl").read_text().splitlines())


def test_every_token_has_a_value_a_return_and_an_advantage_and_every_update_the_critic_s_figures(trained: Path):
    complete = """
        SELECT count(*), count(*) FILTER (len("values") = len(token_ids) AND len(token_returns) = len(token_ids)
                                          AND len(token_advantages) = len(token_ids))
        FROM rollouts JOIN signals USING (run, step, rollout_id) JOIN advantages USING (run, step, rollout_id)"""
    assert query(trained, complete) == [(3 * 6 * 4, 3 * 6 * 4)]  # steps x prompts x completions
    # lambda = 1: what a critic should learn is the reward, at every token
    off = "SELECT max(abs(r - reward)) FROM (SELECT unnest(token_returns) AS r, reward FROM advantages)"
    assert query(trained, off)[0][0] < 1e-6
    figures = "count(value_loss), count(value_clip_fraction), count(explained_variance), count(critic_grad_norm)"
    phases = f"SELECT step, phase, count(entropy), {figures} FROM updates WHERE step > 0 GROUP BY ALL ORDER BY ALL"
    assert query(trained, phases) == [(1, "critic_warmup", 0, 2, 2, 2, 2), *(
        (step, "training", 2, 2, 2, 2, 2) for step in (2, 3)
    )]  # fmt: skip
    policies = "SELECT step, policy = parent FROM policies WHERE origin = 'training' ORDER BY step"
    assert query(trained, policies) == [(1, True), (2, False), (3, False)]
    assert query(trained, "SELECT step FROM stage_runs WHERE stage = 'critic'") == [(0,)]


def test_a_finished_run_is_all_hits_and_only_what_the_critic_changes_would_run(tempo: Tempo, trained: Path):
    assert tempo("plan", "quickstart", "--data-root", trained, *shlex.split(settings(trained)))[0] == 0
    code, out, _ = tempo("plan", "quickst", "--data-root", trained, "--set", "critic.value_clip=0.2")
    assert code == 3
    first = next(line for line in out.splitlines() if " run " in line)
    assert re.match(r"step +1  training +run .*critic_config\.value_clip 0\.5 -> 0\.2", first)


@pytest.mark.parametrize(("stage", "step"), [("critic", 0), ("signals", 2)])
def test_its_stages_can_be_computed_again_alone(ppo: Path, stage: str, step: int):
    before = num_lines(ppo)
    experiment, asked = request_rerun(ppo, "quickstart", Rerun(from_stage=stage, step=step))
    train_experiment(experiment, ppo, uses_prefect=False, rerun=asked)
    assert ran_since(ppo, before) == [(step, "train", stage)]  # the same bytes: nothing after it


def settings(data: Path) -> str:
    """--set options that give the stored run's own experiment."""
    experiment = stored_experiment(data, "quickstart")
    chosen = ["estimator", "steps", "prompts_per_step", "group_size", "evaluate_every"]
    tree = {name: getattr(experiment, name) for name in chosen}
    for section in ("train", "critic", "arithmetic", "warm_start", "evaluation"):
        values = dataclasses.asdict(getattr(experiment, section))
        tree |= {f"{section}.{key}": value for key, value in values.items() if value is not None}
    return " ".join(f"--set {k}={str(v).lower() if isinstance(v, bool) else v}" for k, v in tree.items()) + (
        " --set 'benchmarks=[]'"
    )


def test_a_dropped_critic_is_rebuilt_with_its_policy_bit_by_bit(ppo: Path, learning: list[str]):
    def weights(artifact: Artifact) -> dict[str, str]:
        files = [file for name in parts for file in artifact.part(name).path.rglob("*") if file.is_file()]
        return {str(f.relative_to(artifact.path)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}

    parts = ("checkpoint", "critic", "optimizer")
    keys = query(ppo, "SELECT DISTINCT step, key FROM links WHERE stage = 'training' ORDER BY step")
    found = {step: Artifact("training", key, Store(ppo).path_of("training", key)) for step, key in keys}
    before = weights(found[2])
    assert {"critic/model.safetensors", "optimizer/critic.safetensors"} <= set(before)
    train(ppo, learning, "keep_policies=last(1)")
    assert found[2].dropped == set(parts)
    assert not any(found[2].part(name).path.exists() for name in parts)
    experiment = stored_experiment(ppo, "quickstart")
    run = at_attempt(Run("quickstart", "", Store(ppo)), experiment, None)
    learn_makers(run, experiment)
    rebuild(run, found[2])
    assert weights(found[2]) == before


def test_other_settings_of_ppo_are_credited_from_the_stored_values(tempo: Tempo, ppo: Path):
    before = num_lines(ppo)
    code, _, err = tempo("recredit", "quickstart", "--set", "credit.gae_lambda=0.5", "--no-server", "--data-root", ppo)
    assert code == 0, err
    assert ran_since(ppo, before) == [(step, "recredit", "credit") for step in (1, 2, 3)]


def test_hepo_asks_the_policies_that_sampled_for_their_entropies_dropped_ones_too(
    tempo: Tempo, ppo: Path, learning: list[str]
):
    train(ppo, learning, "keep_policies=last(1)")
    before = num_lines(ppo)
    code, _, err = tempo("recredit", "quickstart", "--estimator", "hepo", "--no-server", "--data-root", ppo)
    assert code == 0, err
    assert ran_since(ppo, before) == [(s, "recredit", stage) for s in (1, 2, 3) for stage in ("signals", "credit")]
    # 20 % of a step's tokens have credit, unless their group has none: never more
    share = """
        SELECT step, count(*) FILTER (x <> 0) <= ceil(0.2 * count(*)), count(*) FILTER (x <> 0) > 0
        FROM (SELECT step, unnest(token_advantages) AS x FROM advantages WHERE estimator = 'hepo') GROUP BY step"""
    assert sorted(query(ppo, share)) == [(step, True, True) for step in (1, 2, 3)]
    sampled_by = """
        SELECT count(*), count(*) FILTER (len(entropies) = len(token_ids)) FROM rollouts
        JOIN signals s USING (run, step, rollout_id) WHERE s.purpose = 'recredit'"""
    assert query(ppo, sampled_by) == [(72, 72)]


def test_ppo_cannot_be_credited_without_a_critic_s_values(tempo: Tempo, stored: Path):
    log = (stored / "log.jsonl").read_bytes()
    code, _, err = tempo("recredit", "quickstart", "--estimator", "ppo", "--no-server", "--data-root", stored)
    assert code == 2
    assert "'ppo' needs a critic's values of every token, and the run 'quickstart' has none at step 1" in err
    assert "tempo train EXPERIMENT --set estimator=ppo --set run=NAME" in err
    assert (stored / "log.jsonl").read_bytes() == log


def test_the_lineage_of_a_score_names_the_critic_and_its_signals(tempo: Tempo, ppo: Path, learning: list[str]):
    train(ppo, learning, 'benchmarks=["arithmetic"]', "evaluation.greedy=false", "evaluate_every=0")
    code, out, _ = tempo("sql", "--query", "lineage", "--run", "quickstart", "--format", "json", "--data-root", ppo)
    assert code == 0
    what = {(row["step"], row["stage"]): row["what"] for row in map(json.loads, out.splitlines())}
    assert what[0, "critic"] == "own backbone"
    assert what[3, "signals"] == '["values"]'


@pytest.mark.parametrize("wild", [["train.learning_rate=1e30"], ["critic.learning_rate=1e30", "estimator=ppo"]])
def test_a_refused_update_keeps_its_mini_batch_and_prints_the_query_that_shows_it(
    tempo: Tempo, trained: Path, tmp_path: Path, learning: list[str], wild: list[str]
):
    """At a learning rate of 1e30 the first update makes weights whose products overflow: the second has no gradient."""
    data = Path(shutil.copytree(trained, tmp_path / "it's $here", symlinks=True))  # the warm start is there already
    wild = [*wild, "run=wild", "steps=1", "benchmarks=[]"]
    options = [argument for setting in [*learning, *wild] for argument in ("--set", setting)]
    code, _, err = tempo("train", "quickstart", "--no-server", "--data-root", data, *options)
    assert code == 1
    assert "update 1 of the step was refused" in err
    assert "the update was not applied" in err
    assert query(data, "SELECT stage, outcome FROM stage_runs ORDER BY line DESC LIMIT 1") == [("training", "failed")]
    assert list((data / "artifacts" / ".staging").iterdir()) == []
    (file,) = (data / "evidence").iterdir()
    assert f"kept in {file}" in err
    command = shlex.split(err.strip().splitlines()[-1].replace("\\$", "$"))  # as a shell reads it
    code, out, _ = tempo(*command[1:], "--format", "json")
    assert code == 0
    assert len(out.splitlines()) == 10
    rows = (
        "SELECT count(*), count(DISTINCT rollout_id), sum(len(trainer_logprobs) - len(sampler_logprobs)), "
        f"sum(len(advantages) - len(sampler_logprobs)) FROM read_parquet('{str(file).replace(chr(39), chr(39) * 2)}')"
    )
    assert query(data, rows) == [(12, 12, 0, 0)]  # half of the step's 6 prompts x 4 completions
    assert tempo("fsck", "--data-root", data)[0] == 0
    code, out, _ = tempo("gc", "--data-root", data, "--delete")
    assert "evidence of updates that were refused" in out
    assert not file.exists()
