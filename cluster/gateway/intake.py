"""A bound on requests that are not admitted yet: they cost memory and work before their turn.

Whoever works on a request takes a share of the intake for it, as large as what is there of the
request. The bound is on all shares together; one that would pass it is refused at once, which is
an error that clients may retry. What was admitted is counted by the backend and not here.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from twinflow.protos.errors import Overloaded

_RETRY_AFTER_S = 1.0


@dataclass(frozen=True, slots=True)
class IntakeLimits:
    """What may be under way at the same time.

    Attributes:
        max_requests: requests.
        max_size: of all of them together, in the intake's unit.
    """

    max_requests: int
    max_size: int


class Intake:
    """Counts requests and their sizes in and out.

    Args:
        limits: of all shares together.
        unit: what a size counts, for the error.
        on_refused: hears every refusal.

    Attributes:
        num_requests: shares that are held.
        size: what they have taken.
    """

    def __init__(
        self, limits: IntakeLimits, unit: str, on_refused: Callable[[Overloaded], None]
    ) -> None:
        self._limits = limits
        self._unit = unit
        self._on_refused = on_refused
        self.num_requests = 0
        self.size = 0

    @contextmanager
    def share(self, size: int = 0) -> Iterator["Share"]:
        """Room for a request, until the block ends.

        Raises:
            Overloaded: there is none.
        """
        self._check(self.num_requests + 1, self._limits.max_requests, "requests")
        self.num_requests += 1
        share = Share(self)
        try:
            share.take(size)
            yield share
        finally:
            self.num_requests -= 1
            self.size -= share.size

    def take(self, size: int) -> None:
        """Count more of a request in; see `Share.take`."""
        self._check(self.size + size, self._limits.max_size, self._unit)
        self.size += size

    def _check(self, value: int, limit: int, unit: str) -> None:
        if value <= limit:
            return
        error = Overloaded(
            f"Too much waits to be admitted ({limit} {unit}); try again later.",
            retry_after_s=_RETRY_AFTER_S,
        )
        self._on_refused(error)
        raise error


class Share:
    """One request's part of an intake.

    Attributes:
        size: what it has taken.
    """

    def __init__(self, intake: Intake) -> None:
        self._intake = intake
        self.size = 0

    def take(self, size: int) -> None:
        """Take more.

        Raises:
            Overloaded: there is no room for it.
        """
        self._intake.take(size)
        self.size += size
