"""A service inside its process: builds it from its config, tells how far it is, stops it.

The same object runs under every launcher. It imports a service's code only when asked to run it,
so that a gateway process never loads torch.
"""

from collections.abc import Callable
from typing import Protocol

from twinflow.cluster.launch.base import ServiceKind, ServiceStatus
from twinflow.protos.errors import TwinflowError

Report = Callable[[str, int, int], None]


class Service(Protocol):
    """What a process runs."""

    async def start(self, report: Report) -> dict[str, str]:
        """Serve; returns addresses by name."""
        ...

    async def stop(self, grace_s: float) -> None:
        """Finish what runs, then end."""
        ...


class ServiceRunner:
    """Runs one service and keeps its status for whoever asks."""

    def __init__(self, kind: ServiceKind, config: bytes) -> None:
        self._service = create_service(kind, config)
        self.status = ServiceStatus("starting", "starting")

    async def start(self) -> ServiceStatus:
        """Start the service; the result says `ready` or `failed`, nothing is raised."""
        try:
            endpoints = await self._service.start(self._report)
        except TwinflowError as error:
            self.status = ServiceStatus("failed", str(error), error_code=error.code)
        except Exception as error:  # noqa: BLE001 - the process edge: whoever launched it is told
            self.status = ServiceStatus("failed", f"{type(error).__name__}: {error}")
        else:
            self.status = ServiceStatus("ready", endpoints=tuple(endpoints.items()))
        return self.status

    async def stop(self, grace_s: float) -> None:
        """Stop the service."""
        await self._service.stop(grace_s)

    def _report(self, detail: str, done: int, total: int) -> None:
        self.status = ServiceStatus("starting", detail, done, total)


def create_service(kind: ServiceKind, config: bytes) -> Service:
    """The service of a kind, from its configuration."""
    if kind == "worker":
        from twinflow.cluster.launch.worker_service import WorkerProcess  # noqa: PLC0415

        return WorkerProcess(config)
    from twinflow.cluster.gateway.server import GatewayServer  # noqa: PLC0415

    return GatewayServer.from_json(config)
