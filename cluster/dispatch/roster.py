"""The workers that a gateway uses at the moment, and what for.

Somebody else decides who they are (the controller, over `cluster.gateway.control`) and tells all of
them at once; the roster keeps a client for each, and starts and ends clients as workers come and
go. It routes nothing.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from twinflow.cluster.dispatch.address import WorkerAddress
from twinflow.cluster.dispatch.config import DispatchConfig
from twinflow.cluster.dispatch.worker_client import StatsListener, WorkerClient
from twinflow.cluster.router.snapshot import WorkerView
from twinflow.protos.twinflow.internal.v1 import worker_pb2 as pb
from twinflow.workers.role import Role


@dataclass(frozen=True, slots=True)
class Duty:
    """What a worker is used for.

    Attributes:
        where: the worker.
        role: which requests it gets; None for those it was started for.
        leaving: it gets none any more.
        moving: and those that it has go on elsewhere.
    """

    where: WorkerAddress
    role: Role | None = None
    leaving: bool = False
    moving: bool = False


class Roster:
    """A client for each worker.

    Args:
        token: the deployment's secret.
        config: time limits.
        reference: what workers have to agree with; None for with nothing.
        on_stats: hears every load report.
        on_change: called when a worker comes up, goes down or is gone.
        on_removed: called with the id of a worker that is used no longer.

    Attributes:
        clients: by worker id; always the same mapping.
        missing: what there should be besides, in words.
    """

    def __init__(
        self,
        token: str,
        config: DispatchConfig,
        reference: pb.DescribeResponse | None = None,
        *,
        on_stats: StatsListener,
        on_change: Callable[[WorkerClient], None],
        on_removed: Callable[[str], None],
    ) -> None:
        self._token = token
        self._config = config
        self._reference = reference
        self._on_stats = on_stats
        self._on_change = on_change
        self._on_removed = on_removed
        self._clients: dict[str, WorkerClient] = {}
        self._duties: dict[str, Duty] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self.missing: tuple[str, ...] = ()

    @property
    def clients(self) -> Mapping[str, WorkerClient]:
        """By worker id; a live view."""
        return self._clients

    def follow(self, duties: Sequence[Duty]) -> None:
        """Use these workers from now on, and no others.

        A worker in another life is another worker. Requests of one that is used no longer are
        told that it is lost.
        """
        wanted = {duty.where.worker_id: duty for duty in duties}
        for worker_id, client in list(self._clients.items()):
            if worker_id not in wanted or wanted[worker_id].where != client.where:
                self._remove(client)
        for worker_id, duty in wanted.items():
            if worker_id not in self._clients:
                self._add(duty.where)
            before = self._duties.get(worker_id)
            if duty != before:
                self._duties[worker_id] = duty
                client = self._clients[worker_id]
                client.assign(duty.role, leaving=duty.leaving)
                if duty.moving:
                    client.move_requests()

    def views(self) -> list[WorkerView]:
        """All workers at this moment, for routing."""
        return [client.view() for client in self._clients.values()]

    def standing(self) -> tuple[object, ...]:
        """Which workers there are and which are missing, not how they are: equal while so."""
        views = tuple((v.worker_id, v.epoch, v.role, v.up, v.draining) for v in self.views())
        return (views, self.missing)

    async def close(self) -> None:
        """End all sessions."""
        await asyncio.gather(*(client.close() for client in self._clients.values()), *self._closing)

    def _add(self, where: WorkerAddress) -> None:
        client = WorkerClient(
            where,
            self._token,
            on_stats=self._on_stats,
            on_change=self._on_change,
            config=self._config,
            reference=self._reference,
        )
        self._clients[where.worker_id] = client
        client.start()

    def _remove(self, client: WorkerClient) -> None:
        worker_id = client.where.worker_id
        del self._clients[worker_id]
        self._duties.pop(worker_id, None)
        closing = asyncio.create_task(client.close())
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)
        self._on_removed(worker_id)
