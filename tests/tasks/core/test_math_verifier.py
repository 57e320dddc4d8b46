"""The math verifier: what algebra must say of its cases, gold answers, solutions. Its cases: test_verifiers.py."""

from collections.abc import Callable, Iterator

import pytest

from tasks.core.verdict import Comparison, Status
from tasks.core.verifiers import get_verifier
from tasks.core.verifiers.latex import MAX_CHARACTERS, normal_form
from tasks.core.verifiers.math import gold_answer
from tasks.engines.verifier_pool import VerifierPool
from tests.tasks.core.verifier_cases import completion_of, load_cases
from tests.tasks.direct_math_verify import directly

MATH = get_verifier("math")
CASES = load_cases("math")


@pytest.fixture(scope="module")
def algebra() -> Iterator[Callable[[Comparison], bool | None]]:
    """The pool's word on a pair."""
    pool = VerifierPool(workers=1, timeout_seconds=60, memory_mb=1024)
    yield lambda pair: pool.submit(pair).result().is_equal
    pool.close()


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, id=case["reason"]) for case in CASES if case["status"] == "comparison"],
)
def test_algebra_leads_to_the_stored_status(case, algebra) -> None:
    pair = Comparison(**case["pair"])
    assert pair.judgement(algebra(pair)).status == case["algebra"], case["reason"]


def test_text_alone_decides_nearly_all_adversarial_cases() -> None:
    adversarial = [case for case in CASES if case.get("adversarial")]
    assert len(adversarial) >= 100
    assert sum(case["status"] == "comparison" for case in adversarial) <= 0.15 * len(adversarial)


def test_what_math_verify_wrongly_accepts_is_refused_before_it() -> None:
    lies = [case for case in CASES if case["provenance"].startswith("math-verify 0.9.0 accepts")]
    assert len(lies) >= 20
    assert {case["status"] for case in lies} == {"wrong"}
    answers = [completion_of(case).removeprefix("So \\boxed{").removesuffix("}.") for case in lies]
    pairs = [Comparison(answer=answer, gold=case["answer"]) for answer, case in zip(answers, lies, strict=True)]
    assert [pair for pair, word in zip(pairs, directly(pairs), strict=True) if word is not True] == []


@pytest.mark.parametrize(
    "answer", ["", " ", "$$", "\\boxed{5}", "\\fbox{5}", "{5", "5}", "\\frac{1}", "5\x00", "\x0crac12", "5\u200b"]
)
def test_a_gold_answer_that_cannot_be_read_is_refused(answer: str) -> None:
    with pytest.raises(ValueError, match=r"cannot be compared: .* expected the LaTeX of an answer .* gold_answer\(\)"):
        MATH.check_answer(answer)


def test_a_gold_answer_may_have_400_characters_and_no_more() -> None:
    MATH.check_answer("x" * MAX_CHARACTERS)
    with pytest.raises(ValueError, match="at most 400 characters"):
        MATH.check_answer("x" * (MAX_CHARACTERS + 1))


@pytest.mark.parametrize(
    ("solution", "gold"),
    [
        ("So $x = \\boxed{\\frac{1}{2}}.$", "\\frac{1}{2}"),
        ("First \\boxed{1}, then \\boxed{ 2 }.", "2"),
        ("So it is \\fbox{7}.", "7"),
        ("So $x=\\boxed 7$, as asked.", "7"),
        ("So \\boxed{\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}}.", "\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}"),
        ("A rise of 20\\% gives \\boxed{24\\%}.", "24\\%"),
    ],
)
def test_the_gold_answer_is_the_last_box_of_a_solution(solution: str, gold: str) -> None:
    assert gold_answer(solution) == gold


@pytest.mark.parametrize("solution", ["", "So it is 7.", "So \\boxed{7", "% \\boxed{7}"])
def test_a_solution_without_a_box_is_refused(solution: str) -> None:
    with pytest.raises(ValueError, match=r"expected a last \\boxed\{...\} that is closed"):
        gold_answer(solution)


@pytest.mark.parametrize(
    "spellings",
    [
        ("\\frac{1}{2}", "\\dfrac12", "\\tfrac 1 2", "{\\frac{1}{2}}", "$\\frac12$."),
        ("\\sqrt{2}x", "\\sqrt2x", "\\sqrt 2 \\, x"),
        ("x^{2}", "x^2", "x ^ { 2 }", "{x}^{2}"),
        ("(1,2)", "\\left( 1 , 2 \\right)", "\\bigl(1,2\\bigr)", "( 1, 2 )"),
        ("10080", "10,\\!080", "10{,}080", "10,080", "10\\,080", "\\$10,080"),
        ("1,2", "1, 2", "1; 2", "1 or 2", "1\\text{ and }2", "1,\\text{ or }2"),
        ("\\pi r^{2}", "\\pi r^2", "{\\pi} r^{2}", "\\pi\\,r^2"),
        ("x\\le2", "x \\leq 2", "x\\leqslant 2", "x \u2264 2"),
    ],
)
def test_spellings_of_one_answer_have_one_normal_form(spellings: tuple[str, ...]) -> None:
    assert {normal_form(spelling) for spelling in spellings} == {spellings[0]}


@pytest.mark.parametrize(
    ("one", "other"),
    [("1 2", "12"), ("{2^3}^4", "2^{3^4}"), ("\\frac{12}{3}", "\\frac{1}{23}"), ("\\sin x", "sin x"), ("1,23", "123")],
)
def test_different_answers_have_different_normal_forms(one: str, other: str) -> None:
    assert normal_form(one) != normal_form(other)


def test_a_comparison_keeps_the_letters_that_math_verify_would_take_for_units(algebra) -> None:
    pair = MATH.judge("\\boxed{3c+2a}", "2a+3c", is_truncated=False)
    assert pair == Comparison(answer="3c+2{a}", gold="2a+3{c}")
    assert algebra(pair) is True
    assert algebra(Comparison(answer="2a+3", gold="2a+3c")) is True  # without the braces: "c" is dropped as cents
    assert algebra(Comparison(answer="2{a}+3", gold="2a+3{c}")) is False


def test_an_answer_in_another_alphabet_may_only_equal_its_gold() -> None:
    triangle, square = "\\text{\u4e09\u89d2\u5f62}", "\\text{\u56db\u89d2\u5f62}"
    for gold, status in ((triangle, Status.CORRECT), (square, Status.UNPARSEABLE)):
        judgement = MATH.judge(f"\\boxed{{{triangle}}}", gold, is_truncated=False)
        assert judgement.status is status
