"""Pairs of a completion and a gold answer as JSON lines: read as they come, and checked line by line."""

import json
import math
import os
import re
import select
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tasks.core.verdict import Verifier
from tasks.judges import Row

OWN_KEYS = ("completion", "answer", "is_truncated", "finish_reason", "options")
"""Keys that make the pair; every other key goes through to its verdict."""
VERDICT_KEYS = ("verifier", "verifier_version", "status", "reward", "extracted_answer", "failure", "seconds")
"""Keys that the verdict adds."""

MOST_LINES = 1024
"""Lines taken at once where they are there; with those of the last block read, at most about 3,000 are held."""
MOST_BYTES = 1 << 22
"""As many bytes of lines taken at once end the batch, too: memory is bounded by bytes where lines are long."""
LONGEST_LINE = 1 << 26
"""Longer lines are refused: input without line breaks would fill the memory."""
_BLOCK = 1 << 16
_PATIENCE_SECONDS = 0.01
"""How long to wait for more lines before those that are there are judged: a writer at full speed refills its pipe
within a millisecond, and one that waits for its verdict waits this much longer."""

_SURROGATES = re.compile("[\ud800-\udfff]")


class BadPair(ValueError):
    """A line that cannot be judged."""

    def __init__(self, number: int, problem: str) -> None:
        super().__init__(f"line {number}: {problem}")


@dataclass(frozen=True)
class Pair:
    """One line of input."""

    row: Row
    others: dict[str, Any]
    """What is passed through."""


def line_batches(descriptor: int) -> Iterator[Sequence[bytes]]:
    """The lines of an open file or pipe, in batches of what is there; waits only where nothing is.

    Errors: BadPair for a line above LONGEST_LINE, after the lines before it were given.
    """
    lines: list[bytes] = []
    parts: list[bytes] = []  # of the line whose end has not come yet
    num_ended = num_bytes = num_open = 0
    while block := os.read(descriptor, _BLOCK):
        *ended, rest = block.split(b"\n")
        if ended:
            lines.append(b"".join([*parts, ended[0]]))
            lines += ended[1:]
            num_ended += len(ended)
            num_bytes, num_open, parts = num_bytes + num_open + len(block), 0, []
        parts.append(rest)
        num_open += len(rest)
        is_full = len(lines) >= MOST_LINES or num_bytes >= MOST_BYTES
        if lines and (is_full or num_open > LONGEST_LINE or not _has_more(descriptor)):
            yield lines
            lines, num_bytes = [], 0
        if num_open > LONGEST_LINE:
            raise BadPair(num_ended + 1, f"expected at most {LONGEST_LINE:,} bytes, got more without a line break")
    last = b"".join(parts)
    if last:
        lines.append(last)
    if lines:
        yield lines


def _has_more(descriptor: int) -> bool:
    ready, _, _ = select.select([descriptor], [], [], _PATIENCE_SECONDS)
    return bool(ready)


class PairReader:
    """Lines to pairs, for one verifier."""

    def __init__(self, verifier: Verifier) -> None:
        self._verifier = verifier
        self._accepted: tuple[str, int] | None = None
        self.num_lines = 0

    def pairs(self, lines: Sequence[bytes]) -> tuple[list[Pair], BadPair | None]:
        """The pairs of the next lines, up to the first that cannot be judged, and what is wrong with that one.

        Lines of nothing but space are passed over; they count as lines.
        """
        found: list[Pair] = []
        for line in lines:
            self.num_lines += 1
            try:
                if text := self._text(line).strip():
                    found.append(self._pair(_parsed(text)))
            except ValueError as error:
                return found, BadPair(self.num_lines, _shortened(str(error)))
        return found, None

    def _text(self, line: bytes) -> str:
        """Errors: ValueError for bytes that are no UTF-8."""
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"expected UTF-8, got the byte 0x{line[error.start]:02x} at position {error.start + 1} of the line "
                f"({error.reason}); write the file anew in UTF-8"
            ) from None
        return text.removeprefix("\ufeff") if self.num_lines == 1 else text

    def _pair(self, tree: Any) -> Pair:
        if not isinstance(tree, dict):
            raise ValueError(f'expected a JSON object {{"completion": ..., "answer": ...}}, got {_shown(tree)}')
        taken = [key for key in VERDICT_KEYS if key in tree]
        if taken:
            raise ValueError(
                f"expected no key {taken[0]!r}, which its verdict adds ({', '.join(VERDICT_KEYS)}); rename it or leave "
                "it out"
            )
        completion, answer = (_typed(tree, key, str, "text") for key in ("completion", "answer"))
        options = [] if tree.get("options") is None else tree["options"]
        if not isinstance(options, list) or not all(isinstance(option, str) for option in options):
            raise ValueError(f'options: expected a list of text, for example ["a", "b"], got {_shown(options)}')
        for key, text in (("answer", answer), *(("options", option) for option in options)):
            if _SURROGATES.search(text):
                raise ValueError(f"{key}: expected Unicode text, got a lone surrogate in {_shown(text)}")
        self._check(answer, tuple(options))
        row = Row(
            completion=_SURROGATES.sub("\ufffd", completion),
            answer=answer,
            is_truncated=_is_truncated(tree),
            options=tuple(options),
        )
        return Pair(row, {key: value for key, value in tree.items() if key not in OWN_KEYS})

    def _check(self, answer: str, options: tuple[str, ...]) -> None:
        """Errors: ValueError for an answer that the verifier refuses. Answers often repeat from line to line."""
        if (answer, len(options)) == self._accepted:
            return
        if not answer.strip():
            raise ValueError(f"answer: expected the gold answer, got {_shown(answer)}, which nothing can be equal to")
        self._verifier.check_answer(answer, options)
        self._accepted = answer, len(options)


def _parsed(text: str) -> Any:
    """The JSON value. Errors: ValueError for what is no JSON, and for numbers and nesting beyond what can be held."""
    try:
        return json.loads(text, parse_constant=_no_json, parse_float=_finite)
    except json.JSONDecodeError as error:
        problem = f"{error.msg} at character {error.pos + 1}"
    except RecursionError:
        problem = "nested too deeply"
    except ValueError as error:
        problem = str(error)
    raise ValueError(f"expected a JSON object, got {_shown(text)} ({problem})")


def _typed(tree: dict[str, Any], key: str, kind: type, name: str) -> Any:
    if key not in tree:
        raise ValueError(
            f"{key}: missing; expected {name}, got only {', '.join(map(_shown, tree)) or 'an empty object'}"
        )
    if not isinstance(tree[key], kind):
        raise ValueError(f"{key}: expected {name}, got {_shown(tree[key])}")
    return tree[key]


def _is_truncated(tree: dict[str, Any]) -> bool:
    """Whether the length limit ended the completion: is_truncated, or finish_reason == 'length'; absent or null: no."""
    says = {key: _typed(tree, key, kind, name) for key, kind, name in _ENDINGS if tree.get(key) is not None}
    found = {says["is_truncated"]} if "is_truncated" in says else set()
    found |= {says["finish_reason"] == "length"} if "finish_reason" in says else set()
    if len(found) > 1:
        raise ValueError(
            f"expected is_truncated and finish_reason to agree ('length' is truncated), got "
            f"{_shown(says['is_truncated'])} and {_shown(says['finish_reason'])}"
        )
    return found.pop() if found else False


_ENDINGS = (("is_truncated", bool, "true or false"), ("finish_reason", str, "text"))


def _shown(value: Any) -> str:
    """A value as JSON in ASCII, which no terminal obeys, cut short."""
    text = json.dumps(value if not isinstance(value, str) else value[:_SHOWN])
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


_SHOWN = 80


def _shortened(message: str) -> str:
    return message if len(message) <= 600 else f"{message[:300]} ... {message[-250:]}"


def _no_json(constant: str) -> float:
    raise ValueError(f"JSON has no {constant}")


def _finite(number: str) -> float:
    value = float(number)
    if math.isinf(value):
        raise ValueError(f"no float64 holds {number[:40]}")
    return value
