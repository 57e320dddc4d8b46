r"""What an answer in normal form (latex.py) is: one value, a list, a set, an interval or point, a matrix, a ratio."""

import re
from typing import NamedTuple

from tasks.core.verifiers.exact_numbers import exact_number

UNORDERED = ("list", "set")
"""Kinds whose items may stand in any order. Both are what somebody writes who was asked for several answers."""

TOKEN = re.compile(r"\\(?:begin|end)\{[a-z]*\}|\\[a-zA-Z]+|\\.|.", re.DOTALL)
"""Tokens of a normal form; an environment's name belongs to its command."""

_BEGIN, _END = "\\begin{pmatrix}", "\\end{pmatrix}"
_OPENING = frozenset(["(", "[", "{", "\\{", "\\langle", _BEGIN])
_CLOSING = frozenset([")", "]", "}", "\\}", "\\rangle", _END])
_MATRIX = re.compile(r"\\begin\{pmatrix\}(?P<rows>.*)\\end\{pmatrix\}", re.DOTALL)
_TEXT = re.compile(r"\\text\{ ?([^{}]*)\}")
_BRACKETED_NUMBER = re.compile(r"\A\(([0-9A-Z]+)\)(?=_\{)")
_UNIT = re.compile(r"(?P<rest>.+?)\\text\{(?P<words>[A-Za-z. /]{1,40})\}(?P<power>\^\{[23]\})?(?:\\%)?", re.DOTALL)
_MEASURABLE = re.compile(r"[0-9]|\\pi")
# Words that would take back the number before them, or make another one of it.
_NO_UNIT = frozenset(
    [
        *("not", "no", "isnt", "is", "if", "where", "for", "when", "with", "wrong", "except", "mod", "only", "unless"),
        *("hundred", "thousand", "million", "billion", "trillion", "dozen", "half", "halves", "third", "thirds"),
        *("quarter", "quarters", "fifths", "sixths", "eighths", "tenths", "hundredths", "thousandths", "squared"),
        *("cubed", "factorial", "plus", "minus", "times", "over", "divided", "to", "than", "below", "negative"),
    ]
)
_UNITS = {
    "centimeter": "cm", "centimetre": "cm", "meter": "m", "metre": "m", "kilometer": "km", "kilometre": "km",
    "millimeter": "mm", "millimetre": "mm", "foot": "ft", "feet": "ft", "inche": "in", "inch": "in", "mile": "mi",
    "gram": "g", "kilogram": "kg", "second": "s", "sec": "s", "minute": "min", "hour": "h", "hr": "h", "mph":
    "mi per h", "degree": "", "percent": "", "unit": "", "square unit": "", "cubic unit": "",
}  # fmt: skip


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
    if len(tokens) > 2 and tokens[0] in _OPENING and _closing_position(tokens) == len(tokens) - 1:
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


def canonical(form: str) -> str:
    r"""One string for all the forms that are equal item by item: numbers as fractions, lists and sets sorted.

    >>> [canonical(form) for form in ["0.50", r"2,\frac{2}{4}", r"\{1,1.0\}", r"90\%", r"5\text{ cm}"]]
    ['1/2', '1/2,2', '1,1', '90', '5']
    """
    shape = shape_of(form)
    if shape.kind == "value":
        value = without_unit(shape.items[0])[0]
        number = exact_number(value)
        return bare(value) if number is None else str(number)
    keys = [canonical(item) for item in shape.items]
    if shape.kind in UNORDERED:
        return ",".join(sorted(keys))
    if shape.kind == "ratio":
        return ":".join(keys)
    opening, _, closing = shape.kind.partition(" ")
    return f"{opening}{','.join(keys)}{closing}" if opening in _OPENING else f"{shape.kind}: {','.join(keys)}"


def without_unit(value: str) -> tuple[str, str]:
    r"""A value without its unit or percent sign, and the unit, spelt one way; "" when there is none.

    A unit is words of its own at the end of something that holds a digit or \pi: "x\text{-axis}" and
    "\text{even}" have none.

    >>> [without_unit(v) for v in [r"5\text{ meters}^{2}", r"50\%", r"n\text{ is even}", r"5\text{ is wrong}"]]
    [('5', 'm^{2}'), ('50', ''), ('n\\text{ is even}', ''), ('5\\text{ is wrong}', '')]
    """
    match = _UNIT.fullmatch(value)
    if match is None:
        return value.removesuffix("\\%"), ""
    words = match["words"].lower().replace(".", "").replace("/", " per ").split()
    if "\\text" in match["rest"] or _NO_UNIT.intersection(words) or not _MEASURABLE.search(match["rest"]):
        return value, ""
    unit = " ".join(_UNITS.get(word, word) for word in (word.removesuffix("s") for word in words))
    power = match["power"] or ""
    for word, exponent in (("square ", "^{2}"), ("sq ", "^{2}"), ("cubic ", "^{3}")):
        if unit.startswith(word):
            unit, power = unit.removeprefix(word), exponent
    return match["rest"], unit + power if unit else ""


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
        depth += (token in _OPENING) - (token in _CLOSING)
        if token == separator and depth == 0:
            parts.append("")
        else:
            parts[-1] += token
    return parts


def _closing_position(tokens: list[str]) -> int:
    """Position of the token that closes the first one, whatever the kind of bracket: [0,1) is an interval."""
    depth = 0
    for position, token in enumerate(tokens):
        depth += (token in _OPENING) - (token in _CLOSING)
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
