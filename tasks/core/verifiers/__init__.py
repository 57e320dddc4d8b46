"""The verifiers, by name: pure functions of text that run in the caller's process."""

from difflib import get_close_matches

from tasks.core.verdict import Verifier
from tasks.core.verifiers.arithmetic import ArithmeticVerifier
from tasks.core.verifiers.choice import ChoiceVerifier
from tasks.core.verifiers.exact import ExactVerifier
from tasks.core.verifiers.gsm8k import Gsm8kVerifier
from tasks.core.verifiers.math import MathVerifier
from tasks.core.verifiers.numeric import NumericVerifier
from tasks.core.verifiers.paper_medqa import PaperMedqaVerifier

VERIFIERS: dict[str, Verifier] = {
    verifier.name: verifier
    for verifier in (
        ArithmeticVerifier(),
        Gsm8kVerifier(),
        MathVerifier(),
        NumericVerifier(),
        ChoiceVerifier(),
        ExactVerifier(),
        PaperMedqaVerifier(),
    )
}
"""Every verifier under its own name."""


def get_verifier(name: str) -> Verifier:
    """The verifier registered as `name`, or, as "name@version", that verifier if it has that version.

    Errors: ValueError that names the nearest valid name, or the version there is.

    >>> get_verifier("gsm8k").version, get_verifier("math@2").name
    (2, 'math')
    """
    wanted, at, version = name.partition("@")
    if wanted not in VERIFIERS:
        nearest = get_close_matches(wanted, VERIFIERS, n=1, cutoff=0.0)[0]
        raise ValueError(
            f"verifier {wanted!r} does not exist: expected one of {', '.join(sorted(VERIFIERS))}; "
            f"the nearest is {nearest!r}: set the experiment's key `verifier` to it"
        )
    verifier = VERIFIERS[wanted]
    if at and version != str(verifier.version):
        raise ValueError(
            f"verifier {name!r} does not exist: this release has version {verifier.version} of {wanted!r} and "
            f"no other; write '{wanted}@{verifier.version}', or install the release that had version {version!r}"
        )
    return verifier
