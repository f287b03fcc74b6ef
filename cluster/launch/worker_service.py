"""A worker as a launchable service, or one rank of it."""

import asyncio

from twinflow.cluster.launch.service import Report, Service
from twinflow.protos.errors import RankLost, TwinflowError
from twinflow.workers.config import WorkerConfig
from twinflow.workers.ranks.server import FollowerServer
from twinflow.workers.server import WorkerServer


class WorkerProcess:
    """Adapts `WorkerServer` to `Service`."""

    def __init__(self, config: WorkerConfig) -> None:
        self._server = WorkerServer(config)

    async def start(self, report: Report) -> dict[str, str]:
        """Load the model and serve."""
        return {"grpc": await self._server.start(report)}

    async def wait_failed(self) -> TwinflowError:
        """Wait until the engine has failed for good, or another rank is lost."""
        return await self._server.parts.core.wait_death()

    async def drain(self, grace_s: float) -> None:
        """Wait for what runs here, and for blocks that another worker still reads."""
        await self._server.parts.core.drain(grace_s)

    async def stop(self, grace_s: float) -> None:
        """Drain and end."""
        await self._server.stop(grace_s)


class FollowerProcess:
    """Adapts `FollowerServer`, which has no address, to `Service`."""

    def __init__(self, config: WorkerConfig) -> None:
        self._server = FollowerServer(config)

    async def start(self, report: Report) -> dict[str, str]:
        """Load a share of the model and follow rank 0."""
        await self._server.start(report)
        return {}

    async def wait_failed(self) -> TwinflowError:
        """Wait until the worker is lost; one that ends in good order does not fail."""
        try:
            await self._server.wait_ended()
        except RankLost as error:
            return error
        never: asyncio.Future[TwinflowError] = asyncio.get_running_loop().create_future()
        return await never

    async def drain(self, grace_s: float) -> None:
        """Wait until rank 0 ends the worker."""
        await self._server.drain(grace_s)

    async def stop(self, grace_s: float) -> None:
        """End with rank 0, or without it."""
        await self._server.stop(grace_s)


def create_worker(config: bytes) -> Service:
    """The service of a rank of a worker, from its configuration."""
    worker = WorkerConfig.decode(config)
    return WorkerProcess(worker) if worker.rank == 0 else FollowerProcess(worker)
