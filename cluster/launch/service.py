"""A service inside its process: builds it from its config, tells how far it is, stops it.

The same object runs under every launcher. It imports a service's code only when asked to run it,
so that a gateway process never loads torch.
"""

import asyncio
import importlib
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from twinflow.cluster.launch.base import ServiceKind, ServiceStatus
from twinflow.protos.errors import TwinflowError

Report = Callable[[str, int, int], None]


class Service(Protocol):
    """What a process runs."""

    async def start(self, report: Report) -> dict[str, str]:
        """Serve; returns addresses by name."""
        ...

    async def wait_failed(self) -> TwinflowError:
        """Wait until it cannot serve any more, which may be for ever; returns why it cannot."""
        ...

    async def drain(self, grace_s: float) -> None:
        """Take nothing new and wait for what runs, at most `grace_s`; may be cancelled."""
        ...

    async def stop(self, grace_s: float) -> None:
        """Drain, cut off what still runs and tell whoever waits for it, then end."""
        ...


class ServiceRunner:
    """Runs one service and keeps its status for whoever asks.

    Args:
        service: not started.
        on_failed: called if the service fails after it was ready.
    """

    def __init__(self, service: Service, on_failed: Callable[[], None] = lambda: None) -> None:
        self._service = service
        self._on_failed = on_failed
        self.status = ServiceStatus("starting", "starting")
        self._watching: asyncio.Task[None] | None = None
        self._draining: asyncio.Task[None] | None = None
        self._stopping: asyncio.Task[None] | None = None

    async def start(self) -> ServiceStatus:
        """Start the service; the result says `ready` or `failed`, nothing is raised."""
        try:
            await self._serve()
        except TwinflowError as error:
            self.status = ServiceStatus("failed", str(error), error_code=error.code)
        except Exception as error:  # noqa: BLE001 - the process edge: whoever launched it is told
            self.status = ServiceStatus("failed", f"{type(error).__name__}: {error}")
        return self.status

    async def stop(self, grace_s: float) -> None:
        """Let what runs finish for at most `grace_s`, then end the service.

        Called again it waits no longer for what runs. Every call returns when the service has
        ended.
        """
        if self._watching is not None:
            self._watching.cancel()
        if self._draining is None or self._stopping is None:
            self._draining = asyncio.create_task(self._drain(grace_s))
            self._stopping = asyncio.create_task(self._end(self._draining))
        else:
            self._draining.cancel()
        await asyncio.shield(self._stopping)

    async def _serve(self) -> None:
        endpoints = await self._service.start(self._report)
        self.status = ServiceStatus("ready", endpoints=tuple(endpoints.items()))
        self._watching = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        error = await self._service.wait_failed()
        self.status = ServiceStatus("failed", str(error), error_code=error.code)
        self._on_failed()

    async def _drain(self, grace_s: float) -> None:
        if self.status.state == "ready":
            await self._service.drain(grace_s)

    async def _end(self, draining: "asyncio.Task[None]") -> None:
        try:
            with suppress(asyncio.CancelledError):
                await draining
        finally:
            await self._service.stop(0.0)

    def _report(self, detail: str, done: int, total: int) -> None:
        self.status = ServiceStatus("starting", detail, done, total)


def load_code(kind: ServiceKind) -> None:
    """Import what a service of a kind consists of, torch with it if it is a worker."""
    if kind == "worker":
        importlib.import_module("twinflow.cluster.launch.worker_service")
    else:
        importlib.import_module("twinflow.cluster.gateway.server")


def create_service(kind: ServiceKind, config: bytes) -> Service:
    """The service of a kind, from its configuration."""
    if kind == "worker":
        from twinflow.cluster.launch.worker_service import create_worker  # noqa: PLC0415

        return create_worker(config)
    from twinflow.cluster.gateway.server import GatewayServer  # noqa: PLC0415

    return GatewayServer.from_json(config)
