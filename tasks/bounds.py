"""Numbers with bounds: the types of the experiment's keys."""

from dataclasses import dataclass
from typing import Annotated


@dataclass(frozen=True)
class Bounds:
    """Inclusive bounds of a number; `above` is a strict lower bound."""

    at_least: float | None = None
    at_most: float | None = None
    above: float | None = None

    def describe(self) -> str:
        parts = [
            f"at least {self.at_least:g}" if self.at_least is not None else "",
            f"above {self.above:g}" if self.above is not None else "",
            f"at most {self.at_most:g}" if self.at_most is not None else "",
        ]
        return " and ".join(part for part in parts if part)

    def allow(self, value: float) -> bool:
        return (
            (self.at_least is None or value >= self.at_least)
            and (self.at_most is None or value <= self.at_most)
            and (self.above is None or value > self.above)
        )


Count = Annotated[int, Bounds(at_least=0)]
Positive = Annotated[int, Bounds(at_least=1)]
NonNegative = Annotated[float, Bounds(at_least=0)]
PositiveFloat = Annotated[float, Bounds(above=0)]
Fraction = Annotated[float, Bounds(at_least=0, at_most=1)]
Share = Annotated[float, Bounds(above=0, at_most=1)]
