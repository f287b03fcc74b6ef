"""The process behind a `LocalHandle`: `... local_process KIND LOG_LEVEL`.

It loads its code, and then needs to hear which service it is.
Standard output is the channel to the launcher. The process keeps it for itself and lets everything
that libraries print go to standard error.
"""

import asyncio
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from io import RawIOBase
from pathlib import Path
from typing import BinaryIO, cast

import msgspec
import uvloop

from twinflow.cluster.launch.base import ServiceKind, ServiceStatus
from twinflow.cluster.launch.local import Assignment, Order, encode_status
from twinflow.cluster.launch.logs import configure_logging
from twinflow.cluster.launch.service import ServiceRunner, create_service, load_code
from twinflow.cluster.launch.silence import SIGN_OF_LIFE_S

_REPORT_INTERVAL_S = 0.1
_DEFAULT_GRACE_S = 5.0
# Of which Linux keeps 15 characters.
_OWN_NAME = Path("/proc/self/comm")
# What workers wait for once the launcher is gone: the gateway, which has noticed too, ends its
# streams with an error that says why, and they have nothing more to do.
_ORPHANED_WORKER_GRACE_S = 2.0


def main() -> int:
    """Run one service until it fails, it is told to stop, or standard input ends."""
    kind, log_level = cast(ServiceKind, sys.argv[1]), sys.argv[2]
    # Unbuffered: a thread that reads a buffered stream when the process ends aborts it.
    orders = open(sys.stdin.fileno(), "rb", buffering=0, closefd=False)  # noqa: SIM115
    with os.fdopen(os.dup(sys.stdout.fileno()), "wb", buffering=0) as channel:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        configure_logging(log_level)
        return uvloop.run(_serve(kind, orders, channel))


async def _serve(kind: ServiceKind, orders: RawIOBase, channel: BinaryIO) -> int:
    stops: asyncio.Queue[float] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stops.put_nowait, _DEFAULT_GRACE_S)
    ears = _Ears(loop, loop.create_future(), stops)
    orphaned_s = 0.0 if kind == "gateway" else _ORPHANED_WORKER_GRACE_S
    threading.Thread(target=ears.listen, args=(orders, orphaned_s), daemon=True).start()
    told = asyncio.create_task(stops.get())
    starting = asyncio.create_task(_start(kind, ears, channel))
    await asyncio.wait({starting, told}, return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        # Nobody is served yet, and a thread that loads a model cannot be told to end.
        os._exit(0)
    runner, reporter = starting.result()
    if runner.status.state != "ready":
        told.cancel()
        reporter.cancel()
        channel.write(encode_status(runner.status))
        await runner.stop(0.0)
        return 2
    failed = await _stop_when_told(runner, told, stops, channel)
    reporter.cancel()
    return 1 if failed else 0


async def _stop_when_told(
    runner: ServiceRunner,
    told: "asyncio.Task[float]",
    stops: "asyncio.Queue[float]",
    channel: BinaryIO,
) -> bool:
    """Serve until the first order to stop, and hurry from the second; returns whether it failed."""
    grace_s = await told
    failed = runner.status.state == "failed"
    if failed:
        channel.write(encode_status(runner.status))
    hurrying = asyncio.create_task(_hurry_when_told(runner, stops))
    await runner.stop(grace_s)
    hurrying.cancel()
    return failed


@dataclass(frozen=True, slots=True)
class _Ears:
    """What a process hears from its launcher.

    Attributes:
        loop: of the process.
        assignment: what it is.
        stops: orders to stop.
    """

    loop: asyncio.AbstractEventLoop
    assignment: "asyncio.Future[Assignment]"
    stops: "asyncio.Queue[float]"

    def listen(self, orders: RawIOBase, orphaned_s: float) -> None:
        """Pass on what is heard; the end of input is an order to stop within `orphaned_s`."""
        with suppress(RuntimeError):  # the loop has closed: it has stopped already
            if line := orders.readline():
                told = msgspec.json.decode(line, type=Assignment)
                self.loop.call_soon_threadsafe(self.assignment.set_result, told)
            while line := orders.readline():
                order = msgspec.json.decode(line, type=Order)
                self.loop.call_soon_threadsafe(self.stops.put_nowait, order.stop)
            self.loop.call_soon_threadsafe(self.stops.put_nowait, orphaned_s)


async def _start(
    kind: ServiceKind, ears: _Ears, channel: BinaryIO
) -> "tuple[ServiceRunner, asyncio.Task[None]]":
    """Start the service; returns it, ready or failed, and what reports on it."""
    await _load_code(kind, channel)
    told = await ears.assignment
    _be_called(told.name)
    service = create_service(kind, bytes(told.config))
    runner = ServiceRunner(service, lambda: ears.stops.put_nowait(0.0))
    reporter = asyncio.create_task(_report(runner, channel))
    await runner.start()
    return runner, reporter


def _be_called(name: str) -> None:
    """For whoever looks at the processes of the machine."""
    with suppress(OSError):  # not Linux
        _OWN_NAME.write_text(name)


async def _load_code(kind: ServiceKind, channel: BinaryIO) -> None:
    """Import a service's code, which takes seconds, and say so meanwhile."""
    loading = asyncio.create_task(asyncio.to_thread(load_code, kind))
    while not loading.done():
        channel.write(encode_status(ServiceStatus("starting", "loading code")))
        await asyncio.wait({loading}, timeout=SIGN_OF_LIFE_S)
    await loading


async def _hurry_when_told(runner: ServiceRunner, stops: "asyncio.Queue[float]") -> None:
    await runner.stop(await stops.get())


async def _report(runner: ServiceRunner, channel: BinaryIO) -> None:
    """Write the status whenever it has changed, and every second while the service starts."""
    latest, written_at = None, 0.0
    while True:
        now = time.monotonic()
        due = runner.status.state == "starting" and now - written_at >= SIGN_OF_LIFE_S
        if due or runner.status is not latest:
            latest, written_at = runner.status, now
            channel.write(encode_status(latest))
        await asyncio.sleep(_REPORT_INTERVAL_S)


if __name__ == "__main__":
    raise SystemExit(main())
