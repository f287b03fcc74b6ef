"""Whether a process that starts is frozen.

One that serves is heard of by gateways, twice a second. Before that, its launcher is all that hears
of it: it says every second that it is still starting. Loading a model may take minutes; silence may
not.
"""

from collections.abc import Callable

from twinflow.cluster.launch.base import ServiceStatus

# How often a process that starts says so.
SIGN_OF_LIFE_S = 1.0
# Until its interpreter runs, which a busy machine may let wait; and from then on. Importing torch
# holds the interpreter for a second or two, and on a machine with ten times its load for ten.
_FIRST_S = 60.0
_NEXT_S = 20.0


class Silence:
    """Watches the silence of one process.

    Args:
        clock: seconds, monotonic.
        first_s: how long it may take to say its first word.
        next_s: how long it may take to say the next one.
    """

    def __init__(
        self, clock: Callable[[], float], first_s: float = _FIRST_S, next_s: float = _NEXT_S
    ) -> None:
        self._clock = clock
        self._limit_s = first_s
        self._next_s = next_s
        self._since = clock()

    def broken(self) -> None:
        """It has said something."""
        self._since, self._limit_s = self._clock(), self._next_s

    def judge(self, name: str, status: ServiceStatus) -> ServiceStatus:
        """What to make of the last word of a process."""
        if status.state != "starting" or self._clock() - self._since <= self._limit_s:
            return status
        silent = f"the process of {name} stands still: nothing was heard of it for"
        return ServiceStatus("gone", f"{silent} {self._limit_s:g} s ({status.detail})")
