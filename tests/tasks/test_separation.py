"""Which prompts of a benchmark are stored as shared with training, and what the stage says of them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

from storage.contracts import ContractBreach
from tasks.config import Experiment, PromptsConfig
from tasks.datasets import dataset_source
from tasks.prompts import prompts
from tasks.separation import separation

Loop = Any  # the class of conftest.py, which a test module cannot import

LONG = "Anna has 3 apples and buys 5 more on Monday, then gives 2 of them away. How many are left?"
OTHER = "Bella has 3 apples and buys 5 more on Monday, then gives 2 of them to Tom. How many has she?"


@pytest.fixture
def separate(
    make_loop: Callable[..., Loop], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[Loop, dict[str, Any]]]:
    """Separate GSM8K's made-up test questions from its training questions."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))

    def separate(train: list[str], test: list[str], *, allow: bool = False) -> tuple[Loop, dict[str, Any]]:
        folder = tmp_path / "hub" / "openai" / "gsm8k" / "main"
        folder.mkdir(parents=True)
        for split, questions in (("train", train), ("test", test)):
            rows = [json.dumps({"question": question, "answer": "#### 6"}) for question in questions]
            (folder / f"{split}.jsonl").write_text("\n".join(rows))
        files = "".join(f"  - split: {split}\n    path: main/{split}.jsonl\n" for split in ("train", "test"))
        (folder.parent / "README.md").write_text(f"---\nconfigs:\n- config_name: main\n  data_files:\n{files}---\n")
        loop = make_loop(tmp_path / "data")
        loop.start()
        experiment = Experiment(run="test", hub_root=str(tmp_path / "hub"))
        for name, is_benchmark in (("training", False), ("benchmark", True)):
            source = dataset_source(experiment, "gsm8k", is_benchmark=is_benchmark)
            identity = {"tokenizer": loop.part("policy", "tokenizer"), "config": PromptsConfig(), "verifier": "gsm8k"}
            loop(name, prompts, source=source, **identity)
        loop.place.run.limits.update(allow_benchmark_prompts=allow)
        loop(
            "separation",
            separation,
            prompts=loop.part("training", "prompts"),
            benchmark=loop.part("benchmark", "prompts"),
            allow_benchmark_prompts=allow,
        )
        return loop, loop.artifacts["separation"].summary

    return separate


def test_thirteen_words_in_a_row_are_stored_with_the_training_prompt_and_pass(separate: Callable[..., Any]) -> None:
    loop, summary = separate(["1+2=", OTHER], ["3+4=", LONG])
    assert summary == {"benchmark": "gsm8k", "num_prompts": 2, "num_exact": 0, "num_13gram": 1}
    (row,) = loop.rows("separation", "shared_prompts")
    assert row == {
        "benchmark_prompt_id": "gsm8k/test/000001",
        "prompt_id": "gsm8k/train/000001",
        "prompt_text": LONG,
        "kind": "13-gram",
        "num_shared_ngrams": 2,  # "has 3 ... of them" are 14 words
    }


def test_the_same_words_are_refused(separate: Callable[..., Any]) -> None:
    with pytest.raises(ContractBreach, match=r"no_benchmark_prompt_in_training.* broken by 1 rows"):
        separate(["How many eggs are 3+4?"], ["How many eggs are 3+4", LONG])


def test_allowed_ones_are_stored_and_counted(separate: Callable[..., Any]) -> None:
    loop, summary = separate(["How many eggs are 3+4?", OTHER], ["how many eggs are 3+4", LONG], allow=True)
    assert summary == {"benchmark": "gsm8k", "num_prompts": 2, "num_exact": 1, "num_13gram": 1}
    rows = loop.rows("separation", "shared_prompts")
    assert [(row["kind"], row["prompt_id"]) for row in rows] == [
        ("exact", "gsm8k/train/000000"),
        ("13-gram", "gsm8k/train/000001"),
    ]
