"""Nothing is divided: one lane has the whole device."""

from twinflow.parallel.partition.backends.base import Backend, Place
from twinflow.parallel.partition.backends.names import NONE
from twinflow.parallel.partition.control import Mode
from twinflow.parallel.partition.layout import Layout


class Undivided(Backend):
    """See the module."""

    name = NONE
    grid = None

    def __init__(self, place: Place) -> None:
        self._device = place.device

    def enter(self, lane: Mode, layout: Layout) -> None:
        """See the base class; there is nowhere to go."""

    def settle(self, lane: Mode) -> None:
        """See the base class."""

    def describe(self) -> str:
        """See the base class."""
        return f"one lane on {self._device}"

    def close(self) -> None:
        """See the base class."""
