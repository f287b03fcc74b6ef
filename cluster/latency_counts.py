"""Counts latencies in classes of equal relative width: as many as come, in memory that stays.

Says percentiles to within the width of a class. Totals only ever grow, so that whoever keeps an
earlier copy knows what came since.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_LOWEST_S, _HIGHEST_S = 1e-6, 1e5
# Half a percent: finer than anybody reads.
_FINE = 0.005


class LatencyCounts:
    """How many latencies there were of each length.

    Args:
        width: of a class, as a part of the latency.

    Attributes:
        width: see above.
        total_s: sum of all of them, exact.
    """

    def __init__(self, width: float = _FINE) -> None:
        self.width = width
        self.total_s = 0.0
        self._log_width = math.log1p(width)
        self._counts = [0] * (int(math.log(_HIGHEST_S / _LOWEST_S) / self._log_width) + 1)
        # Neighbours in a batch have equal gaps: the class of the latest one is kept.
        self._latest = (_LOWEST_S, 0)

    @property
    def counts(self) -> NDArray[np.int64]:
        """Latencies in each class."""
        return np.array(self._counts, dtype=np.int64)

    def add(self, seconds: float, count: int = 1) -> None:
        """Count latencies of equal length."""
        if seconds != self._latest[0]:
            self._latest = (seconds, self._class_of(seconds))
        self._counts[self._latest[1]] += count
        self.total_s += seconds * count

    def add_run(self, first: float, last: float, steps: int, batch: int) -> None:
        """Count the gaps of consecutive steps whose lengths go evenly from first to last."""
        classes = (self._class_of(first), self._class_of(last))
        if abs(classes[1] - classes[0]) <= 1:
            self.add((first + last) / 2, steps * batch)
            return
        for seconds in np.linspace(first, last, steps).tolist():
            self.add(seconds, batch)

    @property
    def mean(self) -> float | None:
        """In seconds, exact; None without latencies."""
        number = sum(self._counts)
        return self.total_s / number if number else None

    def percentile(self, q: float) -> float | None:
        """See `percentile_of`."""
        return percentile_of(self.counts, self.width, q)

    def distribution(self) -> tuple[Sequence[float], Sequence[float]]:
        """Lengths in seconds, and the share of latencies that are at most so long."""
        counts = self.counts
        used = np.flatnonzero(counts)
        lengths = _LOWEST_S * np.exp((used + 0.5) * self._log_width)
        return lengths.tolist(), (np.cumsum(counts[used]) / max(int(counts.sum()), 1)).tolist()

    def _class_of(self, seconds: float) -> int:
        clipped = min(max(seconds, _LOWEST_S), _HIGHEST_S)
        return min(int(math.log(clipped / _LOWEST_S) / self._log_width), len(self._counts) - 1)


def percentile_of(counts: NDArray[np.int64], width: float, q: float) -> float | None:
    """Middle of the class of the nearest-rank percentile, in seconds; None without latencies.

    Args:
        counts: latencies in each class, from the lowest on.
        width: of the classes.
        q: 0 to 100.
    """
    reached = np.cumsum(counts)
    if not len(reached) or not reached[-1]:
        return None
    rank = max(math.ceil(round(q / 100 * int(reached[-1]), 9)), 1)
    place = int(np.searchsorted(reached, rank))
    return _LOWEST_S * math.exp((place + 0.5) * math.log1p(width))
