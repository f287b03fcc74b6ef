"""How long steps take by their rows, as measured: an average for each number of rows.

Numbers of rows far from one another have averages of their own; neighbours share one from 16 rows
on, where a row more or less is a few per cent. What was not measured for long is forgotten, since
sequences grow and machines get other work, and is then measured again.
"""

import math
from dataclasses import dataclass

from twinflow.runtime.speculative.goodput.choice import Points

_EXACT_ROWS = 16
# Averages for each doubling of rows behind that.
_PER_DOUBLING = 6
_NEWEST = 0.25
# A measurement counts for at most this many times the average: one slow step is an accident.
_OUTLIER = 2.0
_REMEMBERED_STEPS = 1024


@dataclass(slots=True)
class _Average:
    rows: float
    seconds: float
    step: int


class RowTimes:
    """See the module.

    Args:
        remembered: steps after which a measurement is forgotten.
    """

    def __init__(self, remembered: int = _REMEMBERED_STEPS) -> None:
        self._remembered = remembered
        self._averages: dict[int, _Average] = {}

    def note(self, rows: float, seconds: float, step: int) -> None:
        """A step was measured.

        Args:
            rows: that it computed.
            seconds: that it took.
            step: its number.
        """
        key = _key(rows)
        known = self._averages.get(key)
        if known is None:
            self._averages[key] = _Average(rows, seconds, step)
            return
        seconds = min(seconds, _OUTLIER * known.seconds)
        known.rows += _NEWEST * (rows - known.rows)
        known.seconds += _NEWEST * (seconds - known.seconds)
        known.step = step

    def points(self, step: int) -> Points:
        """What is known, by rows; more rows never take less time."""
        for key, known in list(self._averages.items()):
            if step - known.step > self._remembered:
                del self._averages[key]
        points: list[tuple[float, float]] = []
        slowest = 0.0
        for known in sorted(self._averages.values(), key=lambda average: average.rows):
            slowest = max(slowest, known.seconds)
            points.append((known.rows, slowest))
        return tuple(points)


def _key(rows: float) -> int:
    if rows <= _EXACT_ROWS:
        return round(rows)
    return _EXACT_ROWS + math.ceil(_PER_DOUBLING * math.log2(rows / _EXACT_ROWS))
