"""How long steps take that run next to each other on two parts of one device.

A step on a lane is computed by the lane's processors alone, but memory is nobody's: what two lanes
want of it together, beyond all there is, makes them slower, each by what it waits for memory
(`twinflow.runtime.cost.contention`). Rates are compared, not amounts: Nexus's formula compares the
bytes of a decode step with those of a whole prefill, which lasts many times as long, and so finds
decoding several times slower than it is ever measured.
"""

from dataclasses import dataclass
from typing import Protocol

import msgspec

from twinflow.runtime.cost.base import StepLoad, StepTimes
from twinflow.runtime.cost.contention import PUBLISHED, Contention


class SharedDeviceTimes(StepTimes, Protocol):
    """Step times that also know what a step takes of what lanes share."""

    @property
    def contention(self) -> Contention | None:
        """What lanes cost each other; None if nobody has measured it."""
        ...

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
        times: on a device that does nothing else; where it does not know what lanes cost each
            other, they cost what was published of others.
    """

    times: SharedDeviceTimes

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
        contention = self.times.contention or PUBLISHED
        return (
            one * contention.stretch(one_use, two_use),
            two * contention.stretch(two_use, one_use),
        )
