r"""Record SmolLM2-135M-Instruct's completions for the comparison with other verifiers; run once, by hand.

    python tests/comparability/record.py CHECKPOINT HUB_ROOT > recorded.jsonl

completions.jsonl is that, and below it the completions that were written by hand. CHECKPOINT: README.md, "A real model
on your CPU". HUB_ROOT: a folder in the Hub's layout (openai/gsm8k, cais/mmlu, ...). 14 minutes on two slow cores.

Stored are completions, gold answers and where they come from: never a question, and of a multiple choice only those
options that the completion itself repeats (`options`, null for the others), since lm-eval looks for them. `row` counts
the rows of HUB_ROOT's copy, which may be a part of the Hub's. MATH's problems may not be passed on: problems.jsonl
holds ones written for this.

So small a model is hardly ever right. Where `source` says "of 16", that many completions were sampled and the first one
kept that contains the gold answer, else the first: comparing verifiers takes right answers too.
"""

import json
import os
import re
import sys
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
LETTERS = "ABCD"
MAX_TOKENS = 128
MEDICAL = ("anatomy", "clinical_knowledge", "college_biology", "college_medicine", "medical_genetics")
EXAMPLES = json.loads((HERE / "examples.json").read_text(encoding="utf-8"))
BOXED = " Let's think step by step and output the final answer within \\boxed{}."
LETTER = "\nAnswer with the letter of the right option within \\boxed{}."
STEPS = "\nThink step by step, briefly, and end with 'The answer is (X).', where X is the letter of the right option."

Chat = Callable[[list[tuple[str, str]], str], str]
"""The checkpoint's chat template over earlier turns (user, assistant) and the user's last message."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """One row of a dataset."""

    dataset: str
    row: int
    text: str
    gold: str
    options: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """What is given to the model, and how it is sampled."""

    question: Question
    text: str
    how: str
    temperature: float = 0.8
    stop: tuple[str, ...] = ()
    num_samples: int = 1


def rows(hub_root: Path, file: str) -> list[dict[str, Any]]:
    """The rows of one file of the mirror."""
    import duckdb

    reader = "read_json" if file.endswith("jsonl") else "read_parquet"
    cursor = duckdb.connect().execute(f"SELECT * FROM {reader}(?)", [str(hub_root / file)])
    names = [column[0] for column in cursor.description]
    return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


def gsm8k_rows(hub_root: Path, split: str) -> list[dict[str, Any]]:
    return rows(hub_root, f"openai/gsm8k/main/{split}-00000-of-00001.parquet")


def gsm8k(hub_root: Path) -> Iterator[Question]:
    for i, row in list(enumerate(gsm8k_rows(hub_root, "test")))[::3]:
        gold = row["answer"].rpartition("#### ")[2].replace(",", "")
        yield Question(dataset="gsm8k", row=i, text=row["question"], gold=gold)


def medqa(hub_root: Path) -> Iterator[Question]:
    for i, row in list(enumerate(rows(hub_root, "GBaker/MedQA-USMLE-4-options/phrases_no_exclude_test.jsonl")))[::5]:
        options = tuple(row["options"][letter] for letter in LETTERS)
        if len(row["question"]) < 700:
            yield Question(dataset="medqa", row=i, text=row["question"], gold=row["answer_idx"], options=options)


def medmcqa(hub_root: Path) -> Iterator[Question]:
    file = "openlifescienceai/medmcqa/data/validation-00000-of-00001.parquet"
    for i, row in list(enumerate(rows(hub_root, file)))[::8]:
        options = tuple(row[f"op{letter.lower()}"] for letter in LETTERS)
        yield Question(dataset="medmcqa", row=i, text=row["question"], gold=LETTERS[row["cop"]], options=options)


def mmlu(hub_root: Path) -> Iterator[Question]:
    """Five subjects in turn."""
    subjects = [rows(hub_root, f"cais/mmlu/{subject}/test-00000-of-00001.parquet") for subject in MEDICAL]
    for i in range(0, 60, 3):
        for subject, found in zip(MEDICAL, subjects, strict=True):
            row, name = found[i], f"mmlu/{subject}"
            gold, options = LETTERS[row["answer"]], tuple(row["choices"])
            yield Question(dataset=name, row=i, text=row["question"], gold=gold, options=options)


def problems() -> list[Question]:
    lines = (HERE / "problems.jsonl").read_text(encoding="utf-8").splitlines()
    parsed = [json.loads(line) for line in lines]
    return [Question(dataset="math", row=i, text=row["problem"], gold=row["gold"]) for i, row in enumerate(parsed)]


def flan(question: str, options: list[str] | tuple[str, ...]) -> str:
    """lm-eval's mmlu_flan_cot prompt."""
    listed = " ".join(f"({letter}) {option}" for letter, option in zip(LETTERS, options, strict=True))
    return f"Q: {question.strip()}\n{listed}\nA: Let's think step by step."


def lettered(question: str, options: list[str] | tuple[str, ...]) -> str:
    """One option a line."""
    return "\n".join([question, *(f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=True))])


def gsm8k_prompts(hub_root: Path, chat: Chat) -> Iterator[Prompt]:
    found = gsm8k(hub_root)
    short = sorted(gsm8k_rows(hub_root, "train"), key=lambda row: len(row["question"] + row["answer"]))[10:15]
    shots = "".join(f"Question: {row['question']}\nAnswer: {row['answer']}\n\n" for row in short)
    turns = [(shot["question"] + BOXED, f"{shot['reason']} \\boxed{{{shot['answer']}}}") for shot in EXAMPLES["words"]]
    for number in range(130):
        question = next(found)
        text = f"{shots}Question: {question.text}\nAnswer:"
        if number < 50:
            how = "5-shot, stopped at 'Question:', of 16"
            yield Prompt(question=question, text=text, how=how, stop=("Question:",), num_samples=16)
        elif number < 70:
            yield Prompt(question=question, text=text, how="5-shot", temperature=0.6)
        elif number < 110:
            text = chat(turns, question.text + BOXED)
            yield Prompt(question=question, text=text, how="3-shot chat, of 16", num_samples=16)
        else:
            yield Prompt(question=question, text=chat([], question.text + BOXED), how="chat", temperature=0.6)


def choice_prompts(found: Iterator[Question], chat: Chat) -> Iterator[Prompt]:
    flan_shots = lettered_shots = ""
    turns = []
    for shot in EXAMPLES["choice"]:
        asked = flan(shot["question"], shot["options"])
        flan_shots += f"{asked} {shot['reason']} The answer is ({shot['letter']}).\n\n"
        asked = lettered(shot["question"], shot["options"])
        lettered_shots += f"Question: {asked}\n{shot['reason']}\nAnswer: {shot['letter']}\n\n"
        turns.append((asked + LETTER, f"{shot['reason']} \\boxed{{{shot['letter']}}}"))
    for number in range(54):
        question = next(found)
        asked = lettered(question.text, question.options)
        if number < 16:
            text = flan_shots + flan(question.text, question.options)
            yield Prompt(question=question, text=text, how="4-shot, stopped at 'Q:'", stop=("Q:",))
        elif number < 24:
            yield Prompt(question=question, text=f"{lettered_shots}Question: {asked}\n", how="4-shot")
        elif number < 34:
            yield Prompt(question=question, text=chat(turns, asked + LETTER), how="4-shot chat")
        else:
            text = chat([], asked + (LETTER if number < 44 else STEPS))
            yield Prompt(question=question, text=text, how="chat, letter" if number < 44 else "chat, step by step")


def math_prompts(chat: Chat) -> Iterator[Prompt]:
    shots = [(s["question"], s["reason"], f"\\boxed{{{s['answer']}}}") for s in EXAMPLES["math"]]
    slow = "".join(f"Problem: {q}\nSolution: {r} The final answer is ${b}$.\n\n" for q, r, b in shots)
    fast = "".join(f"Problem: {q}\nAnswer: ${b}$\n\n" for q, _, b in shots)
    for question in problems():
        for text, how in (
            (slow + f"Problem: {question.text}\nSolution:", "8-shot"),
            (
                fast + f"Problem: {question.text}\nAnswer:",
                "8-shot, answer only",
            ),
        ):
            yield Prompt(
                question=question, text=text, how=f"{how}, of 16", temperature=0.6, stop=("Problem:",), num_samples=16
            )
    for question in problems()[::4]:
        yield Prompt(question=question, text=chat([], question.text + BOXED), how="chat", temperature=0.6)


def kept(completions: list[Any], gold: str) -> Any:
    """The first completion that contains the gold answer as a whole, else the first."""
    whole = re.compile(rf"(?<![\w.]){re.escape(gold)}(?![\w]|\.\d)")
    return next((made for made in completions if whole.search(made.text)), completions[0])


def repeated(options: tuple[str, ...], completion: str) -> list[str | None]:
    """The options that the completion repeats, in whatever case and punctuation; None for the others."""

    def bare(text: str) -> str:
        return "".join(c for c in text.lower() if not unicodedata.category(c).startswith("P"))

    return [option if bare(option.strip()) in bare(completion) else None for option in options]


def main() -> None:
    checkpoint, hub_root = sys.argv[1], Path(sys.argv[2])
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "3", "HF_HUB_OFFLINE": "1"}
    os.environ |= {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    results, sys.stdout = sys.stdout, sys.stderr  # vLLM prints
    from transformers import AutoTokenizer
    from vllm import LLM, SamplingParams

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)

    def chat(turns: list[tuple[str, str]], text: str) -> str:
        messages = [{"role": "user", "content": text}]
        for user, assistant in reversed(turns):
            messages = [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}, *messages]
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))

    asked = [*gsm8k_prompts(hub_root, chat)]
    for found in medqa(hub_root), medmcqa(hub_root), mmlu(hub_root):
        asked += choice_prompts(found, chat)
    asked += math_prompts(chat)
    # Without chunked prefill: torch's CPU generators cannot be rewound.
    engine = LLM(checkpoint, dtype="bfloat16", max_model_len=2048, seed=0, enable_chunked_prefill=False)
    limits = {"top_p": 0.95, "max_tokens": MAX_TOKENS}
    sampling = [
        SamplingParams(n=p.num_samples, temperature=p.temperature, seed=seed, stop=list(p.stop), **limits)
        for seed, p in enumerate(asked)
    ]
    outputs = engine.generate([p.text for p in asked], sampling)
    for seed, (prompt, output) in enumerate(zip(asked, outputs, strict=True)):
        question, made = prompt.question, kept(output.outputs, prompt.question.gold)
        record: dict[str, Any] = {"id": f"smollm2-{seed:03d}", "dataset": question.dataset, "row": question.row}
        record |= {"gold": question.gold, "completion": made.text, "is_truncated": made.finish_reason == "length"}
        if question.options:
            record["options"] = repeated(question.options, made.text)
        record["source"] = f"SmolLM2-135M-Instruct, {prompt.how}, temperature {prompt.temperature}, seed {seed}"
        print(json.dumps(record, ensure_ascii=False), file=results)


if __name__ == "__main__":
    main()
