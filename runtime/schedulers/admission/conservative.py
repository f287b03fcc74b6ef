"""Lets a request in if all could grow to the end of their `max_tokens`: nobody is ever preempted,
and most of the memory is idle where outputs end early."""

from collections.abc import Sequence

from twinflow.runtime.request import Request
from twinflow.runtime.schedulers.admission.base import growth
from twinflow.runtime.schedulers.base import SchedulerState


class Conservative:
    """See the module."""

    def reserve(self, state: SchedulerState, holders: Sequence[Request], candidate: Request) -> int:
        """See `Admission.reserve`."""
        growing = [r for r in (*holders, candidate) if not r.hold]
        return sum(growth(r, r.max_total_tokens, state.blocks) for r in growing)
