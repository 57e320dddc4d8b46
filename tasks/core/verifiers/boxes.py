r"""Where a completion states its answer: after its thoughts, in its last box."""

import re
from typing import NamedTuple

BOX = "\\boxed{"
"""The mark that every verifier of boxed answers knows."""
MARK = "####"
"""GSM8K's mark: the answer is the rest of its line."""

# Every alternative consumes what it matches, so that one pass finds each token once: "\%" is no comment, and neither is
# the percent sign of "20 %", which prose writes without a backslash.
_LATEX = re.compile(r"(?P<box>\\(?:boxed|fbox)[ \t\r\n]*+\{)|\\.|[0-9][ \t]*+%|[A-Za-z()}\]$]%|%[^\n]*+", re.DOTALL)
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)


class Found(NamedTuple):
    """An answer as it stands in the completion."""

    raw: str
    """The text of the answer; an unclosed box keeps its command, so that it can never be read as a number."""
    is_closed: bool
    """Whether something after the answer ended it: the line's end, the box's brace."""


def after_thoughts(completion: str) -> str:
    """What follows the last </think>; all of it when there is none, for chat templates may open a <think> themselves.

    >>> after_thoughts("Perhaps 71.</think>It is 72.")
    'It is 72.'
    """
    return completion.rpartition("</think>")[2]


def read_box(text: str, start: int, content_start: int) -> Found:
    r"""The box whose command starts at `start`, up to the brace that matches; every character is looked at once.

    `\{` and `\}` are text and match nothing.
    """
    depth = 1
    for token in _BRACE.finditer(text, content_start):
        if token[0] == "{":
            depth += 1
        elif token[0] == "}":
            depth -= 1
            if depth == 0:
                return Found(text[content_start : token.start()], is_closed=True)
    return Found(text[start:], is_closed=False)


def last_box(text: str) -> tuple[int, Found] | None:
    r"""Position and content of the box that starts last, `\boxed{` or `\fbox{`, spaces before the brace allowed.

    A box inside a LaTeX comment is none: a comment runs from a bare '%' to the end of its line. A '%' after a digit
    (and spaces) or directly after a letter, a bracket or '$' is a percent sign.

    >>> last_box(r"20% of 60 is \boxed{12}. % not \boxed{13}")
    (13, Found(raw='12', is_closed=True))
    """
    last = None
    for token in _LATEX.finditer(text):
        if token["box"]:
            last = token
    return None if last is None else (last.start(), read_box(text, last.start(), last.end()))


def last_answer(text: str) -> Found | None:
    r"""The last `####` line or the last box, whichever starts last; None when there is neither.

    >>> last_answer("\\boxed{71}. No:\n#### 72\n")
    Found(raw=' 72', is_closed=True)
    """
    box = last_box(text)
    mark = text.rfind(MARK)
    if mark > (-1 if box is None else box[0]):
        return read_line(text, mark)
    return None if box is None else box[1]


def read_line(text: str, mark: int) -> Found:
    """The rest of the line of the `####` at position `mark`."""
    line, line_end, _ = text[mark + len(MARK) :].partition("\n")
    return Found(line, is_closed=bool(line_end))
