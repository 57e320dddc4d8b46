"""Overlap of texts, counted by hand."""

import pytest

from tasks.core.overlap import Shared, find_shared, words

LETTERS = list("abcdefghijklmnopqrstuvwxyz")


def text(*parts: str) -> str:
    return " ".join(parts)


def run(start: int, stop: int) -> str:
    """The letters from `start` up to `stop`, as words."""
    return " ".join(LETTERS[start:stop])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("How many eggs?", "how many  EGGS"),
        ("Tom's 3 eggs, please.", "tom s 3 eggs please"),
        ("What is 2.5 + 1.?", "what is 2.5 + 1"),
        ("“Why”, she\nasked", '"Why" she asked'),
    ],
)
def test_case_white_space_and_punctuation_make_no_difference(one: str, other: str) -> None:
    assert find_shared([one], [other]) == [Shared(0, 0, True, 0)]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("3+5*2=", "3*5+2="),
        ("What is 25?", "What is 2.5?"),
        ("Find $x^2$.", "Find $x-2$."),
        ("the point (1, 2)", "the interval [1, 2]"),
        ("one two", "two one"),
    ],
)
def test_operators_decimals_brackets_and_order_make_a_difference(one: str, other: str) -> None:
    assert find_shared([one], [other]) == []


def test_twelve_words_in_a_row_are_no_overlap_thirteen_are_one_and_fourteen_two() -> None:
    trained = text("0", run(0, 14), "1")
    asked = [text("2", run(0, 12), "3"), text("2", run(0, 13), "3"), text("2", run(0, 14), "3")]
    assert find_shared(asked, [trained]) == [Shared(1, 0, False, 1), Shared(2, 0, False, 2)]


def test_a_run_must_lie_in_one_text_and_in_a_row() -> None:
    asked = [text(run(0, 13))]
    assert find_shared([*asked], [run(0, 7), run(7, 13)]) == []  # the two texts follow one another
    assert find_shared(asked, [text(run(0, 6), "0", run(6, 13))]) == []


def test_a_repeated_run_counts_once() -> None:
    asked = text(run(0, 13), "0", run(0, 13))
    # 27 words make 15 runs of 13; of the other's 13 words only the run a..m is one of them, twice
    assert find_shared([asked], [run(0, 13)]) == [Shared(0, 0, False, 1)]


def test_the_text_that_shares_most_is_kept_and_of_equal_ones_the_first() -> None:
    asked = text(run(0, 16), "0")
    trained = [text("1", run(0, 13)), text("1", run(1, 16)), text("2", run(1, 16)), text("3", run(3, 16))]
    assert find_shared([asked], trained) == [Shared(0, 1, False, 3)]  # b..n, c..o, d..p against one run in the others


def test_all_exact_texts_are_kept_and_no_other_beside_them() -> None:
    asked = run(0, 15)
    trained = [text(run(0, 15), "0"), run(0, 15), run(0, 15).upper()]
    assert find_shared([asked], trained) == [Shared(0, 1, True, 3), Shared(0, 2, True, 3)]  # a..m, b..n, c..o


def test_short_texts_are_compared_as_a_whole_and_empty_ones_never() -> None:
    assert find_shared(["a b", "a", "?", ""], ["A, b!", "...", ""]) == [Shared(0, 0, True, 0)]
    assert find_shared([], ["a"]) == find_shared(["a"], []) == find_shared([], []) == []


@pytest.mark.parametrize("length", [1, 2, 3, 5, 8, 13])
def test_any_length_of_run_is_counted_as_by_comparing_sets(length: int) -> None:
    import random

    draw = random.Random(length)
    texts = [" ".join(draw.choices("ab", k=draw.randrange(1, 30))) for _ in range(60)]
    asked, trained = texts[:20], texts[20:]

    def runs(text: str) -> set[tuple[str, ...]]:
        split = words(text)
        return {tuple(split[i : i + length]) for i in range(len(split) - length + 1)}

    found = find_shared(asked, trained, length)
    for i, text in enumerate(asked):
        shares = [len(runs(text) & runs(other)) for other in trained]
        exact = [j for j, other in enumerate(trained) if other == text]
        best = [shares.index(max(shares))] if max(shares) and not exact else []
        expected = [Shared(i, j, j in exact, shares[j]) for j in (exact or best)]
        assert [each for each in found if each.text == i] == expected
