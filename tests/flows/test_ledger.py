"""The prompt ledger and the lineage: nothing is drawn twice or lost unseen, and scores say where they come from."""

import json
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from flows.loop import train_experiment
from storage.catalog import open_catalog
from tasks.core.arithmetic import make_problems
from tasks.core.verdict import Judgement
from tasks.core.verifiers import VERIFIERS
from tasks.core.verifiers.arithmetic import ArithmeticVerifier
from tasks.experiment import load_experiment

NUM_TRAIN, PER_STEP, STEPS = 24, 4, 4


class Fussy(ArithmeticVerifier):
    """Fails on prompts whose answer is 1 or 2."""

    name = "fussy"

    def judge(self, completion: str, answer: str, *, is_truncated: bool, options: Sequence[str] = ()) -> Judgement:
        if answer in ("1", "2"):
            raise TimeoutError("no verdict for this one")
        return super().judge(completion, answer, is_truncated=is_truncated)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Two- and three-term chains of which the long ones are dropped, more than one epoch of the rest."""
    root = tmp_path_factory.mktemp("ledger") / "data"
    settings = [
        f"arithmetic.num_train={NUM_TRAIN}", "arithmetic.num_test=4",
        "arithmetic.min_terms=2", "arithmetic.max_terms=3",
        "prompts.max_tokens=4", "prompts.overlong=drop", "verifier=fussy", "contracts.max_null_verdicts=1.0",
        f"prompts_per_step={PER_STEP}", "group_size=3", f"steps={STEPS}", "train.updates_per_step=2",
        "warm_start.updates=30", "warm_start.batch_size=16", "benchmarks=[]",
    ]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(VERIFIERS, "fussy", Fussy())
        train_experiment(load_experiment("quickstart", settings), root, uses_prefect=False)
        yield root


def test_every_prompt_of_every_epoch_has_one_row_that_says_what_became_of_it(data):
    problems = make_problems(NUM_TRAIN, split="train", min_terms=2, max_terms=3, seed=0)
    answers = {f"arithmetic/train/{i:06d}": p.answer for i, p in enumerate(problems) if len(p.prompt) <= 4}
    rows = open_catalog(data).execute(
        "SELECT epoch, prompt_id, num_groups, num_completions, num_judged, num_unassigned, num_credited, num_updates, "
        "outcome FROM prompt_ledger"
    )
    ledger = {(row[0], row[1]): row[2:] for row in rows.fetchall()}
    drawn, num_prompts = PER_STEP * STEPS, len(answers)
    assert num_prompts < drawn < 2 * num_prompts  # more than one epoch, less than two: a step spans both
    assert len(ledger) == 2 * NUM_TRAIN
    outcomes = Counter(row[-1] for row in ledger.values())
    assert outcomes["too long"] == 2 * (NUM_TRAIN - num_prompts)
    assert outcomes["waiting"] == 2 * num_prompts - drawn
    assert outcomes["in progress"] == 0
    for (epoch, prompt_id), (groups, completions, judged, unassigned, credited, updates, outcome) in ledger.items():
        if outcome in ("too long", "waiting"):
            assert (groups, completions, judged, credited, updates) == (0, 0, 0, 0, 0)
            assert (outcome == "too long") == (prompt_id not in answers)
            assert epoch == 1 or outcome != "waiting"
        elif answers[prompt_id] in ("1", "2"):
            assert (groups, completions, judged, unassigned, credited, updates) == (1, 3, 3, 3, 0, 0)
            assert outcome == "null verdicts"
        else:
            assert (groups, completions, judged, unassigned, credited, updates) == (1, 3, 3, 0, 3, 1)
            assert outcome in ("trained", "no signal")
    assert outcomes["null verdicts"] > 0


def test_the_epoch_of_a_draw_is_the_number_of_earlier_draws_of_its_prompt(data):
    rows = open_catalog(data).execute(
        "SELECT epoch, row_number() OVER (PARTITION BY prompt_id ORDER BY step) - 1 "
        "FROM (SELECT DISTINCT step, epoch, prompt_id FROM rollouts WHERE purpose = 'train')"
    )
    pairs = rows.fetchall()
    assert len(pairs) == PER_STEP * STEPS
    assert all(epoch == earlier for epoch, earlier in pairs)


def test_the_stored_query_adds_the_ledger_up(tempo, data):
    code, out, _ = tempo("sql", "--query", "prompt_ledger", "--run", "quick", "--data-root", data, "--format", "json")
    assert code == 0
    rows = [json.loads(line) for line in out.splitlines()]
    assert sum(row["prompts"] for row in rows) == 2 * NUM_TRAIN
    drawn = [row for row in rows if row["most_groups"]]
    assert {(row["most_groups"], row["not_judged"], row["not_credited"]) for row in drawn} == {(1, 0, 0)}


# --- lineage


def test_the_lineage_leads_from_the_score_to_the_dataset_with_code_and_packages(tempo, stored):
    code, out, _ = tempo("sql", "--query", "lineage", "--run", "quickstart", "--data-root", stored, "--format", "json")
    assert code == 0
    rows = [json.loads(line) for line in out.splitlines()]
    counts = Counter((row["stage"], row["purpose"]) for row in rows)
    # the two scores of the last step with their verdicts and rollouts, one set of benchmark prompts; 4 stages in each
    # of 4 steps; and what was before them
    assert counts == {
        ("evaluation", "eval"): 2, ("verification", "eval"): 2, ("generation", "eval"): 2, ("prompts", "eval"): 1,
        ("generation", "train"): 4, ("verification", "train"): 4, ("credit", "train"): 4, ("training", "train"): 4,
        ("prompts", "train"): 1, ("warm_start", "train"): 1, ("demonstrations", "train"): 1, ("policy", "train"): 1,
    }  # fmt: skip
    what = {row["stage"]: row["what"] for row in rows if row["purpose"] == "train"}
    assert what["prompts"] == "arithmetic train at revision 1"
    assert what["verification"] == "arithmetic version 1"
    assert what["credit"] == "tempo"
    assert what["policy"] == "builtin/tiny-qwen3"
    assert next(row for row in rows if row["stage"] == "evaluation")["what"].endswith(" over 8 prompts x 1")
    assert {row["made_by"] for row in rows} == {"quickstart"}
    (packages,) = {row["packages"] for row in rows}
    assert {"torch", "transformers", "prefect"} < set(json.loads(packages))
    assert len({row["commit"] for row in rows}) == 1


def test_what_another_run_made_is_named_as_its_work(data, stored, learning, tmp_path, tempo):
    import shutil

    root = Path(shutil.copytree(stored, tmp_path / "shared"))
    settings = [*learning, "run=second", "estimator=grpo"]
    train_experiment(load_experiment("quickstart", settings), root, uses_prefect=False)
    _, out, _ = tempo("sql", "--query", "lineage", "--run", "second", "--data-root", root, "--format", "json")
    makers = {(row["stage"], row["step"], row["made_by"]) for row in map(json.loads, out.splitlines())}
    assert ("generation", 1, "quickstart") in makers
    assert ("verification", 1, "quickstart") in makers
    assert ("credit", 1, "second") in makers


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--query", "lineage"], "expected --run RUN"),
        (["--query", "lineag", "--run", "quickstart"], "no query 'lineag'; expected one of branch_statistics, costs"),
        (["SELECT 1", "--query", "lineage", "--run", "quickstart"], "expected a statement or --query NAME, got both"),
        (["SELECT 1", "--run", "quickstart"], "--run belongs to --query NAME"),
        (["--query", "lineage", "--run", "nobody"], "'nobody' is no stored run"),
    ],
)
def test_a_stored_query_that_cannot_be_answered_says_what_is_missing(tempo, stored, arguments, expected):
    code, _, err = tempo("sql", *arguments, "--data-root", stored)
    assert code == 2
    assert expected in err


def test_every_stored_query_is_answered_on_a_real_run_and_listed_with_its_sentence(tempo, stored, tmp_path):
    from storage.catalog import named_queries

    root = shutil.copytree(stored, tmp_path / "data", symlinks=True)
    assert tempo("recredit", "quickstart", "--verifier", "exact", "--no-server", "--data-root", root)[0] == 0
    _, listing, _ = tempo("sql", "--data-root", root)
    for name, sentence in named_queries().items():
        code, out, err = tempo("sql", "--query", name, "--run", "quickstart", "--data-root", root)
        assert code == 0, err
        assert len(out.splitlines()) > 3
        assert sentence in listing
