"""Which texts of one set share their words with texts of another: all of them, or 13 in a row.

The rule of GPT-3's study of contamination (arXiv 2005.14165, appendix C): words are lower-cased, separated by white
space and without punctuation, and 13 in a row are an overlap. Punctuation is that of sentences only, because a symbol
may be an operator: "3+5" and "3-5" are different questions, and so are "(1, 2)" and "[1, 2]".
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

NGRAM = 13
"""Words in a row that are an overlap."""

_PUNCTUATION = re.compile(r"""[,;:!?"'`‘’“”…]|\.(?!\d)""")

Ints = npt.NDArray[np.int64]


class Shared(NamedTuple):
    """A text and one of the other set that shares its words."""

    text: int
    """Index in the first set."""
    other: int
    """Index in the second set."""
    is_exact: bool
    """Whether all words are the same, in order."""
    num_ngrams: int
    """Different runs of NGRAM words that both contain."""


def words(text: str) -> list[str]:
    """The words that are compared.

    >>> words('Let $x+1 = 2.5$, then "x" is?')
    ['let', '$x+1', '=', '2.5$', 'then', 'x', 'is']
    """
    return _PUNCTUATION.sub(" ", text.lower()).split()


def find_shared(texts: Sequence[str], others: Sequence[str], length: int = NGRAM) -> list[Shared]:
    """For each text all others with the same words; for one without such the other that shares the most n-grams.

    Of equally many the first. Texts shorter than `length` words are compared as a whole only, and one without a word
    is like no other. Time and memory grow with the number of words; at most one text's pairs are held at a time.
    """
    split = [words(text) for text in (*texts, *others)]
    num_texts = len(texts)
    same: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for i, each in enumerate(split[num_texts:]):
        same[tuple(each)].append(i)
    ids_N, texts_N = _ngrams(split, length)
    is_other = texts_N >= num_texts
    ids_A, texts_A = ids_N[~is_other], texts_N[~is_other]
    by_id = np.argsort(ids_N[is_other], kind="stable")
    ids_B, others_B = ids_N[is_other][by_id], texts_N[is_other][by_id] - num_texts
    starts, ends = np.searchsorted(ids_B, ids_A, "left"), np.searchsorted(ids_B, ids_A, "right")
    offsets = np.searchsorted(texts_A, np.arange(num_texts + 1))
    found = []
    for i in range(num_texts):
        own = [others_B[a:b] for a, b in zip(*(e[offsets[i] : offsets[i + 1]] for e in (starts, ends)), strict=True)]
        candidates, counts = np.unique(np.concatenate([*own, np.empty(0, np.int64)]), return_counts=True)
        shares = dict(zip(candidates.tolist(), counts.tolist(), strict=True))
        exact = same.get(tuple(split[i]), []) if split[i] else []
        found += [Shared(i, other, True, shares.get(other, 0)) for other in exact]
        if shares and not exact:
            best = int(np.argmax(counts))
            found.append(Shared(i, int(candidates[best]), False, int(counts[best])))
    return found


def _ngrams(split: Sequence[Sequence[str]], length: int) -> tuple[Ints, Ints]:
    """The different n-grams of each text: a number for each n-gram (equal for equal ones), and its text, ascending.

    A run of n words is two runs of p <= n words, p a power of two, of which the second starts n - p words later; those
    of 2p words are two of p. So a number for every run comes from log2(n) + 1 rounds of numbering pairs: exact, with
    no hash that two n-grams could share.
    """
    lengths = np.array([len(each) for each in split], dtype=np.int64)
    texts_N = np.repeat(np.arange(len(split)), lengths)
    vocabulary: dict[str, int] = {}
    ids_N = np.array([vocabulary.setdefault(word, len(vocabulary)) for each in split for word in each], dtype=np.int64)
    size = 1
    while size < length:
        step = min(size, length - size)
        if len(ids_N) <= step:
            return np.empty(0, np.int64), np.empty(0, np.int64)
        pairs = ids_N[:-step] * (ids_N.max() + 1) + ids_N[step:]
        ids_N = np.unique(pairs, return_inverse=True)[1]
        size += step
    if not len(ids_N):
        return ids_N, texts_N
    is_inside = texts_N[: len(ids_N)] == texts_N[len(texts_N) - len(ids_N) :]
    keys = np.unique(texts_N[: len(ids_N)][is_inside] * (ids_N.max() + 1) + ids_N[is_inside])
    return keys % (ids_N.max() + 1), keys // (ids_N.max() + 1)
