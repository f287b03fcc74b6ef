"""The process behind a `LocalHandle`: `... local_process KIND LOG_LEVEL`.

Standard output is the channel to the launcher. The process keeps it for itself and lets everything
that libraries print go to standard error.
"""

import asyncio
import os
import signal
import sys
import threading
from contextlib import suppress
from io import RawIOBase
from typing import BinaryIO, cast

import msgspec
import uvloop

from twinflow.cluster.launch.base import ServiceKind
from twinflow.cluster.launch.local import Order, encode_status
from twinflow.cluster.launch.logs import configure_logging
from twinflow.cluster.launch.service import ServiceRunner, create_service

_REPORT_INTERVAL_S = 0.1
_DEFAULT_GRACE_S = 5.0


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
    config = orders.readline()
    stops: asyncio.Queue[float] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stops.put_nowait, _DEFAULT_GRACE_S)
    runner = ServiceRunner(create_service(kind, config), lambda: stops.put_nowait(0.0))
    threading.Thread(target=_listen, args=(orders, loop, stops), daemon=True).start()
    reporter = asyncio.create_task(_report(runner, channel))
    status = await runner.start()
    if status.state != "ready":
        reporter.cancel()
        channel.write(encode_status(status))
        await runner.stop(0.0)
        return 2
    grace_s = await stops.get()
    failed = runner.status.state == "failed"
    if failed:
        channel.write(encode_status(runner.status))
    hurrying = asyncio.create_task(_stop_when_told(runner, stops))
    await runner.stop(grace_s)
    hurrying.cancel()
    reporter.cancel()
    return 1 if failed else 0


def _listen(
    orders: RawIOBase,
    loop: asyncio.AbstractEventLoop,
    stops: "asyncio.Queue[float]",
) -> None:
    """Pass orders on; the end of input is an order to stop."""
    with suppress(RuntimeError):  # the loop has closed: it has stopped already
        while line := orders.readline():
            order = msgspec.json.decode(line, type=Order)
            loop.call_soon_threadsafe(stops.put_nowait, order.stop)
        loop.call_soon_threadsafe(stops.put_nowait, 0.0)


async def _stop_when_told(runner: ServiceRunner, stops: "asyncio.Queue[float]") -> None:
    await runner.stop(await stops.get())


async def _report(runner: ServiceRunner, channel: BinaryIO) -> None:
    """Write the status whenever it has changed."""
    latest = None
    while True:
        if runner.status is not latest:
            latest = runner.status
            channel.write(encode_status(latest))
        await asyncio.sleep(_REPORT_INTERVAL_S)


if __name__ == "__main__":
    raise SystemExit(main())
