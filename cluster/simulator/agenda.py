"""Events in order of time. Knows nothing of what they are; equal times keep their order."""

import heapq
from collections.abc import Callable, Iterable, Iterator

Action = Callable[[float], None]


class Agenda:
    """What happens when.

    Attributes:
        now: the time of the event that is happening, in seconds.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Action]] = []
        self._count = 0

    def __len__(self) -> int:
        return len(self._events)

    def at(self, time: float, action: Action) -> None:
        """Let `action` happen; it is told the time.

        Raises:
            ValueError: the time is over.
        """
        if time < self.now:
            raise ValueError(f"an event at {time} s would lie in the past of {self.now} s")
        self._count += 1
        heapq.heappush(self._events, (time, self._count, action))

    def run(self, arrivals: Iterable[tuple[float, Action]]) -> None:
        """Let everything happen, until there is nothing more.

        Args:
            arrivals: further events, ascending; taken one by one, so that there may be millions.
        """
        coming = iter(arrivals)
        following = next(coming, None)
        while self._events or following is not None:
            if following is not None and (not self._events or following[0] <= self._events[0][0]):
                following = self._happen(following, coming)
            else:
                time, _, action = heapq.heappop(self._events)
                self.now = time
                action(time)

    def _happen(
        self, event: tuple[float, Action], coming: Iterator[tuple[float, Action]]
    ) -> tuple[float, Action] | None:
        self.now, action = event
        action(self.now)
        return next(coming, None)
