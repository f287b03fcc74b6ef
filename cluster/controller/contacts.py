"""Which workers are lost, from what gateways hear of them.

A worker reports to every gateway twice a second over the session that its tokens take, and a
gateway that hears nothing gives the session up and tries again: that is the heartbeat. A worker
whose session is down for longer than it takes to come back is dead or frozen, whatever its process
looks like. No clock is read here.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ContactLimits:
    """How long a worker may be out of contact, in seconds.

    Attributes:
        first_s: from when it is ready until a gateway hears of it.
        lost_s: after a gateway heard of it, and then no more. The gateway has waited before it
            says so.
    """

    first_s: float = 30.0
    lost_s: float = 1.5


@dataclass(slots=True)
class _Contact:
    """What is known of one life."""

    since: float
    heard: bool = False
    problem: str = ""


class Contacts:
    """The contact to every life that serves.

    Args:
        limits: how long one may be out of contact.
    """

    def __init__(self, limits: ContactLimits | None = None) -> None:
        self._limits = limits or ContactLimits()
        self._known: dict[int, _Contact] = {}

    def keep(self, epochs: set[int], now: float) -> None:
        """These lives serve now; others are forgotten."""
        self._known = {epoch: self._known.get(epoch, _Contact(now)) for epoch in epochs}

    def heard(self, epoch: int, now: float) -> None:
        """A gateway hears of it."""
        if epoch in self._known:
            self._known[epoch] = _Contact(now, heard=True)

    def silent(self, epoch: int, problem: str) -> None:
        """A gateway hears nothing of it, and why."""
        if epoch in self._known:
            self._known[epoch].problem = problem

    def hold(self, seconds: float) -> None:
        """Nothing could be heard of anyone for so long: it counts against nobody."""
        for contact in self._known.values():
            contact.since += seconds

    def lost(self, now: float) -> dict[int, str]:
        """Lives that have been out of contact for too long, and why."""
        found = {}
        for epoch, contact in self._known.items():
            limit_s = self._limits.lost_s if contact.heard else self._limits.first_s
            if now - contact.since > limit_s:
                found[epoch] = contact.problem or "no gateway hears of it"
        return found
