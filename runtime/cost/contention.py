"""What two lanes of a device cost each other, and how that is found from steps that ran in pairs.

    a step's time beside another one = compute part * (1 + c) + memory part * (1 + excess)
    excess = what both want of the memory's bandwidth beyond all there is, m at most

Only the part of a step that waits for memory is stretched by traffic: a prompt beside decoding
loses little. What else two lanes share (caches, clock, one interpreter) is in c. Where nothing was
measured c is 0 and m is published.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_GRID = 101


@dataclass(frozen=True, slots=True)
class Contention:
    """By how much a step is slower next to another lane's.

    Attributes:
        memory: m, the most by which the part that reads memory is, as a part of its time.
        compute: c, by which the rest is.
    """

    memory: float
    compute: float = 0.0

    def __post_init__(self) -> None:
        if not (self.memory >= 0.0 and self.compute >= 0.0):
            raise ValueError(f"no lane makes another one faster: {self.memory}, {self.compute}")

    def stretch(self, use: float, other: float) -> float:
        """Times of what a step takes alone on its lane, beside another one.

        Args:
            use: of the device's memory bandwidth, by the step alone, 0 to 1.
            other: by the other lane's step alone.
        """
        excess = min(max(use + other - 1.0, 0.0), self.memory)
        return 1.0 + (1.0 - use) * self.compute + use * excess


# Never measured to be more: MuxWise, arXiv 2504.14489, 30 % on an H100 and 20 % on an A100.
PUBLISHED = Contention(0.3)


@dataclass(frozen=True, slots=True)
class Slowdown:
    """What became of a step beside another one.

    Attributes:
        use: see `Contention.stretch`.
        other: likewise.
        factor: time beside the other lane's steps, in times of that alone on the same processors.
    """

    use: float
    other: float
    factor: float


def fit_contention(slowdowns: Sequence[Slowdown]) -> Contention:
    """The contention with the least squared relative error.

    For each m the formula is linear in c; of all m on a grid, the least of the best is taken.

    Raises:
        ValueError: there is nothing to fit to.
    """
    if not slowdowns:
        raise ValueError("contention is fitted to steps that ran beside others, and there are none")
    factor = np.array([each.factor for each in slowdowns])
    rest = 1.0 - np.array([each.use for each in slowdowns])
    best, least = PUBLISHED, np.inf
    for memory in np.linspace(0.0, 1.0, _GRID):
        bound = Contention(float(memory))
        known = np.array([bound.stretch(each.use, each.other) for each in slowdowns])
        column, target = rest / factor, 1.0 - known / factor
        squares = float(column @ column)
        compute = max(float(column @ target) / squares, 0.0) if squares else 0.0
        error = float(((column * compute - target) ** 2).sum())
        if error < least * (1.0 - 1e-9):
            best, least = Contention(float(memory), compute), error
    return best
