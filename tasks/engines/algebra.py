"""Whether two answers are equal in the eyes of math-verify. Runs only in processes that may die (verifier_worker.py).

Beside what math-verify does by itself:

* Nothing of an answer is evaluated as Python. Its parser of plain expressions (sympy.parse_expr, which is `eval`) is
  not used. Its LaTeX parser, which is, hands numbers to the same `eval`: here they must be digits.
* A free `i` is the imaginary unit: math-verify takes it for a variable, and (1+i)^2 for another number than 2i.
* Numbers are equal to 900 digits (exactness.py): math-verify looks at 15.
* No alarm signals: the parent's clock is the only limit.
* It catches every exception of sympy on the way and answers "different". A comparison that ran out of memory or of
  stack has not found a difference: such exceptions are noted where they are still seen, and told.
"""

import contextlib
import ctypes
import errno
import functools
import logging
import re
import sys
from collections.abc import Callable
from typing import Any

from tasks.engines.exactness import differ_slightly

GOLDS_REMEMBERED = 4096
"""Parsed gold answers that a process keeps: a prompt's completions are compared with one gold."""
ANSWERS_REMEMBERED = 512
NUMBER = re.compile(r"[0-9.,\s]*")
WARM_UP = (
    (r"\frac{3\sqrt{2}}{4}", r"\frac{3}{2\sqrt{2}}"),
    (r"(x-1)^2 + 2x", r"x^2 + 1"),
    (r"\left[-2, \infty\right)", r"[-2,\infty)"),
    (r"\left(\frac{1}{2}, 3\right)", r"(0.5, 3)"),
    (r"\{1, 2, 3\}", r"1,2,3"),
    (r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", r"\begin{pmatrix} 1 & 2 \\ 3 & 5 \end{pmatrix}"),
    (r"x = 3", r"y = 4"),
    (r"2\pi\text{ cm}^2", r"2\pi"),
    (r"12,345.50", r"12345\frac12"),
    (r"50\%", r"0.5"),
    (r"\sin\frac{\pi}{6}", r"\log_2 8"),
    (r"3 + 4i", r"5e^{i\theta}"),
)
"""Pairs that fill the caches of the parser and of sympy before the process is copied: its copies start warm."""


class Unreadable(ValueError):
    """The gold answer cannot be parsed: that is no fault of the completion's."""


class Algebra:
    """math-verify with settings for answers that are extracted already."""

    def __init__(self) -> None:
        """Errors: ImportError where math_verify or sympy cannot be imported."""
        from latex2sympy2_extended import latex2sympy2
        from math_verify import grader, parser, verify
        from sympy import Basic, I, MatrixBase

        for name in ("grader", "parser", "utils"):  # they warn that no alarm will interrupt them
            logging.getLogger(f"math_verify.{name}").disabled = True
        latex2sympy2._Latex2Sympy.parse_number = _only_digits(latex2sympy2._Latex2Sympy.parse_number)
        self._noted: list[BaseException] = []
        parser.latex2sympy = self._noting(parser.latex2sympy)
        grader.simplify = self._noting(grader.simplify)
        grader.solve = self._noting(grader.solve)
        grader.safe_sympy_doit = self._doit
        self._verify = functools.partial(verify, timeout_seconds=None, raise_on_error=True)
        settings = {"basic_latex": True, "units": True, "malformed_operators": True, "nits": True}
        self._normal = functools.partial(
            latex2sympy2.normalize_latex,
            config=latex2sympy2.NormalizationConfig(**settings, boxed="none", equations=False),
        )
        self._unit = I
        self._read, self._kinds = parser.parse_latex_cached, (Basic, MatrixBase)
        self._gold = functools.lru_cache(GOLDS_REMEMBERED)(self._parsed)
        self._answer = functools.lru_cache(ANSWERS_REMEMBERED)(self._parsed)
        self._errno = _errno()

    def compare(self, answer: str, gold: str) -> bool | None:
        """Whether they are equal; None: the answer cannot be read.

        Errors: Unreadable for a gold answer that cannot be read; MemoryError and RecursionError also where math-verify
        went on without what they interrupted; whatever else it raises.
        """
        self._noted.clear()
        self._errno.value = 0
        is_equal = self._compare(answer, gold)
        if is_equal:
            return True
        if self._noted:
            raise self._noted[0]
        if self._errno.value == errno.ENOMEM:  # an allocation failed, and whoever asked for it went on
            raise MemoryError("an allocation failed")
        return is_equal

    def warm_up(self) -> None:
        for answer, gold in WARM_UP:
            with contextlib.suppress(Exception):
                self.compare(answer, gold)
        self._gold.cache_clear()
        self._answer.cache_clear()

    def _compare(self, answer: str, gold: str) -> bool | None:
        expected = self._gold(gold)
        if expected is None:
            raise Unreadable(f"math-verify cannot read the gold answer {gold[:100]!r}")
        found = self._answer(answer)
        if found is None:
            return None
        return bool(self._verify(expected, found)) and not differ_slightly(expected, found)

    def _parsed(self, latex: str) -> Any:
        """A sympy object, or None for what the LaTeX parser does not know.

        math_verify.parse does the same with the contents of a box, but hides every failure as "not readable".
        """
        try:
            found = self._read(self._normal(latex))
        except (MemoryError, RecursionError):
            raise
        except Exception:
            return None
        if not isinstance(found, self._kinds):
            return None
        units = {symbol: self._unit for symbol in found.free_symbols if symbol.name == "i"}
        return found.xreplace(units) if units else found

    def _noting(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, whose MemoryError and RecursionError are noted before its caller may swallow them."""

        @functools.wraps(function)
        def noting(*arguments: Any, **options: Any) -> Any:
            try:
                return function(*arguments, **options)
            except (MemoryError, RecursionError) as error:
                self._noted.append(error.with_traceback(None))
                raise

        return noting

    def _doit(self, expression: Any) -> Any:
        """The expression, evaluated where that succeeds: grader.safe_sympy_doit, which swallows all exceptions."""
        with contextlib.suppress(Exception):
            return self._noting(expression.doit)()
        return expression


def _only_digits(parse: Callable[[Any, str], Any]) -> Callable[[Any, str], Any]:
    """latex2sympy2's parse_number, which hands its text to sympy.Number and so to eval."""

    @functools.wraps(parse)
    def parse_number(parser: Any, text: str) -> Any:
        if not NUMBER.fullmatch(text):
            raise ValueError(f"no number: {text[:100]!r}")
        return parse(parser, text)

    return parse_number


def _errno() -> Any:
    """The C library's errno of this thread: it still says ENOMEM when the exception of a failed allocation is gone."""
    name = {"linux": "__errno_location", "darwin": "__error"}.get(sys.platform)
    if name is None:
        return ctypes.c_int(0)
    location = getattr(ctypes.CDLL(None), name)
    location.restype = ctypes.POINTER(ctypes.c_int)
    return location().contents
