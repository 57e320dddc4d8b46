"""The built-in task, which a tiny model learns on a CPU in minutes: one-digit chains modulo 10, and their tutor.

A prompt is a chain such as "3+5*2="; it is evaluated from left to right modulo 10, whatever the usual precedence, and
subtraction never gives a negative number: 3-5 is 8. A completion writes one step for each operator and repeats the
result after '#': "3+5=8;8*2=6#6". Steps before '#' let a model that cannot do a chain at once do it piece by piece,
and they share prefixes, which is what the prefix tree gives credit to.
Chance level: always answering 0 is right for 18 % of the prompts, for 27 of the 100 products of two digits end in 0.
"""

import hashlib
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

import numpy as np

OPERATORS = "+-*"
"""The operators, each equally likely."""

CHARACTERS = "0123456789+-*=;#"
"""Every character of prompts and completions: the alphabet of a character tokenizer."""

TEST_SHARE_INVERSE = 16
"""One prompt in so many, picked by a hash, belongs to the test split."""

MAX_FAILED_DRAWS = 100_000
"""Draws in a row that bring no new problem before make_problems gives up: about a second."""

Split = Literal["train", "test"]


def apply_operator(value: int, operator: str, digit: int) -> int:
    """`value operator digit` modulo 10, from 0 to 9. Errors: ValueError for an operator that is none of OPERATORS.

    >>> apply_operator(3, "-", 5), apply_operator(8, "*", 2)
    (8, 6)
    """
    if operator == "+":
        return (value + digit) % 10
    if operator == "-":
        return (value - digit) % 10
    if operator == "*":
        return (value * digit) % 10
    raise ValueError(
        f"operator {operator!r} does not exist: expected one of {' '.join(OPERATORS)}; correct the problem"
    )


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One chain. Errors: ValueError when it is not digits joined by operators.

    >>> problem = Problem(terms=(3, 5, 2), operators=("+", "*"))
    >>> problem.prompt, problem.solution, problem.answer
    ('3+5*2=', '3+5=8;8*2=6#6', '6')
    """

    terms: tuple[int, ...]
    """Two digits or more, each 0 to 9."""
    operators: tuple[str, ...]
    """What stands between them: one fewer than the terms."""

    def __post_init__(self) -> None:
        is_chain = len(self.terms) >= 2 and len(self.operators) == len(self.terms) - 1
        if (
            not is_chain
            or not all(term in range(10) for term in self.terms)
            or not set(self.operators) <= set(OPERATORS)
        ):
            raise ValueError(
                f"terms {self.terms} and operators {self.operators} are no chain: expected two or more digits 0-9 and "
                f"one operator of {' '.join(OPERATORS)} between each two, for the tokenizer knows no other characters; "
                "correct them"
            )

    @property
    def prompt(self) -> str:
        """The chain and '='."""
        rest = zip(self.operators, self.terms[1:], strict=True)
        return f"{self.terms[0]}{''.join(f'{operator}{term}' for operator, term in rest)}="

    @property
    def solution(self) -> str:
        """The correct completion."""
        return _written(self, self._values())

    @property
    def answer(self) -> str:
        """The gold answer: one digit."""
        return str(self._values()[-1])

    def _values(self) -> list[int]:
        values = [self.terms[0]]
        for operator, term in zip(self.operators, self.terms[1:], strict=True):
            values.append(apply_operator(values[-1], operator, term))
        return values


def split_of(prompt: str) -> Split:
    """The split that `prompt` belongs to: test iff sha256(prompt) is 0 modulo TEST_SHARE_INVERSE.

    A property of the text alone: no seed, count or order can ever put a test prompt into training.
    """
    digest = int.from_bytes(hashlib.sha256(prompt.encode()).digest(), "big")
    return "test" if digest % TEST_SHARE_INVERSE == 0 else "train"


def make_problems(num_problems: int, *, split: Split, min_terms: int, max_terms: int, seed: int) -> list[Problem]:
    """`num_problems` distinct problems of `split`, each from `min_terms` to `max_terms` terms long.

    The length is drawn uniformly, then each term and operator; a problem seen before or of the other split is drawn
    again. Problems come in the order drawn: the same arguments give the same problems, and asking for fewer gives the
    first of them.

    Errors: ValueError for a split, lengths or a number that cannot be, and when fewer problems than asked for seem to
    exist (MAX_FAILED_DRAWS draws brought nothing new): two terms make 285 train and 15 test problems, each further
    term about 30 times more.
    """
    _check_request(num_problems, split, min_terms, max_terms)
    rng = np.random.default_rng(seed)
    problems: dict[str, Problem] = {}
    num_failed_draws = 0
    while len(problems) < num_problems:
        problem = _draw_problem(rng, min_terms, max_terms)
        if problem.prompt not in problems and split_of(problem.prompt) == split:
            problems[problem.prompt] = problem
            num_failed_draws = 0
            continue
        num_failed_draws += 1
        if num_failed_draws == MAX_FAILED_DRAWS:
            raise ValueError(
                f"expected {num_problems} distinct {split} problems of {min_terms} to {max_terms} terms, "
                f"found {len(problems)}: {MAX_FAILED_DRAWS} draws brought no new one, so (nearly) no more exist; "
                "ask for fewer or raise max_terms"
            )
    return list(problems.values())


def _check_request(num_problems: int, split: str, min_terms: int, max_terms: int) -> None:
    if split not in get_args(Split):
        raise ValueError(
            f"split {split!r} does not exist: expected one of {', '.join(get_args(Split))}; choose one of them"
        )
    if not 2 <= min_terms <= max_terms:
        raise ValueError(
            f"expected 2 <= min_terms <= max_terms, got min_terms={min_terms}, max_terms={max_terms}: "
            "a chain of one term has no step to write; raise min_terms or max_terms"
        )
    if num_problems < 0:
        raise ValueError(f"expected num_problems >= 0, got {num_problems}: it is a count; ask for 0 or more")


def _draw_problem(rng: np.random.Generator, min_terms: int, max_terms: int) -> Problem:
    num_terms = int(rng.integers(min_terms, max_terms + 1))
    terms = tuple(rng.integers(10, size=num_terms).tolist())
    operators = tuple(OPERATORS[i] for i in rng.integers(len(OPERATORS), size=num_terms - 1).tolist())
    return Problem(terms=terms, operators=operators)


@dataclass(frozen=True, kw_only=True)
class Tutor:
    """Writes completions for the supervised warm start, wrong in two ways: by habit and by slips.

    Rule: a share of the 300 triples (value, operator, digit), picked by a hash of the seed and the triple, has a
    habit: one particular wrong result. There the tutor writes its habit with `habit_probability`; in any triple it
    writes one of the nine wrong results, each equally likely (the habit among them), with `slip_probability`; else it
    is right. It goes on from what it wrote, so an error runs through to the answer.
    Source: our own pilot. Slips alone are averaged away: greedy decoding is right after the warm start, and
    reinforcement learning has only sampling noise left to remove. A habit is what the tutor writes most often, so the
    model learns it as the truth and reinforcement learning has to overturn it.
    Errors: ValueError when a share or probability lies outside 0 to 1 or the two probabilities add up to more than 1.
    """

    seed: int
    """Which triples have habits, and which ones."""
    habit_share: float = 0.30
    """Expected share of the triples that have a habit."""
    habit_probability: float = 0.55
    """How often a habit is written where there is one; above 1/2 it is the most likely result."""
    slip_probability: float = 0.10
    """How often a random wrong result is written, in any triple."""

    def __post_init__(self) -> None:
        numbers = (self.habit_share, self.habit_probability, self.slip_probability)
        if not all(0.0 <= number <= 1.0 for number in numbers) or self.habit_probability + self.slip_probability > 1.0:
            raise ValueError(
                "expected habit_share, habit_probability and slip_probability from 0 to 1 and the two probabilities to "
                f"add up to at most 1, got {numbers}: a step is either a habit, a slip or right; lower them"
            )

    def habit(self, value: int, operator: str, digit: int) -> int | None:
        """The wrong result that this tutor habitually writes for `value operator digit`; None when it has no habit."""
        digest = hashlib.sha256(f"{self.seed}:{value}{operator}{digit}".encode()).digest()
        if int.from_bytes(digest[:8], "big") >= self.habit_share * 2**64:
            return None
        return _wrong_result(value, operator, digit, int.from_bytes(digest[8:16], "big") % 9)

    def completion(self, problem: Problem, rng: np.random.Generator) -> str:
        """A completion of `problem.prompt`, right or wrong; `rng` moves on by the same amount either way."""
        values = [problem.terms[0]]
        for operator, term in zip(problem.operators, problem.terms[1:], strict=True):
            values.append(self._step(values[-1], operator, term, rng))
        return _written(problem, values)

    def _step(self, value: int, operator: str, digit: int, rng: np.random.Generator) -> int:
        chance, which_wrong = rng.random(), int(rng.integers(9))
        if chance < self.slip_probability:
            return _wrong_result(value, operator, digit, which_wrong)
        habit = self.habit(value, operator, digit)
        if habit is not None and chance < self.slip_probability + self.habit_probability:
            return habit
        return apply_operator(value, operator, digit)


def _wrong_result(value: int, operator: str, digit: int, which: int) -> int:
    """The wrong result number `which`, 0 to 8, counted up from the right one modulo 10."""
    return (apply_operator(value, operator, digit) + 1 + which) % 10


def _written(problem: Problem, values: list[int]) -> str:
    """The completion whose running value is values[0] before the first step and values[i] after step i."""
    steps = zip(pairwise(values), problem.operators, problem.terms[1:], strict=True)
    text = ";".join(f"{before}{operator}{term}={after}" for (before, after), operator, term in steps)
    return f"{text}#{values[-1]}"
