"""The process behind a `LocalHandle`: `python -m twinflow.cluster.launch.local_process KIND`."""

import asyncio
import signal
import sys
import threading
from typing import cast

import msgspec
import uvloop

from twinflow.cluster.launch.base import ServiceKind
from twinflow.cluster.launch.local import encode_status
from twinflow.cluster.launch.service import ServiceRunner

_REPORT_INTERVAL_S = 0.1
_DEFAULT_GRACE_S = 5.0


def main() -> int:
    """Run one service until told to stop, or until standard input ends."""
    kind = cast(ServiceKind, sys.argv[1])
    config = sys.stdin.buffer.readline()
    return uvloop.run(_serve(kind, config))


async def _serve(kind: ServiceKind, config: bytes) -> int:
    stop: asyncio.Future[float] = asyncio.get_running_loop().create_future()
    loop = asyncio.get_running_loop()
    threading.Thread(target=_listen, args=(loop, stop), daemon=True).start()
    loop.add_signal_handler(signal.SIGTERM, _resolve, stop, _DEFAULT_GRACE_S)
    runner = ServiceRunner(kind, config)
    reporter = asyncio.create_task(_report(runner))
    status = await runner.start()
    reporter.cancel()
    _write(encode_status(status))
    if status.state != "ready":
        await runner.stop(0.0)
        return 2
    await runner.stop(await stop)
    return 0


def _listen(loop: asyncio.AbstractEventLoop, stop: "asyncio.Future[float]") -> None:
    """Wait for the order to stop; the end of input is one."""
    line = sys.stdin.buffer.readline()
    grace = float(msgspec.json.decode(line)["stop"]) if line.strip() else 0.0
    loop.call_soon_threadsafe(_resolve, stop, grace)


def _resolve(stop: "asyncio.Future[float]", grace_s: float) -> None:
    if not stop.done():
        stop.set_result(grace_s)


async def _report(runner: ServiceRunner) -> None:
    """Write the status whenever it has changed."""
    latest = None
    while True:
        if runner.status is not latest:
            latest = runner.status
            _write(encode_status(latest))
        await asyncio.sleep(_REPORT_INTERVAL_S)


def _write(line: bytes) -> None:
    sys.stdout.buffer.write(line)
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    raise SystemExit(main())
