"""`grpc.health.v1.Health`, with what the backend proved as its source.

The messages are the library's; its servicer is not used, because its `Watch` streams never end
and would hold a graceful stop for all of its grace.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any

import structlog
from grpc_health.v1 import health_pb2 as pb

from twinflow.cluster.gateway.backend import Backend
from twinflow.cluster.gateway.grpc_door.endpoint import Endpoint, Single
from twinflow.cluster.gateway.text_pipeline import Call
from twinflow.protos.errors import ClientError, Unavailable

SERVICE = "grpc.health.v1.Health"
_START_S = 1.0


class UnknownService(ClientError):
    """A health check names a service that this server does not have."""

    code = "unknown_service"
    http_status = 404
    grpc_status = "NOT_FOUND"


class HealthBoard:
    """The serving status of the server and of its services, which share their fate.

    Args:
        services: full names; the server as a whole, "", is always among them.
    """

    def __init__(self, services: Iterable[str]) -> None:
        self._services = frozenset(services) | {""}
        self._serving = False
        self._closed = False
        self._changed = asyncio.Event()

    def set(self, serving: bool) -> None:
        """Tell watchers if the status is a new one; ignored once closed."""
        if not self._closed and serving != self._serving:
            self._serving = serving
            self._wake()

    @property
    def serving(self) -> bool:
        """What was set last."""
        return self._serving

    def close(self) -> None:
        """NOT_SERVING for good."""
        self.set(False)
        self._closed = True

    def end_watches(self) -> None:
        """Close, and end every `Watch`."""
        self.close()
        self._services = frozenset()
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _status(self, service: str) -> Any:
        if service not in self._services:
            return pb.HealthCheckResponse.SERVICE_UNKNOWN
        serving = self._serving
        return pb.HealthCheckResponse.SERVING if serving else pb.HealthCheckResponse.NOT_SERVING

    async def check(self, request: Any, call: Call) -> Any:
        """`Check`: the status now."""
        if request.service not in self._services:
            raise UnknownService("The server has no such service.", "service")
        return pb.HealthCheckResponse(status=self._status(request.service))

    async def watch(self, request: Any, call: Call) -> AsyncIterator[Any]:
        """`Watch`: the status now and whenever it changes; unknown services may appear later."""
        last = None
        while self._services:
            changed = self._changed
            status = self._status(request.service)
            if status != last:
                yield pb.HealthCheckResponse(status=status)
                last = status
                continue  # it may have changed while it was sent
            await changed.wait()
        raise Unavailable("The server has shut down.")

    def endpoints(self, single: Single) -> Mapping[str, Endpoint[Any, Any]]:
        """The methods of the service, by path."""
        request = pb.HealthCheckRequest
        return {
            f"/{SERVICE}/Check": single.unary(request, self.check, health=True),
            f"/{SERVICE}/Watch": single.server_stream(request, self.watch, health=True),
        }


class ReadinessFollower:
    """Keeps a board at what the backend says.

    Args:
        board: whom to tell.
        backend: whom to ask; no answer in time means not serving.
        interval_s: how long an answer holds, and how long the next may take.
    """

    def __init__(self, board: HealthBoard, backend: Backend, interval_s: float) -> None:
        self._board = board
        self._backend = backend
        self._interval_s = interval_s

    async def refresh(self) -> None:
        """Ask once."""
        try:
            async with asyncio.timeout(self._interval_s):
                readiness = await self._backend.readiness()
            self._board.set(readiness.ready and self._backend.alive())
        except Exception:  # noqa: BLE001 - whatever is wrong with the backend, it is not ready
            structlog.get_logger().exception("the backend does not say whether it is ready")
            self._board.set(False)

    async def run(self) -> None:
        """Ask for ever; often while the server starts."""
        served = False
        while True:
            await self.refresh()
            served = served or self._board.serving
            await asyncio.sleep(self._interval_s if served else min(_START_S, self._interval_s))
