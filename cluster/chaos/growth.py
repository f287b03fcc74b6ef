"""What grows although nothing should: lines through samples of processes. Pure.

The bars are those of long runs: memory may creep by 0.1 MiB a minute and 20 MiB in all once a
process is warm; descriptors and threads return to what they were as soon as nothing runs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from twinflow.cluster.chaos.processes import Footprint

# One process is one life of a service: its name and its process id.
Life = tuple[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bars:
    """How much may grow.

    Attributes:
        rss_mib_per_min: resident memory under load.
        rss_mib: likewise, in all.
        warm_up_s: of a process, before which nothing is judged.
        least_s: a line through less than this says nothing.
    """

    rss_mib_per_min: float = 0.1
    rss_mib: float = 20.0
    warm_up_s: float = 300.0
    least_s: float = 240.0


@dataclass(frozen=True, slots=True)
class Sample:
    """What a process held at a time.

    Attributes:
        at: in seconds.
        footprint: what it held.
    """

    at: float
    footprint: Footprint


@dataclass(frozen=True, slots=True, kw_only=True)
class Growth:
    """What became of one life.

    Attributes:
        life: whose.
        minutes: that it was looked at, once warm.
        rss_mib: at the end.
        rss_slope: MiB a minute; None if it was not looked at for long enough.
        rss_gain: MiB along that line.
        rest_fds: descriptors when nothing ran, at first and in the end; None if it was not there.
        rest_threads: likewise.
    """

    life: Life
    minutes: float
    rss_mib: float
    rss_slope: float | None
    rss_gain: float | None
    rest_fds: tuple[int, int] | None
    rest_threads: tuple[int, int] | None

    def faults(self, bars: Bars) -> list[str]:
        """What is above the bars, in words."""
        found = []
        if self.rss_slope is not None and self.rss_slope > bars.rss_mib_per_min:
            found.append(f"memory grows by {self.rss_slope:.2f} MiB a minute")
        if self.rss_gain is not None and self.rss_gain > bars.rss_mib:
            found.append(f"memory grew by {self.rss_gain:.0f} MiB")
        for what, rest in (("descriptors", self.rest_fds), ("threads", self.rest_threads)):
            if rest is not None and rest[1] > rest[0]:
                found.append(f"{rest[1]} {what} at rest, {rest[0]} before")
        return found


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Of the line with the least squares; 0 where all points have one abscissa."""
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    if not spread:
        return 0.0
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread


def growth_of(
    loaded: Mapping[Life, Sequence[Sample]],
    first_rest: Mapping[Life, Footprint],
    last_rest: Mapping[Life, Footprint],
    bars: Bars,
) -> list[Growth]:
    """What became of every life.

    Args:
        loaded: samples under load, in the order of time.
        first_rest: what was held at rest at first, once warm.
        last_rest: likewise at the end.
        bars: say what is warm and long enough.
    """
    found = []
    for life, samples in sorted(loaded.items()):
        warm = [one for one in samples if one.at - samples[0].at >= bars.warm_up_s]
        span_s = warm[-1].at - warm[0].at if warm else 0.0
        line = None
        if span_s >= bars.least_s:
            line = slope([(one.at / 60, one.footprint.rss_mib) for one in warm])
        pair = (first_rest.get(life), last_rest.get(life))
        found.append(
            Growth(
                life=life,
                minutes=span_s / 60,
                rss_mib=samples[-1].footprint.rss_mib,
                rss_slope=line,
                rss_gain=None if line is None else line * span_s / 60,
                rest_fds=(pair[0].fds, pair[1].fds) if pair[0] and pair[1] else None,
                rest_threads=(pair[0].threads, pair[1].threads) if pair[0] and pair[1] else None,
            )
        )
    return found
