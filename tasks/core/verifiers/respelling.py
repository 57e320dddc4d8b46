r"""What is spelt anew around the reading of an answer as LaTeX (latex.py): signs, arrays, plain units, fractions."""

import re

from tasks.core.verifiers.latex_commands import SIGNS
from tasks.core.verifiers.units import with_text_units

# "1 or 2" is a list, inside \text and outside.
_SEPARATOR_WORD = re.compile(r"(?<![A-Za-z\\])(?:and|or)(?![A-Za-z])", re.IGNORECASE)
_PLAIN_ROOT = re.compile(r"\u221a([0-9]+|[a-z])(?![0-9a-zA-Z.])")
_NUMBER_IN_TEXT = re.compile(r"\\text\{ ?(?P<number>\\?\$?[0-9][0-9,.]*)(?P<words> [a-zA-Z][a-zA-Z ./]*)\}")
_ROW_GAP = re.compile(r"(?<=\\\\)\[-?[0-9.]+ ?(?:pt|em|ex|mm|cm)\]")
_ARRAY = re.compile(
    r"\\left ?[(\[] ?\\begin\{(array|matrix)\}(?:\{[clr]+\})?((?:(?!\\begin).)*)\\end\{\1\} ?\\right ?[)\]]", re.S
)
_POWER_IN_TEXT = re.compile(r"(?P<words>\\text\{[^{}\\$]*)(?P<power>\^\{[23]\})\}")
_TEXT = r"(?:\\(?:text|textrm|mathrm)\{)?"
_GAP = r"(?:[~ ]|\\[ ,])*"
_MINUTE = r"(?:\\!)?(?::|\\text\{:\})(?:\\!)?(?P<minute>[0-9]{2})"
_TIME = re.compile(  # 5 am may be a product, 5\text{ am} is none
    rf"\s*{_TEXT}\s*(?P<hour>[0-9]{{1,2}})(?:{_MINUTE}{_GAP}{_TEXT}|{_GAP}\\(?:text|textrm|mathrm)\{{)"
    r" ?(?P<half>[aApP])\.? ?[mM]\.?\}{0,2}\.?\s*"
)
ORDINAL = re.compile(rf"\s*{_TEXT}(?P<number>[0-9]+(?:,[0-9]{{3}})*)\^?\{{?{_TEXT}(?:st|nd|rd|th)\}}{{0,2}}\.?\s*")
"""A whole number with st, nd, rd or th, in whatever way it is raised."""
_BASES = "two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen".split()  # noqa: SIM905
_IN_BASE = rf"(?:base ?)?({'|'.join(reversed(_BASES))}|[0-9]{{1,2}})"
_BASE = re.compile(
    rf"_(?:\{{\\(?:text|textrm|mathrm)\{{ ?{_IN_BASE} ?\}}\}}|\{{(?:\\text\{{ ?base ?\}} ?)?{_IN_BASE}\}}"
    rf"|\\(?:text|textrm|mathrm)\{{ ?{_IN_BASE} ?\}})",
    re.IGNORECASE,
)
_ODD_ROOT = re.compile(r"\\sqrt\[(?P<degree>[3579])\]\{-(?P<number>[0-9]+)\}")
_DOTTED = re.compile(r"(?<=\.)(?P<before>[0-9]*)\\dot\{(?P<cycle>[0-9])\}(?![0-9\\])")
_FACTOR = r"(?=~?(?:[a-zA-Z(]|\\(?:pi|sqrt)))"
_FRACTION = re.compile(rf"(?<![0-9.}})\]a-zA-Z/])(?P<over>[0-9]+)/(?P<under>[1-9][0-9]*){_FACTOR}")
_DIVISION = re.compile(rf"/(?P<under>[1-9][0-9]*){_FACTOR}")
_MIXED = re.compile(
    r"(?<![0-9.}\])a-zA-Z])(?P<integer>[0-9]{1,9})~?\\frac\{(?P<over>[0-9]{1,9})\}\{(?P<under>[0-9]{1,9})\}"
)
_PRODUCT = re.compile(r"(?<=[0-9)])~?(?=\(\\frac\{[0-9]+\}\{[0-9]+\}\))|(?<=\))~?(?=\\frac)")


def respelt(raw: str) -> str:
    r"""`raw` with one spelling for what has several.

    `\le` for its sign, pmatrix for an array in brackets, no gap between the rows of a matrix, `\text` around a unit in
    plain letters and none around a number before it, ',' for "and" and "or"; one spelling of a time of the day and
    of a base, and the number alone for 5th.

    >>> respelt("2 or 5 cm"), respelt(r"\left(\begin{array}{c}1\\[4pt]2\end{array}\right)")
    ('2 , 5\\text{ cm}', '\\begin{pmatrix}1\\\\2\\end{pmatrix}')
    """
    text = _ROW_GAP.sub("", _PLAIN_ROOT.sub(r"\\sqrt{\1}", raw)).translate(SIGNS)
    time, ordinal = _TIME.fullmatch(text), ORDINAL.fullmatch(text)
    if time:
        minute = f":{time['minute']}" if time["minute"] not in (None, "00") else ""
        return f"{time['hour']}{minute}\\text{{ {time['half'].lower()}m}}"
    if ordinal:
        return ordinal["number"]
    text = _BASE.sub(_subscript, text)
    text = _NUMBER_IN_TEXT.sub(r"\g<number>\\text{\g<words>}", _POWER_IN_TEXT.sub(r"\g<words>}\g<power>", text))
    text = _ARRAY.sub(lambda match: f"\\begin{{pmatrix}}{match[2]}\\end{{pmatrix}}", text)
    return _SEPARATOR_WORD.sub(",", with_text_units(text))


def with_fractions(form: str) -> str:
    r"""The normal form with fractions that an algebra system cannot misread.

    A division by a number ends at the number, from left to right: 4/3\pi is \frac{4}{3}\pi (math-verify divides by
    3\pi). A mixed number before something else is one fraction: 2\frac{1}{2}\pi is no product of three. A number before
    a fraction in brackets is a factor, and so is one before an improper fraction: 3(\frac{1}{2}) is no mixed number.
    An odd root of a negative number is the real one. A dot over the last digit is a line over it.

    >>> [with_fractions(form) for form in ["4/3\\pi", r"\sqrt{3}/2i", r"2\frac{1}{2}\pi", r"2\frac{1}{2}", "1/x"]]
    ['\\frac{4}{3}\\pi', '\\sqrt{3}\\cdot\\frac{1}{2}i', '\\frac{5}{2}\\pi', '2\\frac{1}{2}', '1/x']
    """
    form = _FRACTION.sub(r"\\frac{\g<over>}{\g<under>}", form)
    form = _DOTTED.sub(r"\g<before>\\overline{\g<cycle>}", form)
    form = _ODD_ROOT.sub(r"(-\\sqrt[\g<degree>]{\g<number>})", form)
    form = _DIVISION.sub(r"\\cdot\\frac{1}{\g<under>}", form)
    return _MIXED.sub(_improper, _PRODUCT.sub(lambda match: "\\cdot", form))


def _subscript(match: re.Match[str]) -> str:
    base = match[match.lastindex or 0].lower()
    return f"_{{{2 + _BASES.index(base) if base in _BASES else base}}}"


def _improper(match: re.Match[str]) -> str:
    integer, over, under = int(match["integer"]), int(match["over"]), int(match["under"])
    if not 0 < over < under:
        return f"{integer}\\cdot\\frac{{{over}}}{{{under}}}"
    is_all = match.end() == len(match.string)
    return match[0] if is_all else f"\\frac{{{integer * under + over}}}{{{under}}}"
