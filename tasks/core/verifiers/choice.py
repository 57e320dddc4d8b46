r"""The verifier of multiple-choice tasks: the letter of an option, never its text."""

import re
from collections.abc import Sequence
from itertools import islice
from string import ascii_uppercase
from typing import NamedTuple

from tasks.core.verdict import Judgement, Status, unparseable
from tasks.core.verifiers.boxes import after_thoughts, last_box

LETTERS = ascii_uppercase
"""Letters of the options, in order."""
MAX_CHARACTERS = 1000
"""Longest box or one-line answer that is read."""

_WINDOW = 120
"""Characters after "answer is" that are read."""
_MAX_PHRASES = 10_000
"""Phrases "answer is" that are looked at, from the last one backwards."""

_PHRASE = re.compile(
    r"\banswer(?: to (?:the|this|your) question(?: above)?| here| among (?:these|them|the (?:options|choices)))?+"
    r"[*_]*+ *+(?:is\b|must be\b|[:\u2013\u2014]|- )|<answer>"
    r"|(?:^|\b(?:correct|right|best) )(?:option|choice)[*_]*+ *+(?:is\b|:)",
    re.IGNORECASE | re.MULTILINE,
)
_WEAK_PHRASE = re.compile(
    r"\b(?:answer|(?:correct|right|best) (?:option|choice))[*_]*+ *+(?:would|should) be\b"
    r"|\bI(?: would| will|'ll|'d)? (?:choose|pick|select|go with)\b",
    re.IGNORECASE,
)
# "Option C is correct.", where nothing before makes another thing of it, as in "vitamin C is the right answer".
_CALLED = re.compile(
    r"(?:^[ \t*_]*+|[.,;:!?] [*_]*+|\b(?:so|thus|hence|therefore) )(?:option |choice )?[*_(\[]*+(?P<letter>(?-i:[A-Z]))"
    r"[*_)\]]*+ is (?:the )?(?:(?:correct|right|best)(?: (?:answer|option|choice))?|answer)[*_]*+"
    r"(?=[.,;:!]|\s*+\Z|[ \t]*+\n|\s++(?:because|since|as)\b)",
    re.IGNORECASE | re.MULTILINE,
)
_LEAD = (
    r"(?:[\s*_:$\"'`\u201c\u2018(\[]|\\[(\[]|\\(?:text|textbf|mathbf|mathrm|boxed)\{"
    r"|(?i:option|choice|letter|most likely|likely|probably|definitely|clearly|therefore|thus)\s)*+"
)
_STATED = re.compile(
    _LEAD + r"(?:(?<=[(\[])(?P<bracketed>[a-z])(?=[)\]])|(?P<letter>[A-Z])(?![A-Za-z0-9]|['\u2019][A-Za-z]))"
)
_NO_LETTER = re.compile(_LEAD + r"(?i:not|none|neither|both|either|all|any|unclear|unknown|n/a)\b")
_CLOSERS = re.compile(r"(?:[)\]}*_$\"'`\u201d]|\\[)\]])*+")
_OPEN = r"[(\[*_\"'`\u201c\u2018]*+"
_SHUT = r"[)\]*_\"'`\u201d\u2019.,;:]*+"
_ANOTHER = re.compile(
    r"\s*+(?:"
    r"(?:[/&+\-\u2013\u2014]|[.,;(\[]?\s*+"
    r"(?i:or|and|also|as is|as well as|maybe|perhaps|possibly|alternatively)\b,?)\s*+"
    rf"(?i:option\s|choice\s|or\s|and\s)?{_OPEN}[A-Z](?![A-Za-z])"
    rf"|[,;]\s*+{_OPEN}[A-Z](?:[)\]*_\"'`\u201d\u2019.,;:/&<]|\s*+\Z|\s*+\n|\s++(?i:or|and)\b)"
    rf"|[.,;:]?[ \t]*+{_OPEN}[A-Z](?![A-Za-z0-9]){_SHUT}[ \t]*+(?:\Z|{_OPEN}[A-Z](?![A-Za-z]))"
    r"|[(\[][A-Z][)\]])"
)
_END = re.compile(
    r"[.,;:!\u2014\u3002]|[ \t]*+(?:\r?\n|\(|\Z)|[ \t]++[-\u2013\u2014]|[-\u2013\u2014]\s"
    r"|\s*+</answer>|\s++(?i:because|since|as|due|which|based"
    r"|(?:rather than|instead of)(?= [A-Za-z(])|for (?:the following|this|these|several)"
    r"|is (?:the )?(?:correct|right|best))\b"
)
# "I do not think the answer is C", "if the answer is C": a clause before the phrase that takes it back.
_TAKEN_BACK = re.compile(
    r"\b(?:not|never|cannot|if|whether|unless|why|had|wrong|incorrect|false|worst|(?<!at )least"
    r"|unlikely|tempting|your)\b|\b(?:second|next)[ -]best\b|n['\u2019]t\b",
    re.IGNORECASE,
)
_ARTICLE = re.compile(r" [a-z]")  # "this answer: A patient with", "I choose A lower dose"
_CLAUSE_START = re.compile(r"[.,;:!?\n]")

_TYPEFACE = re.compile(
    r"\\(?:text(?:bf|it|rm|sf|tt)?|math(?:rm|bf|sf|it|tt|bb|cal)|boldsymbol|bm|boxed|underline)(?=\{)"
    r"|\\(?:[lL]arge|LARGE|[hH]uge|bf|displaystyle)(?![a-zA-Z])|[{}$*]|\\[()]"
)
_PREFIX = r"\s*(?i:(?:the )?(?:correct )?(?:answer|option|choice)\s*(?:is|:)?\s+)?"
_LONE = re.compile(_PREFIX + r"[(\[]?\s*(?P<letter>[A-Za-z])\s*[)\]]?\s*[.:]?\s*")
_LABELLED = re.compile(_PREFIX + r"(?:[(\[](?P<round>[A-Z])[)\]]:?|(?P<letter>[A-Z])[).:])\s*(?P<text>\S.*)", re.DOTALL)
_NAMED = re.compile(r"(?P<letter>[A-Z])[^A-Za-z0-9]++(?P<text>.+)", re.DOTALL)
_LABEL = re.compile(r"(?:^|(?<=[\s,;/]))(?P<label>[A-Z])[).:]\s+\S|[(\[](?P<round>[A-Z])[)\]]")
_LISTED = re.compile(r"(?:\b(?i:or|and)\b|[/,&])\s*[(\[]?(?P<label>[A-Z])[)\]]?(?=[\s.,;]|$)")
_BARE = re.compile(
    r"(?:^|[.,;:/&]\s*|\b(?i:not|or|and|but|is|both|either|maybe|perhaps|alternatively)\s+)[(\[*]*(?P<label>[A-Z])(?![A-Za-z0-9'\u2019-])"
    r"(?=[)\].,;:*]*\s*(?:$|[.,;]|(?i:or|and|but)\b))"
)
# A letter before the last paragraph, in a list or as an answer; "A patient", "a" and "type-B" are none.
_LETTER_BEFORE = re.compile(r"(?<![A-Za-z0-9'\u2019\-])(?P<label>[A-Z])(?![A-Za-z0-9'\u2019\-])(?! [a-z])")
_REJECTED = re.compile(
    rf"(?:{_TAKEN_BACK.pattern}|\b(?:reject|rul(?:e|ed|ing) out|except|distract|eliminat))[^\n]*(?<![.!?)])\Z",
    re.IGNORECASE,
)
_NOT_WORD = re.compile(r"[^a-z0-9]+")


class _Stated(NamedTuple):
    letter: str | None
    """The letter, None when what is stated is no letter, or more than one."""
    raw: str
    """The text that states it."""
    is_open: bool
    """Whether the text ends right after the letter: cut there, it may be the start of a word."""


class ChoiceVerifier:
    r"""Compares the letter that a completion chooses with the gold letter.

    Rule: everything up to the last </think> is dropped. The first of these that is there decides, whatever it says:
    1. The last box (boxes.py): `\boxed{C}`, `\boxed{(C)}`, `\boxed{\text{C}}`, `\boxed{c}`, `\boxed{C. its text}`; with
       `options`, also `\boxed{C \text{ (its text)}}` and others with the very text of that option.
    2. The last "answer is", "answer:", "option is" ... that is followed by a letter standing alone: "The answer is C.",
       "Answer: (C) its text", "**Answer:** C", "the answer is (c)"; where there is none, the last "answer would be",
       "answer should be" or "I choose" that is. The letter must be ended by punctuation, a bracket, a line's end or a
       word such as "because": "the answer is A patient ..." is no choice. "Answer: A/B", "A or B", "not C" and "None"
       decide as well, for no letter; other words ("the answer is aspirin") are passed over, and so are phrases that are
       taken back ("I do not think the answer is C", "if the answer is C", "Incorrect answer: C").
    3. The one option that is called the correct one: "C is correct.", "Option C is the best answer because ...".
    4. A capital letter alone: "C", "(C)", "**C**", "C." as all the text or as its last line; or a labelled option, "(C)
       its text", "C. its text", in a text of one line; with `options`, also the very text of that option as the
       last paragraph, where no other option's letter stands before it and the line before takes nothing back.
    Letters are capital; lower case counts only alone in a box or in brackets. The text of an option never decides for
    one; beside a letter it can contradict: `\boxed{C. <text of option A>}` is unparseable, and so are two
    letters in one box, in one phrase or in one line.
    With `options`, the letter must be one of them, else the answer is unparseable; without, any of A to Z.
    Source: our own rule; the forms are those that instruct models write and evaluation harnesses filter for.
    Degenerate cases: none of the four is unparseable; so is an unclosed box. A completion cut by the length limit is
    truncated when its box is unclosed or it ends at the letter that would count; after that it is judged as any other.

    >>> verifier = ChoiceVerifier()
    >>> texts = [r"\boxed{C}", "The answer is (C).", "**C**", "Answer: B or C", "The answer is A patient's right."]
    >>> [verifier.judge(text, "C", is_truncated=False).status.value for text in texts]
    ['correct', 'correct', 'correct', 'unparseable', 'unparseable']
    """

    name = "choice"
    version = 2
    warning = ""

    def judge(self, completion: str, answer: str, *, is_truncated: bool, options: Sequence[str] = ()) -> Judgement:
        """Judge `completion` by the rule above. Errors: ValueError where check_answer would raise."""
        self.check_answer(answer, options)
        text = after_thoughts(completion)
        stated = (
            _in_box(text, options)
            or _in_phrase(text, _PHRASE, options)
            or _in_phrase(text, _WEAK_PHRASE, options)
            or _called(text)
            or _alone(text, options)
        )
        if is_truncated and (stated is None or stated.is_open):
            return Judgement(status=Status.TRUNCATED, extracted_answer=None)
        if stated is None:
            return unparseable(None)
        if stated.letter is None or stated.letter not in LETTERS[: len(options) or len(LETTERS)]:
            return unparseable(stated.raw)
        status = Status.CORRECT if stated.letter == answer else Status.WRONG
        return Judgement(status=status, extracted_answer=stated.letter)

    def check_answer(self, answer: str, options: Sequence[str] = ()) -> None:
        """Accept one capital letter, of the options if there are any. Errors: ValueError for anything else."""
        check_letter(answer, self.name)
        check_options(answer, options)


def check_letter(answer: str, verifier: str) -> None:
    """Raise ValueError unless `answer` is one capital letter."""
    if len(answer) != 1 or answer not in LETTERS:
        raise ValueError(
            f"gold answer {answer[:80]!r} cannot be compared: the {verifier} verifier expected the letter of an "
            "option, A to Z; turn an index or an option's text into its letter, or choose another verifier"
        )


def check_options(answer: str, options: Sequence[str]) -> None:
    """Raise ValueError when the gold letter is beyond the options, if there are any."""
    if options and answer not in LETTERS[: len(options)]:
        raise ValueError(
            f"gold answer {answer!r} cannot be compared: expected one of the question's {len(options)} options, "
            f"A to {LETTERS[len(options) - 1]}; check the answer column, its index may start at 1"
        )


def _in_box(text: str, options: Sequence[str]) -> _Stated | None:
    box = last_box(text)
    if box is None:
        return None
    raw, is_closed = box[1]
    if not is_closed or len(raw) > MAX_CHARACTERS:
        return _Stated(None, raw, is_open=not is_closed)
    content = _TYPEFACE.sub("", raw)
    lone = _LONE.fullmatch(content)
    letter = lone["letter"].upper() if lone else _labelled(content, options)
    return _Stated(letter, raw, is_open=False)


def _in_phrase(text: str, phrase: re.Pattern[str], options: Sequence[str]) -> _Stated | None:
    phrases = [match.span() for match in phrase.finditer(text)]
    for start, end in islice(reversed(phrases), _MAX_PHRASES):
        clause = _CLAUSE_START.split(text[max(0, start - 60) : start])[-1]
        if _TAKEN_BACK.search(clause):
            continue
        window = text[end : end + _WINDOW]
        raw = text[start : end + _WINDOW].partition("\n\n")[0]
        if _NO_LETTER.match(window):
            return _Stated(None, raw, is_open=False)
        match = _STATED.match(window)
        if match is None:
            continue
        closers = _CLOSERS.match(window, match.end())
        assert closers is not None  # it matches the empty string
        rest = window[closers.end() :]
        is_ended = closers[0] or _END.match(rest)
        is_another = _ANOTHER.match(rest)
        letter = (match["letter"] or match["bracketed"]).upper()
        named = [i for i, option in enumerate(options) if _words(option) == _words(rest.partition("\n")[0]) != ""]
        if named:  # the text beside the letter is an option's, which may be a letter itself
            return _Stated(letter if LETTERS.index(letter) in named else None, raw, is_open=False)
        if match["letter"] in ("A", "I") and _ARTICLE.match(rest) and not is_ended and not is_another:
            continue
        if is_another or not is_ended:
            return _Stated(None, raw, is_open=False)
        return _Stated(letter, raw, is_open=not (rest or closers[0]))
    return None


def _called(text: str) -> _Stated | None:
    called = list(_CALLED.finditer(text))
    if not called:
        return None
    letters = {match["letter"] for match in called}
    return _Stated(letters.pop() if len(letters) == 1 else None, called[-1][0].strip(), is_open=False)


def _alone(text: str, options: Sequence[str]) -> _Stated | None:
    stripped = text.strip(" \t\r\n")
    line = stripped[stripped.rfind("\n") + 1 :]
    if not line or len(line) > MAX_CHARACTERS:
        return None
    content = _TYPEFACE.sub("", line).replace("_", "")
    lone = _LONE.fullmatch(content)
    if lone and lone["letter"].isupper():
        return _Stated(lone["letter"], line, is_open=True)
    labelled = _LABELLED.fullmatch(content)
    if line == stripped:
        return _Stated(_labelled(content, options), line, is_open=True) if labelled else None
    before, blank, _ = ("\n" + stripped).rsplit("\n", 2)
    if not labelled or blank.strip() or _words(labelled["text"]) not in map(_words, options):
        return None  # the end of a list, or another text
    letter = _labelled(content, options)
    named = {match["label"] for match in _LETTER_BEFORE.finditer(before)} & set(LETTERS[: len(options)])
    is_answer = named <= {letter} and not _REJECTED.search(before.rstrip()[-_WINDOW:])
    return _Stated(letter, line, is_open=True) if is_answer else None


def _labelled(content: str, options: Sequence[str]) -> str | None:
    """The letter of "C. its text"; None when the text names other letters, or is that of another option."""
    texts = [_words(option) for option in options]
    match = _LABELLED.fullmatch(content)
    if match is None:
        named = _NAMED.fullmatch(content.strip())
        own_text = named and texts[LETTERS.index(named["letter"]) :][:1]
        return named["letter"] if named and own_text == [_words(named["text"])] else None
    letter, text = match["letter"] or match["round"], match["text"]
    own = LETTERS.index(letter)
    if _words(text) in texts:
        return letter if own < len(texts) and texts[own] == _words(text) else None
    labels = [found["label"] or found["round"] for found in _LABEL.finditer(text)]
    labels += [found["label"] for pattern in (_LISTED, _BARE) for found in pattern.finditer(text)]
    return letter if set(labels) <= {letter} else None


def _words(text: str) -> str:
    return _NOT_WORD.sub(" ", text.lower()).strip()
