r"""What an answer in normal form (latex.py) is: one value, a list, a set, an interval or point, a matrix, a ratio."""

import re
from typing import NamedTuple

from tasks.core.verifiers.exact_numbers import exact_number
from tasks.core.verifiers.units import trusted_words, unit_of

UNORDERED = ("list", "set")
"""Kinds whose items may stand in any order. Both are what somebody writes who was asked for several answers."""

TOKEN = re.compile(r"\\(?:begin|end)\{[a-z]*\}|\\[a-zA-Z]+|\\.|.", re.DOTALL)
"""Tokens of a normal form; an environment's name belongs to its command."""

_BEGIN, _END = "\\begin{pmatrix}", "\\end{pmatrix}"
OPENING = frozenset(["(", "[", "{", "\\{", "\\langle", _BEGIN])
CLOSING = frozenset([")", "]", "}", "\\}", "\\rangle", _END])
_MATRIX = re.compile(r"\\begin\{pmatrix\}(?P<rows>.*)\\end\{pmatrix\}", re.DOTALL)
_TEXT = re.compile(r"\\text\{ ?([^{}]*)\}")
_BRACKETED_NUMBER = re.compile(r"\A\(([0-9A-Z]+)\)(?=_\{)")
_UNIT = re.compile(r"(?P<rest>.+?)\\text\{(?P<words>[A-Za-z. /()]{1,40})\}(?P<power>\^\{[23]\})?(?:\\%)?", re.DOTALL)
_MEASURABLE = re.compile(r"[0-9]|\\pi")


class Shape(NamedTuple):
    """Kind and items of an answer; a single value is its own only item."""

    kind: str
    """value, list, set, "( )", "[ )", ... (interval, point), "matrix 2x3", ratio."""
    items: tuple[str, ...]
    """The items, in order, in normal form."""


def shape_of(form: str) -> Shape:
    r"""The shape of an answer in normal form. Round brackets around one value are no shape.

    >>> [shape_of(form).kind for form in ["5", "(5)", "1,2", "(1,2)", "[1,2)", r"\{1\}", "3:4", "f(1,2)"]]
    ['value', 'value', 'list', '( )', '[ )', 'set', 'ratio', 'value']
    """
    items = _split(form, ",")
    if len(items) > 1:
        return Shape("list", tuple(items))
    tokens = TOKEN.findall(form)
    if len(tokens) > 2 and tokens[0] in OPENING and _closing_position(tokens) == len(tokens) - 1:
        inner = form[len(tokens[0]) : -len(tokens[-1])]
        items = _split(inner, ",")
        if tokens[0] == "\\{":
            return Shape("set", tuple(items))
        if len(items) > 1:
            return Shape(f"{tokens[0]} {tokens[-1]}", tuple(items))
        if tokens[0] == "(" and tokens[-1] == ")":
            return shape_of(inner)
    matrix = _matrix(form)
    if matrix is not None:
        return matrix
    items = _split(form, ":")
    return Shape("ratio", tuple(items)) if len(items) > 1 else Shape("value", (form,))


def canonical(form: str, trusted: frozenset[str] = frozenset()) -> str:
    r"""One string for all the forms that are equal item by item: numbers as fractions, lists and sets sorted.

    >>> [canonical(form) for form in ["0.50", r"2,\frac{2}{4}", r"\{1,1.0\}", r"90\%", r"5\text{ cm}"]]
    ['1/2', '1/2,2', '1,1', '90', '5']
    """
    shape = shape_of(form)
    if shape.kind == "value":
        value = without_unit(shape.items[0], trusted)[0]
        number = exact_number(value)
        return bare(value) if number is None else str(number)
    keys = [canonical(item, trusted) for item in shape.items]
    if shape.kind in UNORDERED:
        return ",".join(sorted(keys))
    if shape.kind == "ratio":
        return ":".join(keys)
    opening, _, closing = shape.kind.partition(" ")
    return f"{opening}{','.join(keys)}{closing}" if opening in OPENING else f"{shape.kind}: {','.join(keys)}"


def without_unit(value: str, trusted: frozenset[str] = frozenset()) -> tuple[str, str]:
    r"""A value without its unit or percent sign, and the unit, spelt one way; "" when there is none.

    A unit is words at the end of something that holds a digit or \pi, each of them a known one or `trusted` (units.py):
    "x\text{-axis}" and "\text{even}" have none.

    >>> [without_unit(v) for v in [r"5\text{ meters}^{2}", r"50\%", r"n\text{ is even}", r"5\text{ sevenths}"]]
    [('5', 'm^{2}'), ('50', ''), ('n\\text{ is even}', ''), ('5\\text{ sevenths}', '')]
    """
    match = _UNIT.fullmatch(value)
    if match is None:
        return value.removesuffix("\\%"), ""
    unit = unit_of(match["words"], match["power"] or "", trusted)
    if unit is None or "\\text" in match["rest"] or not _MEASURABLE.search(match["rest"]):
        return value, ""
    return match["rest"], unit


def trusted_units(gold: str) -> frozenset[str]:
    """Words that a gold answer has for what it counts or measures."""
    return frozenset().union(*(trusted_words(words) for words in _TEXT.findall(gold)))


def bare(form: str) -> str:
    r"""The form with the words of its texts as they are, without spaces; a number in base 8 without brackets.

    >>> bare(r"\text{not enough}")
    'notenough'
    """
    words = _TEXT.sub(lambda match: match[1].replace(" ", ""), form).removeprefix("+")
    return _BRACKETED_NUMBER.sub(r"\1", words)


def _split(form: str, separator: str) -> list[str]:
    """The parts between separators outside all brackets."""
    parts, depth = [""], 0
    for token in TOKEN.findall(form):
        depth += (token in OPENING) - (token in CLOSING)
        if token == separator and depth == 0:
            parts.append("")
        else:
            parts[-1] += token
    return parts


def _closing_position(tokens: list[str]) -> int:
    """Position of the token that closes the first one, whatever the kind of bracket: [0,1) is an interval."""
    depth = 0
    for position, token in enumerate(tokens):
        depth += (token in OPENING) - (token in CLOSING)
        if depth == 0:
            return position
    return -1


def _matrix(form: str) -> Shape | None:
    match = _MATRIX.fullmatch(form)
    if match is None or _BEGIN in match["rows"]:
        return None
    rows = [_split(row, "&") for row in _split(match["rows"], "\\\\")]
    if rows[-1] == [""]:
        rows.pop()
    if len({len(row) for row in rows}) != 1:
        return None
    return Shape(f"matrix {len(rows)}x{len(rows[0])}", tuple(item for row in rows for item in row))
