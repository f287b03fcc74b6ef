"""How long a request would wait for its first token, judged by how long the latest ones did.

A queue may be as long as is worth waiting for, and how long that is no fixed number can say: it
depends on the model, the machine and what is asked of them. So the pace is measured, in prompt
tokens a second that leave the queue, and what would wait for longer than it may is refused while
that costs nothing. Without this a server with twice the load it can serve answers everybody late.

Who had `ahead` tokens in front (its own included) and waited for w seconds has seen a pace of
ahead / w. Few tokens are never fast: their pace is the time that one pass takes, and not what the
workers can do. A slower pace is therefore believed only of who waited behind others and for long;
a faster one always. Pure: no clock, no queue.
"""

from dataclasses import dataclass

# Of the time that a first token may take, the part that a forecast may fill: paces vary.
_SHARE = 0.7
# Of that part, how much somebody must have waited to say that the workers are slow.
_LONG = 0.8
# Weight of one observation.
_WEIGHT = 0.1


@dataclass(frozen=True, slots=True)
class Wait:
    """What a sequence was admitted with.

    Attributes:
        since: when.
        ahead: prompt tokens that waited in front of its end, its own included.
        own: its own.
        limit_s: longest time that its first token may take.
    """

    since: float
    ahead: int
    own: int
    limit_s: float


class Forecast:
    """Learns the pace and says who would wait too long.

    Args:
        longest_s: longest time to a first token that is promised; None promises none, and only the
            deadlines of requests count.

    Attributes:
        pace: prompt tokens a second; None while nobody has waited for long.
    """

    def __init__(self, longest_s: float | None = None) -> None:
        self._longest_s = longest_s
        self.pace: float | None = None

    def limit_s(self, deadline_s: float) -> float:
        """How long the first token of a request with this deadline may take."""
        return deadline_s if self._longest_s is None else min(deadline_s, self._longest_s)

    def excess_s(self, ahead: int, limit_s: float) -> float:
        """By how much a wait behind `ahead` tokens would be too long; 0 if it would not."""
        return 0.0 if self.pace is None else max(0.0, ahead / self.pace - _SHARE * limit_s)

    def observe(self, wait: Wait, now: float) -> None:
        """A first token has come."""
        waited_s = now - wait.since
        if waited_s <= 0.0:
            return
        pace, known = wait.ahead / waited_s, self.pace
        slow = waited_s > _LONG * _SHARE * wait.limit_s and wait.ahead > wait.own
        if known is None:
            self.pace = pace if slow else None
        elif slow or pace > known:
            self.pace = known + _WEIGHT * (pace - known)
