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
    """The serving status of the server as a whole, "", and of its services.

    As a whole it serves if everything behind it works; its services do as long as something does.

    Args:
        services: full names.
    """

    def __init__(self, services: Iterable[str]) -> None:
        self._services = frozenset(services) | {""}
        self._ready = self._serving = False
        self._closed = False
        self._changed = asyncio.Event()

    def set(self, *, ready: bool, serving: bool) -> None:
        """Tell watchers if a status is a new one; ignored once closed.

        Args:
            ready: everything works.
            serving: something does.
        """
        if not self._closed and (ready, serving) != (self._ready, self._serving):
            self._ready, self._serving = ready, serving
            self._wake()

    @property
    def ready(self) -> bool:
        """What was set last."""
        return self._ready

    def close(self) -> None:
        """NOT_SERVING for good."""
        self.set(ready=False, serving=False)
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
        serving = self._serving if service else self._ready
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
            alive = self._backend.alive()
            self._board.set(ready=alive and readiness.ready, serving=alive and readiness.serving)
        except Exception:  # noqa: BLE001 - whatever is wrong with the backend, it is not ready
            structlog.get_logger().exception("the backend does not say whether it is ready")
            self._board.set(ready=False, serving=False)

    async def run(self) -> None:
        """Ask for ever; often while the server starts."""
        started = False
        while True:
            await self.refresh()
            started = started or self._board.ready
            await asyncio.sleep(self._interval_s if started else min(_START_S, self._interval_s))
