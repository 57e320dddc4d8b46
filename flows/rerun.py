"""A rerun: which stage of a run is computed again, and with what settings from there on."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Rerun:
    """A request to compute a stage of a stored run again, and then whatever depends on it."""

    from_stage: str
    """The stage to compute again although storage has it."""
    step: int | None = None
    """At this step only; absent: wherever the run has that stage."""
    force: bool = False
    """Also compute again what depends on it when the new contents equal the old ones."""
    overrides: tuple[str, ...] = ()
    """`key=value` entries that hold from that step on."""
