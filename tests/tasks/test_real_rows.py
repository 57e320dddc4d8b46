"""Real rows of the Hub's sets, where a mirror of them is beside the project: what they hold, and what they share."""

import re
from collections import Counter
from pathlib import Path

import datasets
import pytest

from tasks.config import Experiment
from tasks.core.overlap import Shared, find_shared
from tasks.core.verifiers import get_verifier
from tasks.datasets import DATASETS, Example, available_benchmarks, dataset_source

HUB = Path(__file__).resolve().parents[3] / "shared" / "hub"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def needs(name: str) -> pytest.MarkDecorator:
    hub_id = str(DATASETS[name].hub_id)
    return pytest.mark.skipif(not (HUB / hub_id).is_dir(), reason=f"no mirror of {hub_id} in {HUB}")


def real(name: str, *, is_benchmark: bool = True) -> list[Example]:
    experiment = Experiment(run="test", hub_root=str(HUB))
    return dataset_source(experiment, name, is_benchmark=is_benchmark).examples()


@needs("gsm8k")
def test_every_second_row_of_gsm8k() -> None:
    assert len(real("gsm8k", is_benchmark=False)) == 3737  # of 7473
    assert len(real("gsm8k")) == 660  # of 1319


@needs("gsm8k")
def test_two_of_gsm8k_s_test_questions_share_13_words_with_training_questions_and_none_is_one() -> None:
    test, train = real("gsm8k"), real("gsm8k", is_benchmark=False)
    shared = find_shared([example.question for example in test], [example.question for example in train])
    # a plane for a train ("in 3 hours. At the same rate, ..."), and Max for Bella, who buy stamps
    assert shared == [Shared(301, 657, False, 7), Shared(316, 10, False, 13)]


@needs("gsm_hard")
def test_every_second_row_of_gsm_hard() -> None:
    answers = [example.answer for example in real("gsm_hard")]
    assert len(answers) == 660  # of 1319
    assert all(re.fullmatch(r"-?\d+(\.\d+)?", answer) for answer in answers)
    assert sum("." in answer for answer in answers) == 153
    assert max(answers, key=float) == "9284017268534.4"


@needs("medqa")
def test_every_second_row_of_medqa() -> None:
    examples = real("medqa")
    assert len(examples) == 637  # of 1273
    assert {example.answer for example in examples} == set("ABCD")


@needs("medmcqa")
def test_every_fourth_row_of_medmcqa() -> None:
    examples = real("medmcqa")
    assert Counter(example.answer for example in examples) == {"A": 346, "B": 265, "C": 236, "D": 199}  # 1046 of 4183
    assert sum(len(set(example.options)) < 4 for example in examples) == 7  # an option repeated: kept


@needs("mmlu_medical")
def test_every_second_row_of_mmlu_s_medical_subjects() -> None:
    counts = Counter(example.subject for example in real("mmlu_medical"))
    assert counts == {
        "anatomy": 68,  # of 135
        "clinical_knowledge": 133,  # of 265
        "college_biology": 72,  # of 144
        "college_medicine": 87,  # of 173
        "medical_genetics": 50,  # of 100
        "professional_medicine": 136,  # of 272
    }


@pytest.mark.skipif(not HUB.is_dir(), reason=f"no mirror in {HUB}")
def test_every_set_that_is_there_can_be_judged_by_its_verifier() -> None:
    present, _ = available_benchmarks(str(HUB))
    assert present
    for name in present:
        verifier = get_verifier(DATASETS[name].verifier)
        for example in real(name):
            verifier.check_answer(example.answer)
