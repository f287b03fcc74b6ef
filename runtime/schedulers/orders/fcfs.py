"""First come, first served within a priority, and what has begun is finished first."""

from collections.abc import Sequence

from twinflow.runtime.request import Request
from twinflow.runtime.schedulers.base import SchedulerState


class FirstComeFirstServed:
    """See the module."""

    def sort(self, prefilling: Sequence[Request], state: SchedulerState) -> list[Request]:
        """See `PrefillOrder.sort`."""
        return [*prefilling, *state.waiting]
