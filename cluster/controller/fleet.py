"""What the controller acts through: processes of workers, and gateways. Protocols only.

Every method returns soon, or raises: what takes long goes on behind them and is looked at again.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from twinflow.protos.twinflow.internal.v1 import gateway_pb2
from twinflow.workers.role import Role


@dataclass(frozen=True, slots=True)
class Sighting:
    """How far a worker's processes are.

    Attributes:
        state: `starting`, `ready`, or `gone` for good, in good order or not.
        address: of its gRPC server, once it is ready.
        detail: what it is doing, or why it is gone.
    """

    state: Literal["starting", "ready", "gone"]
    address: str = ""
    detail: str = ""


class WorkerFleet(Protocol):
    """Starts and ends workers, all ranks of one together."""

    def room(self) -> Mapping[Role, int]:
        """How many more workers of a role could be started; left out where there is no bound."""
        ...

    def start(self, worker_id: str, role: Role, epoch: int) -> None:
        """Begin to start a worker.

        Raises:
            TwinflowError: it cannot be started here.
        """
        ...

    def look(self, worker_id: str) -> Sighting:
        """How far it is now."""
        ...

    def stop(self, worker_id: str, grace_s: float) -> None:
        """Order it to finish what it has, blocks that others read included, and to end."""
        ...

    def kill(self, worker_id: str) -> None:
        """End what is left of its processes, frozen ones too, and forget it."""
        ...


class GatewayLink(Protocol):
    """A way to a gateway."""

    def sync(self, request: gateway_pb2.SyncRequest, timeout_s: float) -> gateway_pb2.SyncResponse:
        """One exchange.

        Raises:
            TwinflowError: the gateway did not answer in time.
        """
        ...
