"""What holds of every verifier and every text."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.core.verdict import Comparison, Judgement, Status
from tasks.core.verifiers import VERIFIERS, get_verifier
from tasks.core.verifiers.latex import normal_form
from tests.tasks.core.verifier_cases import load_cases

NAMES = sorted(VERIFIERS)
OPTIONS = ("Aspirin", "Heparin", "Hepatitis B", "Vitamin C")
GOLDS = {
    "arithmetic": "6",
    "choice": "C",
    "exact": "a b",
    "gsm8k": "72",
    "numeric": "72.5",
    "paper_medqa": "B",
    "math": "x+1",
}
PIECES = (
    "\\boxed{", "\\fbox {", "}", "{", "\\", "\\%", "%", "\n", "#### ", "</think>", "\\frac", "12", "\\text{ or }",
    "(", "]", ",", "=", "^", "_", "'", "\\sqrt[", "\\begin{pmatrix}", "\\\\", "&", "\\pm", "\\left.", "answer is ",
    "Answer: ", "C", "A", " patient", "**", "x", "e5", "/", ".", "-", "$", "~", "not ", "\x00", "\u0663", "\u0421",
    "\u2212", "\u03c0",
)  # fmt: skip
texts = st.one_of(st.text(max_size=60), st.lists(st.sampled_from(PIECES), max_size=30).map("".join))
latex = st.recursive(
    st.sampled_from(["1", "2", "x", "y", "\\pi", "10", "0.5"]),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map(lambda pair: f"\\frac{{{pair[0]}}}{{{pair[1]}}}"),
        st.tuples(inner, inner).map(lambda pair: f"{pair[0]} + {pair[1]}"),
        st.tuples(inner, inner).map(lambda pair: f"\\left({pair[0]}, {pair[1]}\\right)"),
        inner.map(lambda one: f"\\sqrt{{{one}}}"),
        inner.map(lambda one: f"{{{one}}}^2"),
        inner.map(lambda one: f"\\{{{one}, 7\\}}"),
    ),
    max_leaves=6,
)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=150)
@given(completion=texts, is_truncated=st.booleans())
def test_no_text_makes_a_verifier_raise_and_every_text_is_judged_alike_twice(
    name: str, completion: str, is_truncated: bool
) -> None:
    verifier = get_verifier(name)
    judgement = verifier.judge(completion, GOLDS[name], is_truncated=is_truncated, options=OPTIONS)
    assert judgement == verifier.judge(completion, GOLDS[name], is_truncated=is_truncated, options=OPTIONS)
    if isinstance(judgement, Judgement):
        assert judgement.status in ("correct", "wrong", "unparseable", "truncated")
        assert judgement.status != "truncated" or is_truncated
        assert len(judgement.extracted_answer or "") <= 200
    else:
        assert name == "math"
        assert len(judgement.answer) + len(judgement.gold) < 10_000


@settings(max_examples=300)
@given(answer=texts)
def test_a_math_answer_judges_its_own_boxed_self_correct_or_is_refused_as_gold(answer: str) -> None:
    math = get_verifier("math")
    try:
        math.check_answer(answer)
    except ValueError:
        return
    # "\\text{%}" and the like hold what ends a box or starts another.
    if any(mark in answer for mark in ("\\boxed", "\\fbox", "%", "</think>")):
        return
    assert math.judge(f"\\boxed{{{answer}}}", answer, is_truncated=False).status is Status.CORRECT


@settings(max_examples=200)
@given(answer=latex)
def test_a_normal_form_is_its_own_normal_form(answer: str) -> None:
    form = normal_form(answer)
    assert form is not None
    assert normal_form(form) == form


@settings(max_examples=200)
@given(one=latex, other=latex)
def test_equality_by_text_is_symmetric(one: str, other: str) -> None:
    math = get_verifier("math")
    there = math.judge(f"\\boxed{{{one}}}", other, is_truncated=False)
    back = math.judge(f"\\boxed{{{other}}}", one, is_truncated=False)
    are_correct = [isinstance(word, Judgement) and word.status is Status.CORRECT for word in (there, back)]
    assert are_correct[0] == are_correct[1]


@pytest.mark.parametrize("name", ["exact", "math", "numeric", "choice", "paper_medqa"])
@settings(max_examples=100)
@given(junk=st.text(max_size=60))
def test_junk_after_the_last_box_changes_nothing(name: str, junk: str) -> None:
    if any(mark in junk for mark in ("\\boxed", "\\fbox", "####", "</think>")):
        return
    verifier = get_verifier(name)
    for case in load_cases(name)[:40]:
        completion = case["completion"]
        if not isinstance(completion, str) or not completion.rstrip(".").endswith("}"):
            continue
        if case["status"] not in ("correct", "wrong", "comparison") or "box" not in completion:
            continue
        options = case.get("options", ())
        before = verifier.judge(completion, case["answer"], is_truncated=False, options=options)
        assert verifier.judge(f"{completion}\n{junk}", case["answer"], is_truncated=False, options=options) == before
        # Cut after its box, a completion is judged as if it were not.
        assert verifier.judge(f"{completion}\n{junk}", case["answer"], is_truncated=True, options=options) == before


@settings(max_examples=100)
@given(st.integers(-(10**9), 10**9), st.integers(1, 10**6))
def test_every_spelling_of_a_fraction_is_correct_and_its_neighbour_is_wrong(numerator: int, denominator: int) -> None:
    math = get_verifier("math")
    gold = f"\\frac{{{numerator}}}{{{denominator}}}"
    for spelling in (f"{numerator}/{denominator}", f"\\dfrac{{{2 * numerator}}}{{{2 * denominator}}}", f"${gold}$."):
        assert math.judge(f"\\boxed{{{spelling}}}", gold, is_truncated=False).status is Status.CORRECT
    neighbour = f"\\frac{{{numerator + 1}}}{{{denominator}}}"
    assert math.judge(f"\\boxed{{{neighbour}}}", gold, is_truncated=False).status is Status.WRONG


def test_a_comparison_that_nobody_can_read_is_unparseable() -> None:
    assert Comparison(answer="x", gold="y").judgement(None) == Judgement(
        status=Status.UNPARSEABLE, extracted_answer="x"
    )
