r"""What is spelt anew before an answer is read as LaTeX (latex.py): signs, arrays, plain units and separators."""

import re

from tasks.core.verifiers.latex_commands import SIGNS
from tasks.core.verifiers.units import with_text_units

# "1 or 2" is a list, inside \text and outside.
_SEPARATOR_WORD = re.compile(r"(?<![A-Za-z\\])(?:and|or)(?![A-Za-z])", re.IGNORECASE)
_PLAIN_ROOT = re.compile(r"\u221a([0-9]+|[a-z])(?![0-9a-zA-Z.])")
_NUMBER_IN_TEXT = re.compile(r"\\text\{ ?(?P<number>\\?\$?[0-9][0-9,.]*)(?P<words> [a-zA-Z][a-zA-Z ./]*)\}")
_ROW_GAP = re.compile(r"(?<=\\\\)\[-?[0-9.]+ ?(?:pt|em|ex|mm|cm)\]")
_ARRAY = re.compile(
    r"\\left ?[(\[] ?\\begin\{array\}(?:\{[clr]+\})?((?:(?!\\begin).)*)\\end\{array\} ?\\right ?[)\]]", re.S
)


def respelt(raw: str) -> str:
    r"""`raw` with one spelling for what has several.

    `\le` for its sign, pmatrix for an array in brackets, no gap between the rows of a matrix, `\text` around a unit in
    plain letters and none around a number before it, ',' for "and" and "or".

    >>> respelt("2 or 5 cm"), respelt(r"\left(\begin{array}{c}1\\[4pt]2\end{array}\right)")
    ('2 , 5\\text{ cm}', '\\begin{pmatrix}1\\\\2\\end{pmatrix}')
    """
    text = _ROW_GAP.sub("", _PLAIN_ROOT.sub(r"\\sqrt{\1}", raw))
    text = _NUMBER_IN_TEXT.sub(r"\g<number>\\text{\g<words>}", text)
    text = _ARRAY.sub(lambda match: f"\\begin{{pmatrix}}{match[1]}\\end{{pmatrix}}", text)
    return _SEPARATOR_WORD.sub(",", with_text_units(text).translate(SIGNS))
