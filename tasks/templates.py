"""How a question becomes the text of a prompt: its instruction, solved examples before it, and the chat template."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tasks.config import PromptsConfig
from tasks.core.verifiers.boxes import MARK, after_thoughts
from tasks.registry import Dataset
from tasks.rows import LETTERS, Example

PLAIN = "plain"
"""The template of a tokenizer without one."""
_BOX = "\\boxed{"
_SURE_CHARACTERS = 20
"""So much of an instruction is no coincidence."""


@dataclass(frozen=True)
class Solved:
    """A solved example before a prompt."""

    asked: str
    """The question, with the instruction of its dataset."""
    solution: str


def asked(dataset: Dataset, example: Example) -> str:
    """The question with its options and the dataset's instruction."""
    if example.options:
        options = "\n".join(f"{letter}. {text}" for letter, text in zip(LETTERS, example.options, strict=True))
        return f"{example.question}\n\n{options}\n\n{dataset.suffix}"
    return f"{example.question} {dataset.suffix}" if dataset.suffix else example.question


def render(
    tokenizer: Any, texts: Sequence[str], config: PromptsConfig, solved: Sequence[Sequence[Solved]], dataset: Dataset
) -> tuple[list[str], str]:
    """The prompts' texts, and what made them: the checkpoint's chat template (by digest) or plain text.

    `texts` are the questions as they are asked, `solved` the examples before each.
    Raises ValueError where `prompts.thinking` asks for a switch that the template does not have.
    """
    template = tokenizer.chat_template
    _check_switch(template, config)
    if template is None:
        end = "\n" if dataset.suffix else ""  # after an instruction the answer starts on a line of its own
        system = f"{config.system}\n\n" if config.system else ""
        before = ["".join(f"{each.asked}\n{each.solution}\n\n" for each in examples) for examples in solved]
        return [f"{system}{shown}{text}{end}" for shown, text in zip(before, texts, strict=True)], PLAIN
    switch = {} if config.thinking == "default" else {"enable_thinking": config.thinking == "on"}
    rendered = [
        tokenizer.apply_chat_template(
            _messages(text, config.system, examples), tokenize=False, add_generation_prompt=True, **switch
        )
        for text, examples in zip(texts, solved, strict=True)
    ]
    return rendered, f"chat:{hashlib.sha256(str(template).encode()).hexdigest()[:16]}"


def own_answer(completion: str, dataset: Dataset, prompt: Mapping[str, Any]) -> str:
    r"""What of a completion answers its own prompt (a row of the prompts table).

    After solved examples in plain text a base model goes on to ask a next question as these were asked, with the
    dataset's instruction: its answer ends before the line in which that comes again, or before the instruction itself
    where an answer stands on that line; in a multiple choice, before the question and the options above. The
    instruction alone, or after the prompt's own question, is an echo: the answer comes after it. An instruction that
    the length limit cut counts from 20 characters on.

    >>> shown = "1+1? Box it.\n\\boxed{2}\n\n2+2? Box it.\n"
    >>> prompt = {"template": "plain", "prompt_text": shown, "question": "2+2?"}
    >>> own_answer("2+2? Box it.\n\\boxed{4}\n\nNow 3+3? Box it.\n\\boxed{6}", Dataset(
    ...     name="sums", verifier="math", revision="1", suffix="Box it."), prompt)
    '2+2? Box it.\n\\boxed{4}'
    """
    instruction = dataset.suffix
    if not instruction or prompt["template"] != PLAIN or prompt["prompt_text"].count(instruction) < 2:
        return completion
    lines, has_own = _completed(after_thoughts(completion), instruction).split("\n"), False
    for number, line in enumerate(lines):
        before, again, _ = line.partition(instruction)
        if again:
            said = "\n".join(lines[:number]).rstrip()
            if _BOX in before or MARK in before:
                return f"{said}\n{before}"
            if _BOX not in said and MARK not in said and _ends_in_question(said, before, prompt):
                has_own = False
                continue
            if has_own:
                return _before_question(said)
        has_own = has_own or bool(line.replace(instruction, "").strip())
    return completion


def _ends_in_question(said: str, line: str, prompt: Mapping[str, Any]) -> bool:
    """Whether the prompt's own question stands on the line, or its options end what was said before."""
    if prompt.get("options"):
        return said.endswith(f". {prompt['options'][-1]}")
    return bool(prompt["question"]) and prompt["question"].splitlines()[-1] in line


def _before_question(text: str) -> str:
    """The text without the question and the options of a multiple choice at its end."""
    before, options, _ = text.rpartition("\n\nA. ")
    return before.rpartition("\n\n")[0] or before if options else text


def _completed(text: str, instruction: str) -> str:
    """The text, whose end may be the beginning of the instruction, with all of it."""
    cut = next((n for n in range(len(instruction) - 1, _SURE_CHARACTERS - 1, -1) if text.endswith(instruction[:n])), 0)
    return text + instruction[cut:] if cut else text


def _messages(text: str, system: str, solved: Sequence[Solved]) -> list[dict[str, str]]:
    said = [("system", system)] if system else []
    for each in solved:
        said += [("user", each.asked), ("assistant", each.solution)]
    return [{"role": role, "content": content} for role, content in [*said, ("user", text)]]


def _check_switch(template: Any, config: PromptsConfig) -> None:
    if config.thinking != "default" and "enable_thinking" not in str(template):
        what = "has no chat template" if template is None else "has a chat template without the switch enable_thinking"
        raise ValueError(
            f"prompts.thinking: expected 'default' for this policy, whose tokenizer {what} (Qwen3's has it), got "
            f"{config.thinking!r}"
        )
