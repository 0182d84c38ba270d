"""The range and the rules of an option, written in the `Annotated` type of its field.

`train.config.options` reads them for the checks, the short help and resuming a run.
"""

from dataclasses import dataclass
from enum import Enum
from math import inf
from typing import Annotated


@dataclass(frozen=True)
class Range:
    """The numbers that an option accepts, from `low` to `high`."""

    low: float
    high: float = inf
    includes_high: bool = True

    def __contains__(self, value: float) -> bool:
        return self.low <= value and (value <= self.high if self.includes_high else value < self.high)

    def __str__(self) -> str:
        if self.high == inf:
            return f"at least {self.low}"
        return f"from {self.low} to {self.high}" if self.includes_high else f"at least {self.low} and below {self.high}"


class Rule(Enum):
    """A rule for one option, or for all options of a group."""

    COMMON = "the short help explains it"
    CHANGEABLE_ON_RESUME = "it may change when a run resumes, because it never changes the results"
    PER_PROCESS = "it may differ between the processes of a run"


Count = Annotated[int, Range(1)]
Natural = Annotated[int, Range(0)]
NonNegative = Annotated[float, Range(0)]
Fraction = Annotated[float, Range(0, 1)]
Decay = Annotated[float, Range(0, 1, includes_high=False)]
