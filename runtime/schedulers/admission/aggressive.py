"""Lets in whatever fits now: highest use of memory, and preemptions when outputs grow."""

from collections.abc import Sequence

from twinflow.runtime.request import Request
from twinflow.runtime.schedulers.base import SchedulerState


class Aggressive:
    """Leaves a fixed reserve, so that running requests can grow for a while.

    Args:
        watermark_blocks: the reserve.
    """

    def __init__(self, watermark_blocks: int) -> None:
        self._watermark_blocks = watermark_blocks

    def reserve(self, state: SchedulerState, holders: Sequence[Request], candidate: Request) -> int:
        """See `Admission.reserve`."""
        return self._watermark_blocks
