"""A worker as a launchable service."""

from collections.abc import Mapping

from twinflow.cluster.launch.service import Report
from twinflow.workers.config import WorkerConfig
from twinflow.workers.server import WorkerServer


class WorkerProcess:
    """Adapts `WorkerServer` to `Service`."""

    def __init__(self, config: bytes) -> None:
        self._server = WorkerServer(WorkerConfig.decode(config))

    async def start(self, report: Report) -> dict[str, str]:
        """Load the model and serve."""
        return {"grpc": await self._server.start(report)}

    async def introduce(self, workers: Mapping[str, str]) -> None:
        """Nothing to do: each request names the other worker that it needs."""

    async def drain(self, grace_s: float) -> None:
        """Wait for what runs here, and for blocks that another worker still reads."""
        await self._server.parts.core.drain(grace_s)

    async def stop(self, grace_s: float) -> None:
        """Drain and end."""
        await self._server.stop(grace_s)
