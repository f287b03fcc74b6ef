"""The gRPC server of a gateway: what it serves, and its life.

    start ─► serving ─ drain ─► refusing new calls ─ stop ─► GOAWAY, the last calls end ─► closed

Nothing here knows what a request means.
"""

import asyncio

import grpc

from twinflow.cluster.gateway.backend import Backend
from twinflow.cluster.gateway.grpc_door.config import GrpcConfig
from twinflow.cluster.gateway.grpc_door.entrance import Entrance
from twinflow.cluster.gateway.grpc_door.health import HealthBoard, ReadinessFollower
from twinflow.protos.errors import ConfigError


class GrpcDoor:
    """A server for the endpoints of `entrance`; start it once, in the loop that made it.

    Args:
        entrance: serves the calls.
        board: the health service's statuses.
        backend: says whether it is ready.
        config: where to listen, and limits.
    """

    def __init__(
        self, entrance: Entrance, board: HealthBoard, backend: Backend, config: GrpcConfig
    ) -> None:
        self._entrance = entrance
        self._board = board
        self._config = config
        self._follower = ReadinessFollower(board, backend, config.readiness_interval_s)
        self._following: asyncio.Task[None] | None = None
        self._server = grpc.aio.server(options=tuple(config.core_options()))
        self._server.add_generic_rpc_handlers((entrance,))

    async def start(self) -> int:
        """Listen, and return the port.

        Raises:
            ConfigError: the address cannot be listened on.
        """
        port = self._bind()
        await self._follower.refresh()
        self._following = asyncio.create_task(self._follower.run(), name="grpc-readiness")
        await self._server.start()
        return port

    def _bind(self) -> int:
        credentials, address = self._config.credentials, self._config.address
        try:
            if credentials is None:
                return self._server.add_insecure_port(address)
            return self._server.add_secure_port(address, credentials)
        except RuntimeError:
            raise ConfigError(
                f"gRPC cannot listen on {address}: the port is taken or the address is not of "
                "this machine; choose another with --grpc-port or --host."
            ) from None

    def drain(self) -> None:
        """Refuse new calls with UNAVAILABLE and report NOT_SERVING; calls in progress go on."""
        self._entrance.drain()
        self._board.close()

    async def stop(self, grace_s: float) -> None:
        """Drain, give calls in progress `grace_s` to end, cut off those that have not, close."""
        self.drain()
        if self._following is not None:
            self._following.cancel()
            await asyncio.wait({self._following})
        self._board.end_watches()
        await self._server.stop(grace_s)

    @property
    def calls(self) -> int:
        """Calls in progress, health checks apart."""
        return self._entrance.calls

    def check_integrity(self) -> None:
        """Raise RuntimeError unless no call is in progress."""
        self._entrance.check_integrity()
