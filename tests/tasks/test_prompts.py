"""Prompts and demonstrations: rows as the policy reads them, and the datasets that are refused."""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import processors

from tasks.config import Experiment, PromptsConfig
from tasks.core.arithmetic import CHARACTERS
from tasks.datasets import DATASETS, DatasetSource, Example, dataset_source
from tasks.demonstrations import demonstrations
from tasks.engines import policy as engine
from tasks.prompts import BadPrompts, prompts

Row = dict[str, Any]
Loop = Any  # the class of conftest.py, which a test module cannot import


def ask(loop: Loop, *, source: DatasetSource | None = None, verifier: str = "arithmetic", **config: Any) -> list[Row]:
    loop(
        "asked",
        prompts,
        source=source or dataset_source(loop.experiment, "arithmetic", is_benchmark=False),
        tokenizer=loop.part("policy", "tokenizer"),
        config=PromptsConfig(**config),
        verifier=verifier,
    )
    return loop.rows("asked", "prompts")


def test_prompts_are_the_dataset_s_rows_as_the_policy_reads_them(fresh: Loop) -> None:
    examples = dataset_source(fresh.experiment, "arithmetic", is_benchmark=False).examples()
    rows = ask(fresh)
    assert [row["prompt_id"] for row in rows] == [f"arithmetic/train/{i:06d}" for i in range(20)]
    assert [(row["prompt_text"], row["answer"]) for row in rows] == [(e.question, e.answer) for e in examples]
    for row in rows:
        assert row["prompt_token_ids"] == [CHARACTERS.index(character) + 3 for character in row["prompt_text"]]
        assert (row["template"], row["verifier"], row["split"]) == ("plain", "arithmetic", "train")


def test_a_limit_takes_the_same_rows_every_time_and_keeps_their_numbers(fresh: Loop) -> None:
    every, some = ask(fresh), ask(fresh, limit=7)
    assert len(some) == 7
    assert [row for row in every if row["prompt_id"] in {r["prompt_id"] for r in some}] == some
    assert some != every[:7]  # drawn, not cut
    assert len(ask(fresh, limit=21)) == 20


def test_overlong_prompts_are_refused_with_their_number_and_dropped_on_request(fresh: Loop) -> None:
    lengths = [len(row["prompt_token_ids"]) for row in ask(fresh)]
    num_long = lengths.count(6)  # two terms make 4 tokens ("3+5="), three make 6
    assert 0 < num_long < 20 == num_long + lengths.count(4)
    message = rf"{num_long} of 20 prompts are longer than prompts.max_tokens = 5 \(the longest has 6 tokens\)"
    with pytest.raises(BadPrompts, match=message) as error:
        ask(fresh, max_tokens=5)
    assert "--set prompts.overlong=drop" in str(error.value)
    rows = ask(fresh, max_tokens=5, overlong="drop")
    assert {len(row["prompt_token_ids"]) for row in rows} == {4}
    counts = {"num_prompts": 20 - num_long, "num_dropped": num_long, "num_too_long": num_long}
    assert fresh.artifacts["asked"].summary == counts


def test_prompts_below_the_least_number_of_tokens_are_dropped_and_counted_by_reason(fresh: Loop) -> None:
    lengths = [len(row["prompt_token_ids"]) for row in ask(fresh)]
    num_short = lengths.count(4)  # as above: 4 tokens with two terms, 6 with three
    rows = ask(fresh, min_tokens=5)
    assert {len(row["prompt_token_ids"]) for row in rows} == {6}
    counts = {"num_prompts": 20 - num_short, "num_dropped": num_short, "num_too_short": num_short}
    assert fresh.artifacts["asked"].summary == counts
    dropped = fresh.rows("asked", "dropped_prompts")
    assert {(row["reason"], row["num_tokens"]) for row in dropped} == {("too short", 4)}
    assert {row["prompt_id"] for row in dropped}.isdisjoint(row["prompt_id"] for row in rows)


def test_a_dataset_of_which_nothing_is_left_is_refused(fresh: Loop) -> None:
    with pytest.raises(
        BadPrompts, match=r"got none of 20 rows \(20 too long; prompts.min_tokens = 1, prompts.max_tokens = 3\)"
    ):
        ask(fresh, max_tokens=3, overlong="drop")
    source = dataset_source(fresh.experiment, "arithmetic", is_benchmark=False)
    assert source.arithmetic is not None
    nothing = dataclasses.replace(source, arithmetic=dataclasses.replace(source.arithmetic, num_train=0))
    with pytest.raises(BadPrompts, match="split train: the split has no rows: there is nothing to train on"):
        ask(fresh, source=nothing)


def gsm8k_mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *answers: str) -> DatasetSource:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "hub" / "openai" / "gsm8k" / "main"
    folder.mkdir(parents=True)
    rows = [json.dumps({"question": f"{i}+1=", "answer": answer}) for i, answer in enumerate(answers)]
    (folder / "train.jsonl").write_text("\n".join(rows))
    readme = "---\nconfigs:\n- config_name: main\n  data_files:\n  - split: train\n    path: main/train.jsonl\n---\n"
    (folder.parent / "README.md").write_text(readme)
    experiment = Experiment(run="test", dataset="gsm8k", hub_root=str(tmp_path / "hub"))
    return dataset_source(experiment, "gsm8k", is_benchmark=False)


def test_answers_the_verifier_cannot_compare_are_refused_with_their_rows(
    fresh: Loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = gsm8k_mirror(tmp_path, monkeypatch, "#### 7", "so\n#### 18", "#### 1,000")
    message = r"split train: 2 of 3 answers .* by the verifier 'arithmetic': row 1: .*'18'.*; row 2: .*'1000'.* Choose"
    with pytest.raises(BadPrompts, match=message):
        ask(fresh, source=source, verifier="arithmetic")
    rows = ask(fresh, source=source, verifier="gsm8k")
    assert [row["answer"] for row in rows] == ["7", "18", "1000"]
    suffix = DATASETS["gsm8k"].suffix
    assert rows[1]["prompt_text"] == f"1+1= {suffix}\n"  # an instruction, then a new line for the answer


def test_a_row_without_a_gold_answer_is_refused_by_its_number(
    fresh: Loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = gsm8k_mirror(tmp_path, monkeypatch, "#### 7", "I do not know")
    with pytest.raises(
        ValueError, match=r"dataset gsm8k, split train: 1 of 2 rows cannot be used: row 1: .*'I do not know'"
    ):
        ask(fresh, source=source, verifier="gsm8k")


def test_the_checkpoint_s_chat_template_is_used_where_there_is_one_and_adds_its_special_tokens_itself(
    make_loop: Callable[..., Loop], tmp_path: Path
) -> None:
    policy = engine.make_tiny_policy(CHARACTERS, 0)
    begin = processors.TemplateProcessing(single="<pad> $A", special_tokens=[("<pad>", 0)])
    policy.tokenizer.backend_tokenizer.post_processor = begin  # as Llama's tokenizer puts a BOS token in front
    texts = {}
    template = (
        "<pad>{{ messages[0]['role'][0] }};{{ messages[0]['content'] }}{% if add_generation_prompt %}#{% endif %}"
    )
    for name, chat_template in (("plain", None), ("chat", template)):
        policy.tokenizer.chat_template = chat_template
        engine.save_policy(policy, tmp_path / name)
        loop = make_loop(tmp_path / f"{name} data")
        loop.start(dataclasses.replace(loop.experiment, policy=str(tmp_path / name)))
        texts[name] = ask(loop)[0]
    question = texts["plain"]["prompt_text"]
    ids = [CHARACTERS.index(character) + 3 for character in question]
    assert texts["plain"]["template"] == "plain"
    assert texts["plain"]["prompt_token_ids"] == [0, *ids]
    assert texts["chat"]["template"] == "chat:" + hashlib.sha256(template.encode()).hexdigest()[:16]
    assert texts["chat"]["prompt_text"] == f"<pad>u;{question}#"
    assert texts["chat"]["prompt_token_ids"] == [0, 2, 17, *ids, 18]  # one <pad>; 'u' is unknown; ';' and '#'


def test_demonstrations_are_the_tutor_s_completions_with_an_end_of_sequence_token(fresh: Loop) -> None:
    source = dataset_source(fresh.experiment, "arithmetic", is_benchmark=False)

    def demonstrate(seed: int) -> list[Row]:
        identity = {"prompts": fresh.part("asked", "prompts"), "tokenizer": fresh.part("policy", "tokenizer")}
        fresh("demonstrations", demonstrations, source=source, seed=seed, **identity)
        return fresh.rows("demonstrations", "demonstrations")

    known = [row["prompt_id"] for row in ask(fresh, limit=3)]
    rows = demonstrate(5)
    assert [(row["prompt_id"], row["index"]) for row in rows] == [(p, i) for p in known for i in range(10)]
    tutored = {f"arithmetic/train/{e.row_index:06d}": e.solutions for e in source.examples(tutor_seed=5)}
    assert [row["text"] for row in rows] == [text for p in known for text in tutored[p]]
    for row in rows:
        assert row["token_ids"] == [*(CHARACTERS.index(character) + 3 for character in row["text"]), 1]
    assert [row["text"] for row in demonstrate(6)] != [row["text"] for row in rows]


def test_a_dataset_without_completions_to_imitate_is_refused(
    fresh: Loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = gsm8k_mirror(tmp_path, monkeypatch, "#### 7")
    bare = dataclasses.replace(DATASETS["gsm8k"], example=lambda i, row: Example(i, row["question"], "7"))
    monkeypatch.setitem(DATASETS, "gsm8k", bare)
    ask(fresh, source=source, verifier="gsm8k")
    with pytest.raises(ValueError, match=r"gsm8k brings no completions to imitate; set it to 0"):
        fresh(
            "demonstrations",
            demonstrations,
            source=source,
            prompts=fresh.part("asked", "prompts"),
            tokenizer=fresh.part("policy", "tokenizer"),
            seed=0,
        )
