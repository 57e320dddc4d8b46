r"""The normal form of a LaTeX answer: one string for all the ways of typesetting the same thing.

The answer is read token by token, as TeX does, and written anew. Nothing is evaluated.
"""

import re

from tasks.core.verifiers.latex_commands import (
    COLORS,
    DEGREE,
    FRACTIONS,
    FUNCTIONS,
    NOTHING,
    NUM_ARGUMENTS,
    SIZES,
    SPACES,
    SYNONYMS,
    TEXTS,
    TRIGONOMETRIC,
    TYPEFACES,
)
from tasks.core.verifiers.respelling import respelt, with_fractions
from tasks.core.verifiers.units import is_lone_unit

MAX_CHARACTERS = 400
"""Longest answer that is read: MATH's longest gold answer has 159 characters."""
MAX_DEPTH = 60
"""Deepest nesting of braces and brackets that is read."""

_TOKEN = re.compile(r"\\[a-zA-Z]+|\\.|[ \t\r\n]+|.", re.DOTALL)
_WORD = re.compile(r"[^\W\d_]{2}")
_SEPARATORS = re.compile(r"[,;][,;~]*")
_THIN_THOUSANDS = re.compile(r"(?<![0-9.,~])[1-9][0-9]{0,2}(?:\\,[0-9]{3})+(?![0-9])")
_SURE_THOUSANDS = re.compile(r"(?<![0-9.,~])[1-9][0-9]{0,2}(?:,\\![0-9]{3})+(?![0-9])")
_COMMA_THOUSANDS = re.compile(r"(?<![0-9.,~])[1-9][0-9]{0,2}(?:,[0-9]{3})+(?![0-9,~])")
_BARE_POINT = re.compile(r"(?<![0-9])\.(?=[0-9]|\\overline)")
_EMPTY_SET = re.compile(r"\\\{\\\}")


class _Unreadable(Exception):
    """The braces do not match or are nested too deep, or the answer ends in a backslash."""


def normal_form(raw: str) -> str | None:
    r"""The answer `raw` in normal form; None when it cannot be read: see below.

    Changed: `\left`, `\right`, `\displaystyle`, typefaces, thin and negative spaces and dollar signs go; so do degree
    signs, but under a trigonometric function, where 20^\circ is \frac{20\pi}{180}; `\dfrac` and `\tfrac` are `\frac`;
    arguments of `\frac`, `\sqrt`, `^` and `_` get braces, and braces that mean nothing go; `\text` and its like become
    `\text{words}`, or plain characters when they hold no word; synonyms become one (`\leq` is `\le`, `\varnothing` is
    `\emptyset`, "and", "or" and ';' are ','); thousands separators go where all groups are full, a plain comma only
    outside brackets; ".5" is "0.5"; a full stop at the end goes.
    Between digits a space is kept, as '~': "1 2" is not 12.
    None: nothing left; more than MAX_CHARACTERS; braces that do not match; nesting beyond MAX_DEPTH; control characters
    and other invisible ones.

    >>> [normal_form(raw) for raw in [r"\dfrac12", r"10,\!080.", r"\left( 3, \tfrac{\pi}{2} \right)", "{", "1 or 2"]]
    ['\\frac{1}{2}', '10080', '(3,\\frac{\\pi}{2})', None, '1,2']
    """
    if len(raw) > MAX_CHARACTERS:
        return None
    text = respelt(raw)
    if not all(character.isprintable() or character in "\t\r\n" for character in text) or _is_deep(text):
        return None
    try:
        tokens = _degrees(_Reader(_TOKEN.findall(text)).all())
    except _Unreadable:
        return None
    form = with_fractions(_regrouped(joined(_spaced(tokens))).removesuffix("."))
    return form or None


def joined(tokens: list[str]) -> str:
    r"""The tokens as one string, a space only where a command would run into a letter.

    >>> joined(["\\pi", "r", "^{", "2", "}"])
    '\\pi r^{2}'
    """
    pieces: list[str] = []
    for token in tokens:
        if token[:1].isalpha() and pieces and re.fullmatch(r"\\[a-zA-Z]+", pieces[-1]):
            pieces.append(" ")
        pieces.append(token)
    return "".join(pieces)


def _degrees(tokens: list[str]) -> list[str]:
    r"""The tokens without degree signs; under a trigonometric function they mean \pi/180, and 20 is another angle.

    >>> "".join(_degrees(["\\sin", "2", "0", DEGREE])), _degrees(["2", "0", DEGREE])
    ('\\sin\\frac{20\\pi}{180}', ['2', '0', '~'])
    """
    if TRIGONOMETRIC.isdisjoint(tokens):
        return ["~" if token == DEGREE else token for token in tokens]
    read: list[str] = []
    for token in tokens:
        if token != DEGREE:
            read.append(token)
            continue
        start = len(read)
        while start and (read[start - 1] == "." or read[start - 1].isdecimal()):
            start -= 1
        if start == len(read):  # a letter's degrees, or a bracket's: equal to nothing but themselves
            read.append(token)
        else:
            read[start:] = ["\\frac{", *read[start:], "\\pi", "}{", "1", "8", "0", "}"]
    return read


def _is_deep(text: str) -> bool:
    depth = deepest = 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        deepest = max(deepest, depth)
    return deepest > MAX_DEPTH


def _spaced(tokens: list[str]) -> list[str]:
    """The tokens with one space for several, and only between digits and after commas: elsewhere it means nothing."""
    kept: list[str] = []
    space = ""
    for token in tokens:
        if token in ("~", "\\,"):
            space = "~" if space else token
            continue
        before = kept[-1] if kept else ""
        if space and (before == "," or (before.isdecimal() and token.isdecimal())):
            kept.append(space)
        kept.append(token)
        space = ""
    return kept


def _regrouped(form: str) -> str:
    for pattern, separator in ((_THIN_THOUSANDS, "\\,"), (_SURE_THOUSANDS, ",\\!")):
        form = pattern.sub(lambda match, gone=separator: match[0].replace(gone, ""), form)  # type: ignore[misc]
    form = form.replace(",\\!", ",").replace("\\,", "~")
    if not any(bracket in form for bracket in "([") and "\\{" not in form:
        form = _COMMA_THOUSANDS.sub(lambda match: match[0].replace(",", ""), form)
    form = _SEPARATORS.sub(",", form)
    form = _BARE_POINT.sub("0.", form)
    return _EMPTY_SET.sub(r"\\emptyset", form)


class _Reader:
    """Reads tokens and returns those of the normal form."""

    def __init__(self, tokens: list[str]) -> None:
        self.tokens = tokens
        self.position = 0
        self.depth = 0

    def all(self) -> list[str]:
        read = self.sequence()
        if self.position < len(self.tokens):
            raise _Unreadable
        return read

    def next(self) -> str:
        if self.position >= len(self.tokens):
            return ""
        self.position += 1
        return self.tokens[self.position - 1]

    def peek(self) -> str:
        return self.tokens[self.position] if self.position < len(self.tokens) else ""

    def sequence(self) -> list[str]:
        """Everything up to the brace that closes this group, or the end."""
        read: list[str] = []
        while self.peek() not in ("", "}"):
            read += self.item()
        return read

    def group(self) -> list[str]:
        """The content of a group whose opening brace was read."""
        read = self.sequence()
        if self.next() != "}":
            raise _Unreadable
        return read

    def argument(self) -> list[str]:
        """What TeX takes as an argument: a group or one token with its own arguments."""
        self.skip_spaces()
        self.depth += 1  # "^^^^" nests without a brace
        if self.peek() in ("", "}") or self.depth > MAX_DEPTH:
            raise _Unreadable
        if self.peek() == "{":
            self.next()
            read = self.group()
        else:
            read = self.item()
        self.depth -= 1
        return read

    def skip_spaces(self) -> None:
        while self.peek().isspace():
            self.next()

    def item(self) -> list[str]:
        """One token, normalized, with its arguments."""
        token = self.next()
        if token == "\\":  # it would escape what follows the answer, its box's brace
            raise _Unreadable
        token = SYNONYMS.get(token, token)
        if token.isspace() or token in SPACES:
            return ["~"]
        if token == "\\degree":
            return [DEGREE]
        if token in ("\\,", "\\thinspace"):
            return ["\\,"]
        if token == "{":
            return self.bare_group()
        if token in TEXTS:
            return self.words()
        if token in FRACTIONS:
            return ["\\frac{", *self.argument(), "}{", *self.argument(), "}"]
        if token in ("^", "_"):
            return self.script(token)
        if token == "\\sqrt":
            return self.root()
        return self.plain(token)

    def plain(self, token: str) -> list[str]:
        if token in SIZES:
            self.skip_spaces()
            if self.peek() == ".":
                self.next()
            return []
        if token in TYPEFACES:
            return self.argument()
        if token in COLORS:
            self.argument()
            return []
        if token in ("\\begin", "\\end"):
            name = "".join(self.argument())
            return [f"{token}{{{'pmatrix' if name == 'bmatrix' else name}}}"]
        if token == "," and self.peek() == "\\!":
            self.next()
            return [",\\!"]
        if token in NOTHING:
            return []
        return self.command(token) if token[:1] == "\\" and token[1:].isalpha() else [token]

    def command(self, name: str) -> list[str]:
        """A command and the groups that follow it, which keep their braces; a function of one token needs none."""
        name = "\\binom" if name in ("\\dbinom", "\\tbinom") else name
        if name in NUM_ARGUMENTS:
            return [name, *(token for _ in range(NUM_ARGUMENTS[name]) for token in ("{", *self.argument(), "}"))]
        read = [name]
        self.skip_spaces()
        while self.peek() == "{":
            self.next()
            group = self.group()
            read += group if name in FUNCTIONS and len(group) == 1 else ["{", *group, "}"]
        return read

    def bare_group(self) -> list[str]:
        read = self.group()
        if read == [","]:
            return [",\\!"]
        # Without its braces, {2^3}^4 would be another power.
        return ["{", *read, "}"] if self.peek() in ("^", "_") and len(read) > 1 else read

    def script(self, mark: str) -> list[str]:
        read = self.argument()
        if mark == "^" and read in (["\\circ"], []):
            return [DEGREE] if read else ["~"]
        if mark == "^" and set(read) == {"'"}:
            return read
        return [mark + "{", *read, "}"]

    def root(self) -> list[str]:
        self.skip_spaces()
        degree: list[str] = []
        if self.peek() == "[":
            self.next()
            while self.peek() not in ("]", "", "}"):
                degree += self.item()
            if self.next() != "]":
                raise _Unreadable
        mark = ["\\sqrt[", *degree, "]{"] if degree else ["\\sqrt{"]
        return [*mark, *self.argument(), "}"]

    def words(self) -> list[str]:
        """The argument of a text command: plain characters or words."""
        before = self.tokens[self.position - 2] if self.position > 1 else ""
        self.skip_spaces()
        start = self.position
        read = self.argument()
        words = " ".join(
            "".join(self.tokens[start : self.position]).strip("{}").replace("~", " ").split()
        ).removesuffix(".")
        if "\\" in words or "$" in words or "{" in words or "}" in words:
            return read
        has_space = self.tokens[start + 1 : start + 2] in ([" "], ["~"]) or before in ("\\,", "\\ ", "~", "\\;")
        if not _WORD.search(words) and not (has_space and is_lone_unit(words.strip("()"))):
            return read
        return [f"\\text{{{' ' if has_space else ''}{words}}}"]
