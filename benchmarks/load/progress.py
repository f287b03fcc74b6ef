"""A progress line on standard error: rewritten in place on a terminal, repeated elsewhere."""

import asyncio
from collections.abc import Callable
from typing import TextIO

from benchmarks.load.records import Outcome, RequestRecord
from benchmarks.load.stats import median


class Progress:
    """Counts what happens to the requests of one run.

    Args:
        label: names the run.
        planned: requests in its plan.
        stream: where lines go.
        clock: monotonic seconds.
    """

    def __init__(
        self, label: str, planned: int, stream: TextIO, clock: Callable[[], float]
    ) -> None:
        self._label = label
        self._planned = planned
        self._stream = stream
        self._clock = clock
        self._started_s = clock()
        self._sent = 0
        self._done = 0
        self._not_well = 0
        self._ttfts: list[float] = []

    def sent(self) -> None:
        """A request was started."""
        self._sent += 1

    def done(self, record: RequestRecord) -> None:
        """A request has its outcome."""
        self._done += 1
        self._not_well += record.outcome in (Outcome.FAILED, Outcome.REJECTED)
        if record.ttft_s is not None:
            self._ttfts.append(record.ttft_s)

    def line(self) -> str:
        """The state of the run in one line."""
        ttft = f"{1000 * median(self._ttfts):.0f} ms" if self._ttfts else "none yet"
        return (
            f"[{self._label}] {self._clock() - self._started_s:.0f} s: "
            f"{self._sent}/{self._planned} sent, {self._done} done, "
            f"{self._sent - self._done} in flight, {self._not_well} failed or rejected, "
            f"TTFT p50 {ttft}"
        )

    async def show_every(self, period_s: float) -> None:
        """Write a line now and then until cancelled."""
        while True:
            await asyncio.sleep(period_s)
            self._write("\n")

    def close(self) -> None:
        """Write the last line."""
        self._write("\n", last=True)

    def _write(self, end: str, last: bool = False) -> None:
        if self._stream.isatty():
            self._stream.write(f"\r\x1b[K{self.line()}{end if last else ''}")
        else:
            self._stream.write(self.line() + end)
        self._stream.flush()
