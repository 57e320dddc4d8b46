"""How a question becomes the text of a prompt: its instruction, solved examples before it, and the chat template."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tasks.config import PromptsConfig
from tasks.registry import Dataset
from tasks.rows import LETTERS, Example

PLAIN = "plain"
"""The template of a tokenizer without one."""


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


def own_answer(completion: str, instruction: str, prompt_text: str, template: str) -> str:
    r"""What of a completion answers its own prompt.

    After solved examples in plain text a base model goes on to ask a next question as these were asked, with the
    dataset's instruction: its answer ends before the line in which that comes again.

    >>> own_answer("4\n\nNow 3+3? Box it.\n6", "Box it.", "1+1? Box it.\n2\n\n2+2? Box it.\n", "plain")
    '4'
    """
    if not instruction or template != PLAIN or prompt_text.count(instruction) < 2:
        return completion
    lines, has_own = completion.split("\n"), False
    for number, line in enumerate(lines):
        if has_own and instruction in line:
            return "\n".join(lines[:number]).rstrip()
        has_own = has_own or bool(line.replace(instruction, "").strip())  # it may say again what it was told to do
    return completion


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
