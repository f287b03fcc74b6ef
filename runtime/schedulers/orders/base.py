"""In which order prompts get what a step has left for them."""

from collections.abc import Sequence
from typing import Protocol

from twinflow.runtime.request import Request
from twinflow.runtime.schedulers.base import SchedulerState


class PrefillOrder(Protocol):
    """An order of prompts; a pure function."""

    def sort(self, prefilling: Sequence[Request], state: SchedulerState) -> list[Request]:
        """Put prompts in order.

        Args:
            prefilling: running requests whose prompts are not computed, best rank first.
            state: with the waiting requests.

        Returns:
            Those prefilling and those waiting. A waiting one that finds no room keeps all waiting
            ones behind it from coming in.
        """
        ...
