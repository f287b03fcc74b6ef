"""Builders and fakes for tests of the load generator."""

import asyncio
import heapq
from collections.abc import Awaitable
from itertools import count
from typing import TypeVar

from benchmarks.load.records import (
    Kind,
    Outcome,
    PlannedRequest,
    PreparedRequest,
    RequestRecord,
)

from twinflow.cluster.simulator.traces import Shape

T = TypeVar("T")

_SETTLE_STEPS = 20


class VirtualClock:
    """A clock that jumps to the next awaited reading once nothing else can happen."""

    def __init__(self) -> None:
        self._now = 0.0
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._order = count()

    def now(self) -> float:
        return self._now

    async def sleep_until(self, when_s: float) -> None:
        if when_s <= self._now:
            return
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (when_s, next(self._order), woken))
        await woken

    async def run(self, work: Awaitable[T]) -> T:
        """Drive `work` to its end, moving time whenever every task waits for it."""
        task = asyncio.ensure_future(work)
        while True:
            for _ in range(_SETTLE_STEPS):
                await asyncio.sleep(0)
            if task.done():
                return task.result()
            if not self._sleepers:
                task.cancel()
                raise RuntimeError("the work waits for something that no clock brings")
            self._now, _, woken = heapq.heappop(self._sleepers)
            woken.set_result(None)


def plan(
    index: int = 0,
    due_s: float = 0.0,
    *,
    kind: Kind = Kind.GOOD,
    shape: Shape | None = None,
    hang_up_after: int | None = None,
) -> PlannedRequest:
    """A planned request of 8 prompt tokens and 4 output tokens."""
    return PlannedRequest(index, due_s, shape or Shape(8, 4), kind, hang_up_after=hang_up_after)


def prepared(planned: PlannedRequest | None = None, expected: int | None = 4) -> PreparedRequest:
    """A prepared request with an empty body."""
    planned = planned or plan()
    return PreparedRequest(planned, f"test-{planned.index}", b"{}", expected)


def record(
    index: int = 0,
    *,
    due_s: float = 0.0,
    late_s: float = 0.0,
    token_times_s: tuple[float, ...] = (0.1, 0.2, 0.3),
    outcome: Outcome = Outcome.OK,
    kind: Kind = Kind.GOOD,
    failure: str = "",
) -> RequestRecord:
    """A record whose token times count from its due time, and which ends with its last token."""
    times = tuple(due_s + time for time in token_times_s)
    return RequestRecord(
        index=index,
        kind=kind,
        outcome=outcome,
        due_s=due_s,
        started_s=due_s + late_s,
        finished_s=times[-1] if times else due_s + late_s,
        tokens=len(times),
        token_times_s=times,
        request_id=f"test-{index}",
        failure=failure,
        detail=f"why {failure}" if failure else "",
        extra={"count_source": "usage"} if times else {},
    )
