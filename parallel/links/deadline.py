"""A point in time until which something may take. Knows nothing of what is waited for."""

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Deadline:
    """When a wait ends, on the monotonic clock of this process; never sent anywhere.

    Attributes:
        budget_s: seconds the whole operation was given, for error messages.
        expires_at: reading of `clock` at which the budget is spent.
        clock: monotonic clock in seconds.
    """

    budget_s: float
    expires_at: float
    clock: Callable[[], float] = time.monotonic

    @classmethod
    def after(cls, seconds: float, clock: Callable[[], float] = time.monotonic) -> "Deadline":
        """The deadline `seconds` from now."""
        return cls(budget_s=seconds, expires_at=clock() + seconds, clock=clock)

    def remaining(self) -> float:
        """Seconds left; 0.0 once the deadline has passed."""
        return max(0.0, self.expires_at - self.clock())

    @property
    def expired(self) -> bool:
        """Whether no time is left."""
        return self.remaining() == 0.0
