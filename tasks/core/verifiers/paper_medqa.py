r"""The rule that TEMPO's authors train MedQA with: the option whose text is most like the completion's answer."""

import re
from collections.abc import Sequence
from difflib import SequenceMatcher

from tasks.core.verdict import Judgement, Status
from tasks.core.verifiers.boxes import after_thoughts, last_box
from tasks.core.verifiers.choice import LETTERS, check_letter, check_options

MAX_CHARACTERS = 400
"""An answer is cut to this length: the ratio takes time that grows with its square."""

_SENTENCE_END = re.compile(r"[.!?][ \t\r\n]++|\n")
_SPACE = " \t\r\n"


class PaperMedqaVerifier:
    r"""Chooses the option whose text is most similar to the completion's answer, and compares its letter with the gold.

    Rule: everything up to the last </think> is dropped; the answer is the content of the last box, or the last sentence
    when there is none. difflib's ratio compares it with the text of every option; the highest counts, the first of
    equals. Whatever a completion says, some option is chosen: an empty answer is option A, and a letter alone is
    compared with texts, as letters. So it never says unparseable.

    Source: TEMPO (arXiv 2509.18314) trains on MedQA with a fuzzy match of option texts. Its code was not found in
    public; ours are: difflib as the measure (it is what medical multiple-choice evaluations use), ratio(answer,
    option) with case, the first of equals, the last sentence, the cut at MAX_CHARACTERS, and `truncated` for
    completions that were cut and have no closed box. Measured on 637 test rows of MedQA: an empty answer is right in
    27.2 % of them, "The answer is C." in 24.8 %, as often as chance; the verifier `choice` gives 0 % and 27.0 % (C's
    share of the rows).

    >>> options = ["Aspirin", "Heparin", "Warfarin"]
    >>> verifier = PaperMedqaVerifier()
    >>> [verifier.judge(text, "A", is_truncated=False, options=options).status.value for text in ("", "Give aspirine.")]
    ['correct', 'correct']
    """

    name = "paper_medqa"
    version = 1
    warning = (
        "paper_medqa chooses the option whose text is most similar to the answer, so that an empty answer is right as "
        "often as a guess and a letter alone is misread: use it only to repeat the paper, and `choice` otherwise"
    )

    def judge(self, completion: str, answer: str, *, is_truncated: bool, options: Sequence[str] = ()) -> Judgement:
        """Judge `completion` by the rule above. Errors: ValueError where check_answer would raise."""
        self.check_answer(answer, options)
        text = after_thoughts(completion)
        box = last_box(text)
        is_closed = box is not None and box[1].is_closed
        if is_truncated and not is_closed:
            return Judgement(status=Status.TRUNCATED, extracted_answer=None)
        stated = box[1].raw if box is not None and is_closed else _last_sentence(text)
        letter = LETTERS[_most_similar(stated.strip(_SPACE)[:MAX_CHARACTERS], options)]
        return Judgement(status=Status.CORRECT if letter == answer else Status.WRONG, extracted_answer=letter)

    def check_answer(self, answer: str, options: Sequence[str] = ()) -> None:
        """Accept the letter of one of the options. Errors: ValueError for anything else, and without options."""
        check_letter(answer, self.name)
        if not options:
            raise ValueError(
                "options: expected the texts of the question's options, got none; the verifier paper_medqa compares "
                "with them: add the prompts' options, or choose the verifier `choice`"
            )
        check_options(answer, options)


def _last_sentence(text: str) -> str:
    text = text.strip(_SPACE)
    start = 0
    for end in _SENTENCE_END.finditer(text):
        start = end.end()
    return text[start:]


def _most_similar(stated: str, options: Sequence[str]) -> int:
    ratios = [SequenceMatcher(None, stated, option).ratio() for option in options]
    return ratios.index(max(ratios))
