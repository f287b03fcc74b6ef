"""A figure over repeats: its median and its range. Pure; drops no value."""

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.load.stats import median


@dataclass(frozen=True, slots=True)
class Spread:
    """A figure over the repeats: the median and the range."""

    median: float
    low: float
    high: float
    count: int

    def text(self, digits: int = 2) -> str:
        """`median [low, high]`, or the median alone if rounding leaves no range."""
        low, middle, high = (f"{each:.{digits}f}" for each in (self.low, self.median, self.high))
        return middle if low == high else f"{middle} [{low}, {high}]"


def spread(values: Sequence[float]) -> Spread:
    """Median and range of at least one value."""
    return Spread(median(values), min(values), max(values), len(values))


def ratios(own: Sequence[float], base: Sequence[float]) -> Spread:
    """Of figures to those of a base in the same repeats, none of which is 0."""
    return spread([mine / theirs for mine, theirs in zip(own, base, strict=True)])
