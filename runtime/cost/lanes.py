"""How long steps take that run next to each other on two parts of one device.

A step on a lane is computed by the lane's processors alone, but memory is nobody's: what two lanes
want of it together, beyond all there is, makes both of them slower. Rates are compared, not
amounts: Nexus's formula compares the bytes of a decode step with those of a whole prefill, which
lasts many times as long, and so finds decoding several times slower than it is ever measured.
"""

from dataclasses import dataclass
from typing import Protocol

import msgspec

from twinflow.runtime.cost.base import StepLoad, StepTimes

# Never measured to be more: MuxWise, arXiv 2504.14489, 30 % on an H100 and 20 % on an A100.
CONTENTION = 0.3


class SharedDeviceTimes(StepTimes, Protocol):
    """Step times that also know what a step takes of what lanes share."""

    def seconds_and_use(self, load: StepLoad, share: float = 1.0) -> tuple[float, float]:
        """Seconds, and the part of the device's memory bandwidth used meanwhile, 0 to 1."""
        ...


class Lane(msgspec.Struct, frozen=True):
    """A step and what computes it.

    Attributes:
        load: the step; an empty one for a lane that does nothing.
        share: of the device's processors.
    """

    load: StepLoad
    share: float


@dataclass(frozen=True, slots=True)
class LaneTimes:
    """Step times on a divided device.

    Attributes:
        times: on a device that does nothing else.
        contention: the most by which a lane is slowed down, as a part of its time.
    """

    times: SharedDeviceTimes
    contention: float = CONTENTION

    def seconds(self, lane: Lane, other: Lane | None = None) -> float:
        """How long a lane's step takes while the other lane's runs."""
        if other is None:
            return self.times.seconds(lane.load, lane.share)
        return self.pair(lane, other)[0]

    def pair(self, lane: Lane, other: Lane) -> tuple[float, float]:
        """How long each of two steps takes next to the other one."""
        one, one_use = self.times.seconds_and_use(lane.load, lane.share)
        two, two_use = self.times.seconds_and_use(other.load, other.share)
        if not (one and two):
            return one, two
        stretch = min(max(one_use + two_use, 1.0), 1.0 + self.contention)
        return one * stretch, two * stretch
