"""Workers of several ranks, all in this process, that hand KV over to each other."""

import asyncio
import gc
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from tests.support.workers import eventually, holdings, worker_config

from twinflow.workers.config import WorkerConfig
from twinflow.workers.handoff.links import PeerLinks
from twinflow.workers.ranks.address import new_address
from twinflow.workers.ranks.server import FollowerServer
from twinflow.workers.server import WorkerServer


@dataclass(frozen=True)
class RankedWorker:
    """Rank 0 and the others, in order."""

    leader: WorkerServer
    followers: Sequence[FollowerServer]

    def holdings(self) -> dict[str, int]:
        """Everything that requests and hand-offs hold on any rank; zero when it is idle."""
        found = holdings(self.leader) | {"answers": len(self.leader.parts.others)}
        for follower in self.followers:
            parts, rank = follower.parts, follower.config.rank
            found |= {
                f"hand-offs of rank {rank}": len(parts.handoffs),
                f"leases to receive of rank {rank}": parts.links.receiving.num_leased,
                f"leases to send of rank {rank}": parts.links.sending.num_leased,
                f"stores of rank {rank}": len(parts.links.stores) - parts.links.sending.num_idle,
            }
        return found

    def links(self) -> list[PeerLinks]:
        """Those of every rank."""
        return [self.leader.parts.links, *(one.parts.links for one in self.followers)]

    async def check_integrity(self) -> None:
        """Recount everything on every rank."""
        await self.leader.check_integrity()
        for follower in self.followers:
            follower.parts.links.check_integrity()


def pool_configs(model: Path, worker_id: str, size: int, **changes: Any) -> list[WorkerConfig]:
    """The configurations of the ranks of one worker; the first part of its id is its role."""
    address = new_address(worker_id)
    leader = worker_config(
        model, worker_id, tensor_parallel_size=size, leader_address=address, **changes
    )
    return [msgspec.structs.replace(leader, rank=rank) for rank in range(size)]


@asynccontextmanager
async def ranked(*workers: Sequence[WorkerConfig]) -> AsyncIterator[list[RankedWorker]]:
    """Started workers, given by the configurations of their ranks; stopped at the end."""
    problems: list[dict[str, Any]] = []
    events = asyncio.get_running_loop()
    events.set_exception_handler(lambda loop, context: problems.append(context))
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(_started(configs)) for configs in workers]
    gc.collect()
    assert not problems


@asynccontextmanager
async def _started(configs: Sequence[WorkerConfig]) -> AsyncIterator[RankedWorker]:
    leader = WorkerServer(configs[0])
    followers = [FollowerServer(config) for config in configs[1:]]
    try:
        await asyncio.gather(leader.start(), *(follower.start() for follower in followers))
        yield RankedWorker(leader, followers)
    finally:
        await asyncio.gather(leader.stop(0.0), *(follower.stop(0.0) for follower in followers))


async def all_idle(*workers: RankedWorker) -> None:
    """Wait until nothing is held on any rank, then recount everything."""
    for worker in workers:
        await eventually(
            lambda worker=worker: not any(worker.holdings().values()),  # type: ignore[misc]
            lambda worker=worker: worker.holdings(),  # type: ignore[misc]
        )
        await worker.check_integrity()
