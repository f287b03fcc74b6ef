"""Runs plans open loop, one server after the other, and lists the runs of a comparison.

Open loop: every request is sent at its time, whether or not earlier ones have returned. The order
of a comparison is A B A B …, each repeat with seeds of its own that all arms share, so that a
change of the machine's load hits all arms alike.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from benchmarks.load.machine import CpuShares
from benchmarks.load.records import PreparedRequest, RequestRecord

_LEAD_S = 0.05

Send = Callable[[PreparedRequest, float], Awaitable[RequestRecord]]


class Clock(Protocol):
    """Monotonic seconds, and waiting for one of them."""

    def now(self) -> float:
        """The current reading."""

    async def sleep_until(self, when_s: float) -> None:
        """Return once the reading is at least `when_s`."""


class MonotonicClock:
    """The machine's monotonic clock; on Linux all processes read the same one."""

    def now(self) -> float:
        return time.monotonic()

    async def sleep_until(self, when_s: float) -> None:
        while (left := when_s - time.monotonic()) > 0:
            await asyncio.sleep(left)


class Watcher(Protocol):
    """Is told how a run goes."""

    def sent(self) -> None:
        """A request was started."""

    def done(self, record: RequestRecord) -> None:
        """A request has its outcome."""


@dataclass(frozen=True, slots=True)
class Arm:
    """One server of a comparison.

    Attributes:
        name: how the report calls it.
        url: where it is.
    """

    name: str
    url: str


@dataclass(frozen=True, slots=True)
class RunSpec:
    """One run of a comparison.

    Attributes:
        arm: the server.
        rate: requests per second; None if a trace sets the times.
        repeat: from 0.
        seed: of arrivals, lengths and kinds; the same for every arm.
        content_seed: of prompt contents; differs between arms only if they share a URL, whose
            prefix cache would else know the second arm's prompts from the first.
    """

    arm: Arm
    rate: float | None
    repeat: int
    seed: tuple[int, ...]
    content_seed: tuple[int, ...]

    @property
    def label(self) -> str:
        """Names the run in progress lines and request ids."""
        rate = "trace" if self.rate is None else f"{self.rate:g}rps"
        return f"{self.arm.name}-{rate}-r{self.repeat}"


@dataclass(frozen=True, slots=True)
class RunResult:
    """What one run gave.

    Attributes:
        spec: which run.
        model: the model that was asked for.
        started_at: wall-clock time in ISO 8601.
        origin_s: clock reading from which the records' times count.
        planned: requests in the plan.
        records: one per request sent, in plan order.
        cpu: who used the machine; None if unknown.
    """

    spec: RunSpec
    model: str
    started_at: str
    origin_s: float
    planned: int
    records: Sequence[RequestRecord]
    cpu: CpuShares | None = None


def list_runs(
    arms: Sequence[Arm], rates: Sequence[float | None], repeats: int, seed: int
) -> list[RunSpec]:
    """Every run in the order in which they are to be made: rates, then repeats, then arms."""
    runs = []
    for step, rate in enumerate(rates):
        for repeat in range(repeats):
            shared = (seed, step, repeat)
            for place, arm in enumerate(arms):
                twins = sum(earlier.url == arm.url for earlier in arms[:place])
                runs.append(RunSpec(arm, rate, repeat, shared, (*shared, twins)))
    return runs


async def run_open_loop(
    plan: Sequence[PreparedRequest], send: Send, clock: Clock, watcher: Watcher
) -> tuple[float, list[RequestRecord]]:
    """Send every request at its time and wait for all outcomes.

    Returns:
        The clock reading at the start, and the records in plan order.
    """
    origin_s = clock.now() + _LEAD_S

    async def one(request: PreparedRequest) -> RequestRecord:
        watcher.sent()
        record = await send(request, origin_s)
        watcher.done(record)
        return record

    tasks = []
    async with asyncio.TaskGroup() as group:
        for request in plan:
            await clock.sleep_until(origin_s + request.plan.due_s)
            tasks.append(group.create_task(one(request)))
    return origin_s, [task.result() for task in tasks]
