"""The range and the rules of an option, written in the `Annotated` type of its field.

`train.config.options` reads them for the checks, the short help and resuming a run.
"""

from dataclasses import dataclass
from enum import Enum
from math import inf, isfinite
from typing import Annotated


@dataclass(frozen=True)
class Range:
    """The finite numbers that an option accepts, from `low` to `high`."""

    low: float
    high: float = inf
    includes_low: bool = True
    includes_high: bool = True

    def __contains__(self, value: float) -> bool:
        above = self.low <= value if self.includes_low else self.low < value
        return isfinite(value) and above and (value <= self.high if self.includes_high else value < self.high)

    def __str__(self) -> str:
        low = f"at least {self.low}" if self.includes_low else f"above {self.low}"
        if self.high == inf:
            return low
        if self.includes_low and self.includes_high:
            return f"from {self.low} to {self.high}"
        return f"{low} and {'at most' if self.includes_high else 'below'} {self.high}"


class Rule(Enum):
    """A rule for one option, or for all options of a group."""

    COMMON = "the short help explains it"
    CHANGEABLE_ON_RESUME = "it may change when a run resumes"
    PER_PROCESS = "it may differ between the processes of a run"


Count = Annotated[int, Range(1, 2**31 - 1)]  # an int32, as the number of a step
Natural = Annotated[int, Range(0, 2**31 - 1)]
Seed = Annotated[int, Range(0, 2**32 - 1)]  # JAX makes the same key of seeds that differ by 2**32
Positive = Annotated[float, Range(0, includes_low=False)]
NonNegative = Annotated[float, Range(0)]
Fraction = Annotated[float, Range(0, 1)]
Decay = Annotated[float, Range(0, 1, includes_high=False)]
