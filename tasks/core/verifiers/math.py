r"""The verifier of MATH and of every other task whose answer is one piece of mathematics in a box."""

import re
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache

from tasks.core.verdict import MAX_EXTRACTED_CHARACTERS, Comparison, Judgement, Status, unparseable
from tasks.core.verifiers.boxes import after_thoughts, last_box
from tasks.core.verifiers.exact_numbers import exact_number
from tasks.core.verifiers.guards import Word, algebra_form, guarded, is_comparable
from tasks.core.verifiers.latex import MAX_CHARACTERS, normal_form
from tasks.core.verifiers.respelling import ORDINAL
from tasks.core.verifiers.shapes import TOKEN, UNORDERED, Shape, bare, canonical, shape_of, trusted_units, without_unit

_LETTER = (
    r"(?:[a-zA-Z]|\\(?:alpha|beta|gamma|delta|epsilon|varepsilon|theta|lambda|mu|rho|sigma|tau|phi|varphi|omega|ell))"
)
# "x =", "f(x) =", "a_n =", "P(A) =", "AB =", "\angle A =", "(a,b) =": the name of what was asked for; "x \in" likewise.
_NAME = re.compile(
    rf"(?P<name>(?:m?\\angle ?[A-Z]{{1,3}}|[A-Z]{{2,3}}|{_LETTER}'?(?:_\{{[^{{}}]{{1,5}}\}})?(?:\^\{{-1\}})?"
    r"(?:\((?P<arguments>[a-z](?:,[a-z])*|[A-Z]|-?[0-9]{1,4})\))?)"
    rf"|\({_LETTER}(?:,{_LETTER})+\))(?P<sign>=|\\in(?![a-z]))"
)
_UNSORTED = re.compile(r"\((?=.*y,x|.*z,[xy]|.*b,a|.*n,m|.*q,p)")
_SIGN = re.compile(r"=|\\in(?![a-z])")
_ELABORATED = re.compile(r"(?P<exact>[^=]+?)(?P<sign>=|\\approx)(?P<decimal>-?[0-9]+\.(?P<places>[0-9]+))")
_LAST_SIGN = re.compile(r"(?:(?P<percent>\\%|percent)|degrees?|\^ ?\{? ?\\circ ?\}?|\u00b0|\\degree)[\s$.}]*\Z")
_VECTOR = r"\\(?:mathbf|boldsymbol|bm|bold|vec|overrightarrow) ?(?:\{[A-Za-z]\}|[A-Za-z])(?:\^(?:\{[^{}]*\}|[0-9T]))?"
_VECTOR_PRODUCT = re.compile(rf"{_VECTOR}\s*(?:\\times\s*)?{_VECTOR}")
_UNBRACED_BOX = re.compile(r"\\(?:boxed|fbox)[ \t\r\n]++(?!\{)(?P<answer>[^$\n]++)")


class MathVerifier:
    r"""Compares the last box of a completion with a gold answer, as mathematics.

    Rule: everything up to the last </think> is dropped; the answer is the last `\boxed{...}` or `\fbox{...}` that is
    not in a LaTeX comment (boxes.py). Answer and gold are brought to normal form (latex.py) and compared, in this
    order:
    1. Equal as text: correct. Numbers, points, intervals, matrices, lists and sets are equal when their items are,
       lists and sets in any order; a list and a set of the same items are equal. "x=" and "x \in" are dropped where one
       of the two has them or both have the same. A unit or percent sign at the end is dropped (two different units are
       wrong), hence 50\% is 50 and never 0.5. Words are compared without regard to case, but for capitals
       alone, which may be labels: AB is not ab.
    2. Numbers (exact_numbers.py): correct or wrong, exactly: 0.333 is not \frac{1}{3}.
       A decimal behind the exact value only elaborates it: 12\pi \approx 37.7 is 12\pi.
    3. Another shape (shapes.py): wrong. A list where one value was asked for, or one value for a list; another number
       of items; (1,2) for [1,2], for \{1,2\} or for "1,2"; an inequality for an interval, since (0,1) may be a point.
       \pm 2 counts as the list 2,-2; a matrix may have a factor before it.
    4. What an algebra system would take for equal and is not, or should not be given: wrong or unparseable (guards.py).
    5. All else is a Comparison, for an algebra system. No text of a completion is ever evaluated here.

    Source: the MATH paper (arXiv 2103.03874) and its normalization, which verl's math_reward uses. Stricter than these:
    "1 2" is not 12, "\text{ or }" is a separator and no unit, a unit hides nothing after it. More lenient: every
    decimal is a fraction, lists have no order, words have no case.

    Degenerate cases: those of the gsm8k verifier (no box, an unclosed box, a box cut by the length limit, thoughts); an
    empty box is unparseable, and so is an answer of more than MAX_CHARACTERS, nested too deep, with braces that do not
    match or with control characters. Characters beyond ASCII and the signs of latex.py are unparseable, unless the
    answer equals the gold, character by character.

    >>> verifier = MathVerifier()
    >>> verifier.judge(r"So \boxed{\dfrac{1}{2}}.", "0.5", is_truncated=False).status.value
    'correct'
    >>> verifier.judge(r"So \boxed{2x+2}.", "2(x+1)", is_truncated=False)
    Comparison(answer='2x+2', gold='2(x+1)')
    """

    name = "math"
    version = 2
    warning = ""

    def judge(
        self, completion: str, answer: str, *, is_truncated: bool, options: Sequence[str] = ()
    ) -> Judgement | Comparison:
        """Judge `completion` by the rule above. Errors: ValueError where check_answer would raise."""
        gold = _gold_form(answer)
        box = last_box(after_thoughts(completion))
        if is_truncated and (box is None or not box[1].is_closed):
            return Judgement(status=Status.TRUNCATED, extracted_answer=None)
        if box is None:
            return unparseable(None)
        form = normal_form(box[1].raw) if box[1].is_closed else None
        if form is None:
            return unparseable(box[1].raw)
        form, gold = _aligned(_without_decimal(form), gold)
        word = "different" if _is_other_by_signs(box[1].raw, form, answer, gold) else compare(form, gold)
        if word == "unreadable":
            return unparseable(box[1].raw)
        if word == "undecided":
            trusted = trusted_units(gold)
            return Comparison(answer=algebra_form(_value(form, trusted)), gold=algebra_form(_value(gold, trusted)))
        status = Status.CORRECT if word == "equal" else Status.WRONG
        return Judgement(status=status, extracted_answer=canonical(form)[:MAX_EXTRACTED_CHARACTERS])

    def check_answer(self, answer: str, options: Sequence[str] = ()) -> None:
        """Accept LaTeX that can be read. Errors: ValueError for what cannot be, and for a whole solution."""
        _gold_form(answer)


def compare(answer: str, gold: str) -> Word:
    r"""What text says of two answers in normal form.

    >>> [compare(answer, "(1,\\pi)") for answer in ["(1.0,\\pi)", "(1,-\\pi)", "(2,\\pi)", "1,\\pi", "(1,\\foo)"]]
    ['equal', 'undecided', 'different', 'different', 'unreadable']
    """
    if answer == gold:
        return "equal"
    shape, gold_shape = shape_of(answer), shape_of(gold)
    if sorted((shape.kind[:6], gold_shape.kind[:6])) == ["matrix", "value"]:  # \frac{1}{2}\begin{pmatrix}...
        return guarded(answer, gold) if "pmatrix" in answer and "pmatrix" in gold else "different"
    if len(shape.items) != len(gold_shape.items):
        return "different"
    if shape.kind in UNORDERED and gold_shape.kind in UNORDERED:
        return _compare_unordered(shape, gold_shape)
    if shape.kind != gold_shape.kind:
        return "different"
    if shape.kind == "value":
        return _compare_values(shape.items[0], gold_shape.items[0])
    words = [compare(item, gold_item) for item, gold_item in zip(shape.items, gold_shape.items, strict=True)]
    if shape.kind == "ratio" and "undecided" in words:
        return "different"
    if "undecided" in words and ("\\text" in answer + gold or "\\%" in answer + gold):
        return "different"
    ranks: tuple[Word, ...] = ("different", "unreadable", "undecided")
    return next((word for word in ranks if word in words), "equal")


def gold_answer(solution: str) -> str:
    r"""The content of the last box of a MATH row's `solution`. Errors: ValueError when there is none.

    `\boxed 7$`, without a brace, stands in a few solutions: its answer ends at the '$' or with the line.

    >>> gold_answer(r"So $x^2 = 4$ and $x = \boxed{\pm 2}$.")
    '\\pm 2'
    """
    box = last_box(solution)
    if box is not None and box[1].is_closed:
        return box[1].raw.strip()
    unbraced = [match["answer"].strip() for match in _UNBRACED_BOX.finditer(solution)]
    if box is None and unbraced:
        return unbraced[-1]
    raise ValueError(
        f"solution ends in {solution[-60:]!r}: expected a last \\boxed{{...}} that is closed, as in every row of MATH; "
        "check that the column is `solution`"
    )


@lru_cache(maxsize=4096)
def _gold_form(answer: str) -> str:
    form = None if "\\boxed" in answer or "\\fbox" in answer else normal_form(answer)
    if form is None or not is_comparable(form):
        raise ValueError(
            f"gold answer {answer[:MAX_EXTRACTED_CHARACTERS]!r} cannot be compared: the math verifier expected the "
            f"LaTeX of an answer without its \\boxed, not empty, at most {MAX_CHARACTERS} characters, complete, with "
            "matching brackets, and beyond ASCII only words in \\text{}; take MATH's `solution` column through "
            "gold_answer(), or choose another verifier"
        )
    return form


def _aligned(answer: str, gold: str) -> tuple[str, str]:
    """Both without the names that only one of them has, or both have, and with plus-minus written out."""
    names, gold_names = _names(answer), _names(gold)
    if names == gold_names or not _SIGN.search(gold):
        answer = _unnamed(answer) if names else answer
    if names == gold_names or not _SIGN.search(answer):
        gold = _unnamed(gold) if gold_names else gold
    return _both_signs(answer), _both_signs(gold)


def _without_decimal(form: str) -> str:
    r"""The exact value of "exact = decimal" and "exact \approx decimal"; the form itself where the two are not equal.

    >>> [_without_decimal(form) for form in [r"12\pi\approx37.7", r"\frac{1}{3}\approx0.33", "5\\approx7.0", "x=0.5"]]
    ['12\\pi', '\\frac{1}{3}', '5\\approx7.0', 'x=0.5']
    """
    match = _ELABORATED.fullmatch(form)
    if match is None:
        return form
    exact, decimal = exact_number(match["exact"]), exact_number(match["decimal"])
    assert decimal is not None  # its digits are all that was matched
    if exact is None:
        return form if match["sign"] == "=" else match["exact"]
    tolerance = Fraction(0 if match["sign"] == "=" else 1, 10 ** len(match["places"]))
    return match["exact"] if abs(exact - decimal) <= tolerance else form


def _is_other_by_signs(raw: str, form: str, raw_gold: str, gold: str) -> bool:
    r"""Whether the two differ in what the normal form has no sign for.

    Dollars, percent and degrees are signs that are dropped, but beside another unit they are another measure: 5\% is
    not 5\text{ cm}, nor 90^\circ 90\text{ radians}. Bold letters are vectors or matrices, whose products do not
    commute.
    """
    unit, gold_unit = without_unit(form)[1] or _sign(raw), without_unit(gold, trusted_units(gold))[1] or _sign(raw_gold)
    if unit and gold_unit and unit != gold_unit:
        return True
    return form != gold and _VECTOR_PRODUCT.search(raw_gold) is not None


def _sign(raw: str) -> str:
    """The unit of a dollar sign, of a percent or degree sign at the end, or of an ordinal; "" for none."""
    if "\\$" in raw:
        return "dollar"
    if ORDINAL.fullmatch(raw):
        return "ordinal"
    match = _LAST_SIGN.search(raw)
    return ("percent" if match["percent"] else "degree") if match else ""


def _names(form: str) -> set[str]:
    """The one name that all items have, or the first of them has for all: "x=1,2"; empty for none and for several."""
    shape = shape_of(form)
    items = shape.items if shape.kind == "list" else (form,)
    names = {_name(item) for item in items}
    if len(names) == 2 and "" in names and _name(items[0]) and not any(map(_SIGN.search, items[1:])):
        names -= {""}
    return names if len(names) == 1 and "" not in names else set()


def _name(item: str) -> str:
    """The name before the sign, "" for none: f(y)=x+1 says nothing of y, and names nothing."""
    match = _NAME.match(item)
    if match is None:
        return ""
    variables = set(re.findall("[a-z]", match["arguments"] or ""))
    letters = {token for token in TOKEN.findall(item[match.end() :]) if len(token) == 1}
    if match[0][:-1] in letters or _UNSORTED.match(match[0]):  # x=2x+3 is an equation, and (y,x) another point
        return ""
    others = {token for token in letters if token.islower()} - {"e", "i"}
    return match[0] if not variables or not others or variables & others else ""


def _unnamed(form: str) -> str:
    shape = shape_of(form)
    items = shape.items if shape.kind == "list" else (form,)
    return ",".join(item.removeprefix(_name(item)) for item in items)


def _both_signs(form: str) -> str:
    """With plus-minus written out, in a value or in each item of a list or set."""
    shape = shape_of(form)
    if shape.kind in UNORDERED:
        items = ",".join(_both_signs(item) for item in shape.items)
        return f"\\{{{items}\\}}" if shape.kind == "set" else items
    sign = "\\pm" if "\\pm" in form else "\\mp"
    if form.count("\\pm") + form.count("\\mp") != 1 or shape.kind != "value":
        return form
    before, _, after = form.partition(sign)
    return f"{before}{'+' if before else ''}{after.lstrip()},{before}-{after.lstrip()}"


def _compare_unordered(shape: Shape, gold_shape: Shape) -> Word:
    """Equal items cancel; the rest is decided when all of it are numbers, and else only together."""
    trusted = trusted_units(",".join(gold_shape.items))
    keys = Counter(canonical(item, trusted) for item in shape.items)
    gold_keys = Counter(canonical(item, trusted) for item in gold_shape.items)
    if keys == gold_keys:
        return "equal"
    rest = [item for item in shape.items if canonical(item, trusted) not in gold_keys]
    gold_rest = [item for item in gold_shape.items if canonical(item, trusted) not in keys]
    numbers = [exact_number(item) is not None for item in rest]
    gold_numbers = [exact_number(item) is not None for item in gold_rest]
    if not rest or not gold_rest or (all(numbers) and all(gold_numbers)):
        return "different"
    if any(is_number and "." in item for is_number, item in zip(numbers, rest, strict=True)):
        return "different"
    return guarded(",".join(shape.items), ",".join(gold_shape.items))


def _compare_values(answer: str, gold: str) -> Word:
    trusted = trusted_units(gold)
    (answer, unit), (gold, gold_unit) = without_unit(answer, trusted), without_unit(gold, trusted)
    if unit and gold_unit and unit != gold_unit:
        return "different"
    number, gold_number = exact_number(answer), exact_number(gold)
    if number is not None and gold_number is not None:
        return "equal" if number == gold_number else "different"
    words, gold_words = bare(answer), bare(gold)
    if words == gold_words:
        return "equal"
    if "\\text" in gold and len(gold_words) > 2 and not gold_words.isupper() and words.isascii():
        return "equal" if words.lower() == gold_words.lower() else guarded(answer, gold)
    return guarded(answer, gold)


def _value(form: str, trusted: frozenset[str]) -> str:
    """A single value without its unit, which an algebra system would read in its own way; all else as it is."""
    shape = shape_of(form)
    return without_unit(shape.items[0], trusted)[0] if shape.kind == "value" else form
