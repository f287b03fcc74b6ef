"""`twinflow.internal.v1.Gateway`: the controller tells who works, the gateway tells what it sees.

Every exchange carries the whole table, so that it does not matter which ones were lost. Nothing
here decides who works.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import structlog

from twinflow.cluster.dispatch.address import WorkerAddress
from twinflow.cluster.dispatch.roster import Duty
from twinflow.cluster.dispatch.worker_client import WorkerClient
from twinflow.cluster.gateway.admin_desk import AdminDesk
from twinflow.cluster.latency_counts import LatencyCounts
from twinflow.protos.errors import TwinflowError
from twinflow.protos.twinflow.internal.v1 import gateway_pb2 as pb
from twinflow.protos.twinflow.internal.v1 import gateway_pb2_grpc as rpc
from twinflow.workers.convert import failure_of
from twinflow.workers.role import ROLE_NAMES


class Follower(Protocol):
    """Uses the workers that it is told of."""

    @property
    def clients(self) -> Mapping[str, WorkerClient]:
        """Those it uses, by id."""
        ...

    async def follow(self, duties: Sequence[Duty], missing: tuple[str, ...]) -> None:
        """Use these workers from now on.

        Raises:
            TwinflowError: it cannot, and goes on as before.
        """
        ...


class Latencies(Protocol):
    """Latencies since the start; `GatewayMetrics` and a simulation have them."""

    @property
    def first_tokens(self) -> LatencyCounts:
        """Times to first tokens."""
        ...

    @property
    def gaps(self) -> LatencyCounts:
        """Times between tokens; classes as wide as those of the others."""
        ...


class ControlService(rpc.GatewayServicer):
    """Answers the controller.

    Args:
        follower: uses the workers.
        desk: keeps what operators ask for, and what the controller says.
        latencies: counts how fast tokens come.
    """

    def __init__(self, follower: Follower, desk: AdminDesk, latencies: Latencies) -> None:
        self._follower = follower
        self._desk = desk
        self._latencies = latencies
        self._in_force: tuple[int, tuple[str, ...]] | None = None
        self._problem: TwinflowError | None = None

    async def Sync(self, request: pb.SyncRequest, context: Any) -> pb.SyncResponse:
        """See the proto."""
        await self._follow(request)
        response = pb.SyncResponse(
            contacts=[_contact(client) for client in self._follower.clients.values()],
            commands=self._desk.hear(request),
            latencies=latencies_to_pb(self._latencies),
        )
        if self._problem is not None:
            response.problem.CopyFrom(failure_of(self._problem))
        return response

    async def _follow(self, request: pb.SyncRequest) -> None:
        table = request.table_version, tuple(request.missing)
        if table == self._in_force:
            return
        try:
            await self._follower.follow([_duty(duty) for duty in request.duties], table[1])
        except TwinflowError as error:
            structlog.get_logger().error("cannot work with these workers", problem=str(error))
            self._problem = error
        else:
            self._in_force, self._problem = table, None


def _duty(duty: pb.Duty) -> Duty:
    return Duty(
        WorkerAddress(duty.worker_id, duty.address, duty.epoch),
        ROLE_NAMES.get(duty.role),
        duty.leaving,
        duty.moving,
    )


def _contact(client: WorkerClient) -> pb.Contact:
    where = client.where
    return pb.Contact(
        worker_id=where.worker_id,
        epoch=where.epoch,
        up=client.up,
        problem=client.problem,
        load=_load(client),
    )


def _load(client: WorkerClient) -> pb.Load | None:
    stats, description = client.stats, client.description
    if not stats.total_blocks or description is None:
        return None  # it has not reported yet
    return pb.Load(
        running=stats.num_running,
        receiving=stats.num_receiving,
        waiting=stats.num_waiting,
        waiting_tokens=stats.waiting_tokens,
        full=max(
            1.0 - stats.free_blocks / stats.total_blocks,
            stats.num_running / max(description.max_num_seqs, 1),
        ),
        busy_seconds=stats.busy_seconds,
        prompt_tokens=stats.prompt_tokens,
    )


def latencies_to_pb(latencies: Latencies) -> pb.LatencyCounts:
    """Latencies as the controller is told them."""
    return pb.LatencyCounts(
        width=latencies.gaps.width,
        ttft=_trimmed(latencies.first_tokens),
        gaps=_trimmed(latencies.gaps),
    )


def _trimmed(counts: LatencyCounts) -> list[int]:
    found: list[int] = np.trim_zeros(counts.counts, "b").tolist()
    return found
