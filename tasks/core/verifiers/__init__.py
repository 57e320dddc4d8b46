"""The verifiers that run in the caller's process, by name."""

from difflib import get_close_matches

from tasks.core.verdict import Verifier
from tasks.core.verifiers.arithmetic import ArithmeticVerifier
from tasks.core.verifiers.gsm8k import Gsm8kVerifier

VERIFIERS: dict[str, Verifier] = {verifier.name: verifier for verifier in (ArithmeticVerifier(), Gsm8kVerifier())}
"""Every verifier under its own name."""


def get_verifier(name: str) -> Verifier:
    """The verifier registered as `name`. Errors: ValueError that names the nearest valid name.

    >>> get_verifier("gsm8k").version
    1
    """
    name, _, version = name.partition("@")
    if name in VERIFIERS and version not in ("", str(VERIFIERS[name].version)):
        raise ValueError(f"verifier {name!r} has no version {version}: expected {VERIFIERS[name].version}")
    if name in VERIFIERS:
        return VERIFIERS[name]
    nearest = get_close_matches(name, VERIFIERS, n=1, cutoff=0.0)[0]
    raise ValueError(
        f"verifier {name!r} does not exist: expected one of {', '.join(sorted(VERIFIERS))}; "
        f"the nearest is {nearest!r}: set the experiment's key `verifier` to it"
    )
