"""The text of a prompt: options, instruction, chat template and its switches, system message, solved examples."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

from storage.artifact import Part
from tasks.config import Experiment, PromptsConfig
from tasks.core.arithmetic import CHARACTERS
from tasks.datasets import dataset_source
from tasks.engines import policy as engine
from tasks.engines.hub import NotFound
from tasks.policy import first_policy, policy_source
from tasks.prompts import prompts
from tasks.registry import CHOICE_SUFFIX, DATASETS, MATHS_SUFFIX
from tasks.stage import Context, Summary, stage
from tasks.templates import own_answer

Loop = Any  # the class of conftest.py, which a test module cannot import
Row = dict[str, Any]

SWITCHING = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</>{% endfor %}{% if add_generation_prompt %}<assistant>"
    "{% if enable_thinking is defined and enable_thinking is false %}<think></think>{% endif %}{% endif %}"
)
"""As Qwen3's: thinking is on unless it is switched off, which is an empty thought in the assistant's turn."""
WITHOUT = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</>{% endfor %}<assistant>"

SOLUTION = "There are <<1+1=2>>2.\n#### 2"
MEDQA = {
    "question": "What helps?",
    "answer": "Rest",
    "options": {"A": "Salt", "B": "Rest", "C": "Sun", "D": "Tea"},
    "answer_idx": "B",
}


@pytest.fixture
def hub_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A mirror of GSM8K (4 training and 2 test rows), MedQA (2 and 1) and MMLU's six subjects (3 of dev and 1 each)."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    root = tmp_path / "hub"
    for name in ("openai/gsm8k/main", "GBaker/MedQA-USMLE-4-options"):
        (root / name).mkdir(parents=True)
    for split, numbers in (("train", range(4)), ("test", range(10, 12))):
        rows = [json.dumps({"question": f"How many in box {n}?", "answer": SOLUTION}) for n in numbers]
        (root / f"openai/gsm8k/main/{split}.jsonl").write_text("\n".join(rows))
    files = "".join(f"  - split: {split}\n    path: main/{split}.jsonl\n" for split in ("train", "test"))
    (root / "openai/gsm8k/README.md").write_text(f"---\nconfigs:\n- config_name: main\n  data_files:\n{files}---\n")
    solved = [MEDQA | {"question": f"What heals {n}?", "answer": "Tea", "answer_idx": "D"} for n in range(2)]
    for split, rows in {"train": solved, "test": [MEDQA]}.items():
        text = "\n".join(map(json.dumps, rows))
        (root / f"GBaker/MedQA-USMLE-4-options/{split}.jsonl").write_text(text)
    _mirror_mmlu(root / "cais/mmlu")
    return root


def _mirror_mmlu(folder: Path) -> None:
    configs = DATASETS["mmlu_medical"].configs
    for subject in configs:
        (folder / subject).mkdir(parents=True)
        for split, count in {"dev": 3, "test": 1}.items():
            rows = [
                {"question": f"{subject} {split} {n}?", "subject": subject, "choices": list("wxyz"), "answer": n}
                for n in range(count)
            ]
            (folder / subject / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    files = "".join(
        f"- config_name: {subject}\n  data_files:\n"
        + "".join(f"  - split: {split}\n    path: {subject}/{split}.jsonl\n" for split in ("dev", "test"))
        for subject in configs
    )
    (folder / "README.md").write_text(f"---\nconfigs:\n{files}---\n")


@pytest.fixture
def ask(make_loop: Callable[..., Loop], tmp_path: Path, hub_root: Path) -> Callable[..., list[Row]]:
    """The prompts of a set for a policy with a chat template (None: a base model)."""
    policy = engine.make_tiny_policy(CHARACTERS, 0)
    loops: dict[str | None, Loop] = {}

    def ask(name: str, template: str | None, *, is_benchmark: bool = True, **config: Any) -> list[Row]:
        if template not in loops:
            folder = tmp_path / f"policy {len(loops)}"
            policy.tokenizer.chat_template = template
            engine.save_policy(policy, folder)
            loops[template] = loop = make_loop(tmp_path / f"data {len(loops)}")
            source = policy_source(Experiment(run="test", policy=str(folder)))
            loop("policy", first_policy, source=source)
        loop = loops[template]
        settings = PromptsConfig(max_tokens=5000, **config)
        experiment = Experiment(run="test", hub_root=str(hub_root), prompts=settings)
        source = dataset_source(experiment, name, is_benchmark=is_benchmark)
        loop(
            "asked",
            prompts,
            source=source,
            tokenizer=loop.part("policy", "tokenizer"),
            config=settings,
            verifier="parity",
        )
        ask.loop = loop  # type: ignore[attr-defined]
        ask.key = loop.artifacts["asked"].key  # type: ignore[attr-defined]
        rows: list[Row] = loop.rows("asked", "prompts")
        return rows

    return ask


def test_a_multiple_choice_lists_its_options_between_question_and_instruction(ask: Callable[..., list[Row]]) -> None:
    (row,) = ask("medqa", None)
    assert row["prompt_text"] == f"What helps?\n\nA. Salt\nB. Rest\nC. Sun\nD. Tea\n\n{CHOICE_SUFFIX}\n"
    assert (row["question"], row["options"], row["answer"]) == ("What helps?", ["Salt", "Rest", "Sun", "Tea"], "B")
    assert CHOICE_SUFFIX.endswith("the letter of the final answer within \\boxed{}.")
    (row,) = ask("medqa", WITHOUT)
    assert row["prompt_text"].startswith("<user>What helps?\n\nA. Salt\n")
    assert row["prompt_text"].endswith(f"{CHOICE_SUFFIX}</><assistant>")


def test_a_question_has_its_instruction_on_the_same_line(ask: Callable[..., list[Row]]) -> None:
    row = ask("gsm8k", None)[0]
    assert row["prompt_text"] == f"How many in box 10? {MATHS_SUFFIX}\n"
    assert (row["question"], row["options"], row["subject"], row["level"]) == ("How many in box 10?", None, None, None)


def test_a_system_message_is_a_turn_or_stands_above_plain_text(ask: Callable[..., list[Row]]) -> None:
    asked = f"How many in box 10? {MATHS_SUFFIX}"
    assert ask("gsm8k", WITHOUT, system="Be brief.")[0]["prompt_text"] == (
        f"<system>Be brief.</><user>{asked}</><assistant>"
    )
    assert ask("gsm8k", None, system="Be brief.")[0]["prompt_text"] == f"Be brief.\n\n{asked}\n"


@pytest.mark.parametrize(("thinking", "end"), [("default", ""), ("on", ""), ("off", "<think></think>")])
def test_thinking_is_switched_in_the_chat_template(ask: Callable[..., list[Row]], thinking: str, end: str) -> None:
    assert ask("gsm8k", SWITCHING, thinking=thinking)[0]["prompt_text"].endswith(f"</><assistant>{end}")


@pytest.mark.parametrize(
    ("template", "what"), [(WITHOUT, "a chat template without the switch enable_thinking"), (None, "no chat template")]
)
def test_a_switch_that_is_not_there_is_refused(ask: Callable[..., list[Row]], template: str | None, what: str) -> None:
    with pytest.raises(ValueError, match=f"prompts.thinking: expected 'default' for this policy, .* has {what}"):
        ask("gsm8k", template, thinking="off")
    ask("gsm8k", template, thinking="default")


def test_solved_examples_are_turns_before_the_question(ask: Callable[..., list[Row]]) -> None:
    rows = ask("gsm8k", WITHOUT, few_shot=2)
    *shown, last = rows[0]["prompt_text"].removesuffix("</><assistant>").split("</><user>")
    assert last == f"How many in box 10? {MATHS_SUFFIX}"
    assert len(shown) == 2
    for turn in shown:  # GSM8K's calculator and its mark give way to the box that the instruction asks for
        question, solution = turn.removeprefix("<user>").split("</><assistant>")
        assert question.startswith("How many in box ")
        assert question.endswith(MATHS_SUFFIX)
        assert solution == "There are 2.\n\\boxed{2}"
    assert rows[1]["prompt_text"] == rows[0]["prompt_text"].replace("box 10", "box 11")  # the same for all


def test_solved_examples_stand_above_plain_text(ask: Callable[..., list[Row]]) -> None:
    text = ask("gsm8k", None, few_shot=1, system="Be brief.")[0]["prompt_text"]
    number = int(text.split("box ")[1][0])
    solved = f"How many in box {number}? {MATHS_SUFFIX}\nThere are 2.\n\\boxed{{2}}\n\n"
    assert number in range(4)
    assert text == f"Be brief.\n\n{solved}How many in box 10? {MATHS_SUFFIX}\n"


def test_a_solved_choice_is_its_letter_in_the_box_that_the_instruction_asks_for(ask: Callable[..., list[Row]]) -> None:
    (row,) = ask("medqa", None, few_shot=2)
    options = "A. Salt\nB. Rest\nC. Sun\nD. Tea"
    *shown, last = row["prompt_text"].split(f"\n\n{options}\n\n{CHOICE_SUFFIX}\n")
    assert last == ""
    solved = "\\boxed{D}\n\n"
    assert [re.sub(r"\d", "N", text) for text in shown] == [
        "What heals N?", f"{solved}What heals N?", f"{solved}What helps?"
    ]  # fmt: skip


def test_solved_examples_of_mmlu_are_of_the_prompt_s_own_subject(ask: Callable[..., list[Row]]) -> None:
    rows = ask("mmlu_medical", None, few_shot=3)
    assert len(rows) == 6
    for row in rows:
        questions = [line for line in row["prompt_text"].splitlines() if line.endswith("?")]
        assert sorted(questions[:3]) == [f"{row['subject']} dev {n}?" for n in range(3)]
        assert questions[3:] == [f"{row['subject']} test 0?"]
    expected = r"expected at most the 3 rows of mmlu_medical, split dev about anatomy, got 4"
    with pytest.raises(ValueError, match=rf"prompts\.few_shot: {expected}"):
        ask("mmlu_medical", None, few_shot=4)


NEXT = f"How many in box 7? {MATHS_SUFFIX}\nThere are 9.\n\\boxed{{9}}"
OWN = "There are 2.\n\n\\boxed{2}"
ECHO = f"How many in box 10? {MATHS_SUFFIX}"
CUT = "\nThere are 9.\n\\boxed{9}"
VERDICTS = {
    # of the prompt that asks for box 10
    f"{OWN}\n\n{NEXT}": "correct",
    f"Of \\boxed{{3}}:\n\n{OWN}\n\n{NEXT}\n\n{NEXT}": "correct",
    f"{ECHO}\n{OWN}\n\n{NEXT}": "correct",
    f"{MATHS_SUFFIX}\n{OWN}\n{NEXT}": "correct",
    # and of the one that asks for box 11
    f"There are some.\n\n{NEXT.replace('9', '2')}": "unparseable",  # 2 is what the next question asks for
    f"{OWN} {NEXT}": "correct",
    f"{OWN}\n\n{NEXT}"[: -len(CUT) - 4]: "correct",  # the length limit cut the instruction
    f"<think>{NEXT}</think>{OWN}": "correct",
}
"""What completions of GSM8K's prompts are worth that go on to a question after the one they were asked."""
CHOICES = f"\n\nA. Salt\nB. Rest\nC. Sun\nD. Tea\n\n{CHOICE_SUFFIX}\n"
OTHERS = CHOICES.replace("Tea", "Wine")


@pytest.mark.parametrize(
    ("template", "few_shot", "expected"),
    [
        (None, 1, list(VERDICTS.values())),
        # with a template the turn ends, and without solved examples nothing shows how the next question begins
        (WITHOUT, 1, ["wrong"] * 4 + ["correct", "wrong", "correct", "correct"]),
        (None, 0, ["wrong"] * 4 + ["correct", "wrong", "correct", "correct"]),
    ],
)
def test_a_base_model_that_asks_itself_the_next_question_is_judged_by_its_own_answer(
    ask: Callable[..., list[Row]], template: str | None, few_shot: int, expected: list[str]
) -> None:
    ask("gsm8k", template, few_shot=few_shot)
    loop = ask.loop  # type: ignore[attr-defined]

    @stage("written", version=1)
    def written(context: Context, *, rollouts: Part) -> Summary:
        rows = rollouts.read()
        columns = {name: rows.column(name) for name in rows.column_names}
        context.staging.add_table("rollouts", columns | {"text": [*VERDICTS]})
        return {}

    loop.sample("sampled", "policy", step=None, asked="asked")
    loop("rollouts", written, rollouts=loop.part("sampled", "rollouts"))
    loop.judge("verdicts", "rollouts", "gsm8k", asked="asked")
    assert [row["status"] for row in loop.rows("verdicts", "verdicts")] == expected


@pytest.mark.parametrize(
    ("completion", "own"),
    [
        (f"\\boxed{{B}}\n\nWhat harms?{OTHERS}\\boxed{{D}}", "\\boxed{B}"),
        (f"Rest does.\n\nB. Rest\n\nWhat harms?{OTHERS}The answer is A.", "Rest does.\n\nB. Rest"),
        (f"What helps?{CHOICES}\\boxed{{B}}\n\nWhat harms?{OTHERS}", f"What helps?{CHOICES}\\boxed{{B}}"),
        (f"\\boxed{{B}}\n\nWhat helps?{CHOICES}\\boxed{{D}}", "\\boxed{B}"),  # asked once more, and not believed
        (f"{CHOICE_SUFFIX}\n\\boxed{{B}}", f"{CHOICE_SUFFIX}\n\\boxed{{B}}"),
        ("\\boxed{B}\n\nWhat harms?", "\\boxed{B}\n\nWhat harms?"),
    ],
)
def test_a_choice_is_read_up_to_the_next_question_and_its_options(completion: str, own: str) -> None:
    shown = f"What heals?{OTHERS}\\boxed{{D}}\n\nWhat helps?{CHOICES}"
    options = ["Salt", "Rest", "Sun", "Tea"]
    prompt = {"template": "plain", "prompt_text": shown, "question": "What helps?", "options": options}
    assert own_answer(completion, DATASETS["medqa"], prompt) == own


def test_a_training_prompt_is_never_shown_its_own_solution(ask: Callable[..., list[Row]]) -> None:
    texts = [row["prompt_text"] for row in ask("gsm8k", None, is_benchmark=False, few_shot=3)]
    for number, text in enumerate(texts):
        shown = [int(part[0]) for part in text.split("box ")[1:]]
        # of 4 rows 3 are shown: all but its own, and its own number is the question's
        assert shown[-1] == number
        assert sorted(shown) == [0, 1, 2, 3]
    with pytest.raises(
        ValueError, match=r"prompts\.few_shot: expected less than the 4 rows of gsm8k, split train, got 4"
    ):
        ask("gsm8k", None, is_benchmark=False, few_shot=4)


def test_a_training_set_without_solved_examples_is_refused_when_it_is_asked(ask: Callable[..., list[Row]]) -> None:
    with pytest.raises(ValueError, match=r"prompts\.few_shot: expected 0 for arithmetic.*got 2"):
        ask("arithmetic", None, is_benchmark=False, few_shot=2)  # a run that only scores GSM8K never asks it


def test_a_mirror_without_the_training_split_says_what_to_do(ask: Callable[..., list[Row]], hub_root: Path) -> None:
    readme = hub_root / "openai/gsm8k/README.md"
    readme.write_text(readme.read_text().replace("  - split: train\n    path: main/train.jsonl\n", ""))
    with pytest.raises(NotFound, match=r"split 'train' of openai/gsm8k.*Mirror that .*, or .* prompts.few_shot=0"):
        ask("gsm8k", None, few_shot=1)


def test_every_switch_is_part_of_the_prompts_identity(ask: Callable[..., list[Row]], hub_root: Path) -> None:
    switches: list[Row] = [
        {},
        {"system": "Be brief."},
        {"thinking": "on"},
        {"thinking": "off"},
        {"few_shot": 1},
        {"few_shot": 2},
        {"min_tokens": 2},
    ]
    keys = []
    for switch in switches:
        ask("gsm8k", SWITCHING, **switch)
        keys.append(ask.key)  # type: ignore[attr-defined]
    assert len(set(keys)) == len(switches)
