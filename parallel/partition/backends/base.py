"""What two lanes need of whatever divides their device.

A backend knows processors and threads, and neither requests nor models. It is made once, checks
everything that can be checked before anything is served, and from then on only moves lanes from
one of its layouts to another.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from twinflow.parallel.partition.control import Mode
from twinflow.parallel.partition.layout import Grid, Layout


@dataclass(frozen=True, slots=True)
class Place:
    """What there is to divide.

    Attributes:
        device: `cpu`, or a CUDA device.
        cores: processor cores that a CPU's lanes may use; unused elsewhere.
    """

    device: str
    cores: tuple[int, ...] = ()


class Backend(ABC):
    """Divides a device.

    Attributes:
        name: in the registry.
        grid: the layouts that the device can do; None if it is not divided.
    """

    name: str
    grid: Grid | None

    @abstractmethod
    def __init__(self, place: Place) -> None:
        """Divide a place.

        Raises:
            ConfigError: it cannot be divided; the reason is what operators are told.
        """

    @abstractmethod
    def enter(self, lane: Mode, layout: Layout) -> None:
        """Move the calling thread, which is the lane's, to its part of a layout.

        Args:
            lane: always called on the same thread, and between two of the lane's steps.
            layout: of the grid, or all of the device for this lane.

        Raises:
            ConfigError: the system does not allow it any more.
        """

    @abstractmethod
    def settle(self, lane: Mode) -> None:
        """Wait until everything that the lane has been given to compute is computed."""

    @abstractmethod
    def describe(self) -> str:
        """What is divided, for reports: half a sentence."""

    @abstractmethod
    def close(self) -> None:
        """Give back what was taken; no lane runs any more."""
