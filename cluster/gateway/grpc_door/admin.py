"""The methods of `twinflow.v1.Admin`: read requests, put them on the desk, write answers.

Which worker does what is the controller's decision; this asks for it and says what it said.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any

from twinflow.cluster.dispatch.history import History, Story
from twinflow.cluster.dispatch.worker_client import WorkerClient
from twinflow.cluster.gateway.admin_desk import AdminDesk
from twinflow.cluster.gateway.auth import Authenticator
from twinflow.cluster.gateway.grpc_door.endpoint import Endpoint, Single
from twinflow.cluster.gateway.text_pipeline import Call
from twinflow.protos.errors import InvalidRequest
from twinflow.protos.twinflow.internal.v1 import gateway_pb2, worker_pb2
from twinflow.protos.twinflow.v1 import admin_pb2 as pb

SERVICE = pb.DESCRIPTOR.services_by_name["Admin"].full_name
_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
# The controller looks several times a second.
_LONGEST_WAIT_S = 15.0


@dataclass(frozen=True, slots=True)
class AdminOffice:
    """What operators are answered from.

    Attributes:
        authenticator: knows their tokens.
        desk: where the controller and operators meet.
        clients: of the workers that are used, by id.
        history: what became of the latest sequences; None while there are no workers.
    """

    authenticator: Authenticator
    desk: AdminDesk
    clients: Callable[[], Mapping[str, WorkerClient]]
    history: Callable[[], History | None]


class AdminService:
    """Answers operators.

    Args:
        office: where from.
    """

    def __init__(self, office: AdminOffice) -> None:
        self._office = office

    async def get_cluster(self, message: pb.GetClusterRequest, call: Call) -> pb.GetClusterResponse:
        """`GetCluster`."""
        return pb.GetClusterResponse(cluster=self._with_loads(self._office.desk.cluster))

    async def scale_pool(self, message: pb.ScalePoolRequest, call: Call) -> pb.ScalePoolResponse:
        """`ScalePool`."""
        _check_enum(message.pool, "pool")
        command = gateway_pb2.Command(scale=message)
        return pb.ScalePoolResponse(cluster=await self._ask(message, command, call))

    async def autoscale_pool(
        self, message: pb.AutoscalePoolRequest, call: Call
    ) -> pb.AutoscalePoolResponse:
        """`AutoscalePool`."""
        _check_enum(message.pool, "pool")
        command = gateway_pb2.Command(autoscale=message)
        return pb.AutoscalePoolResponse(cluster=await self._ask(message, command, call))

    async def flip_worker(self, message: pb.FlipWorkerRequest, call: Call) -> pb.FlipWorkerResponse:
        """`FlipWorker`."""
        _check_enum(message.role, "role")
        command = gateway_pb2.Command(flip=message)
        return pb.FlipWorkerResponse(cluster=await self._ask(message, command, call))

    async def drain_worker(
        self, message: pb.DrainWorkerRequest, call: Call
    ) -> pb.DrainWorkerResponse:
        """`DrainWorker`."""
        command = gateway_pb2.Command(drain=message)
        return pb.DrainWorkerResponse(cluster=await self._ask(message, command, call))

    async def restart_workers(
        self, message: pb.RestartWorkersRequest, call: Call
    ) -> pb.RestartWorkersResponse:
        """`RestartWorkers`."""
        command = gateway_pb2.Command(restart=message)
        return pb.RestartWorkersResponse(cluster=await self._ask(message, command, call))

    async def watch(self, message: pb.WatchRequest, call: Call) -> AsyncIterator[pb.WatchResponse]:
        """`Watch`."""
        after = message.after if message.HasField("after") else None
        events: Any = self._office.desk.events(after)
        async with aclosing(events):
            with suppress(TimeoutError):  # its end, and nobody's fault
                async with asyncio.timeout(call.deadline_s):
                    async for event in events:
                        yield pb.WatchResponse(event=event)

    async def explain(self, message: pb.ExplainRequest, call: Call) -> pb.ExplainResponse:
        """`Explain`."""
        history = self._office.history()
        stories = history.find(message.request_id) if history is not None else ()
        if history is None or not stories:
            raise InvalidRequest(
                "No request of this id is remembered; it may be too long ago.", "request_id"
            )
        return pb.ExplainResponse(sequences=[_story(story, history.now) for story in stories])

    def endpoints(self, receive_timeout_s: float) -> Mapping[str, Endpoint[Any, Any]]:
        """The methods of the service, by path."""
        single = Single(receive_timeout_s, admin=True)
        return {
            f"/{SERVICE}/GetCluster": single.unary(pb.GetClusterRequest, self.get_cluster),
            f"/{SERVICE}/ScalePool": single.unary(pb.ScalePoolRequest, self.scale_pool),
            f"/{SERVICE}/AutoscalePool": single.unary(pb.AutoscalePoolRequest, self.autoscale_pool),
            f"/{SERVICE}/FlipWorker": single.unary(pb.FlipWorkerRequest, self.flip_worker),
            f"/{SERVICE}/DrainWorker": single.unary(pb.DrainWorkerRequest, self.drain_worker),
            f"/{SERVICE}/RestartWorkers": single.unary(
                pb.RestartWorkersRequest, self.restart_workers
            ),
            f"/{SERVICE}/Watch": single.server_stream(pb.WatchRequest, self.watch),
            f"/{SERVICE}/Explain": single.unary(pb.ExplainRequest, self.explain),
        }

    async def _ask(self, message: Any, command: gateway_pb2.Command, call: Call) -> pb.Cluster:
        if not _ID.fullmatch(message.request_id):
            raise InvalidRequest(
                "A change needs a request_id of 1 to 128 letters, digits, dots, dashes and "
                "underscores.",
                "request_id",
            )
        deadline_s = min(call.deadline_s, _LONGEST_WAIT_S)
        cluster = await self._office.desk.ask(message.request_id, command, deadline_s)
        return self._with_loads(cluster)

    def _with_loads(self, cluster: pb.Cluster) -> pb.Cluster:
        clients = self._office.clients()
        for worker in cluster.workers:
            client = clients.get(worker.worker_id)
            if client is not None and client.up and client.where.epoch == worker.epoch:
                worker.load.CopyFrom(_load(client.stats))
                worker.pid = client.description.pid if client.description is not None else 0
        return cluster


def _load(stats: worker_pb2.WorkerStats) -> pb.WorkerLoad:
    return pb.WorkerLoad(
        running=stats.num_running,
        waiting=stats.num_waiting,
        receiving=stats.num_receiving,
        free_blocks=stats.free_blocks,
        total_blocks=stats.total_blocks,
        leased_blocks=stats.leased_blocks,
    )


def _check_enum(value: int, field: str) -> None:
    if value not in (pb.WORKER_ROLE_PREFILL, pb.WORKER_ROLE_DECODE, pb.WORKER_ROLE_MIXED):
        raise InvalidRequest(f"{field} must be prefill, decode or mixed.", field)


def _story(story: Story, now: float) -> pb.SequenceStory:
    told = pb.SequenceStory(
        sequence_id=story.sequence_id,
        prompt_tokens=story.prompt_tokens,
        output_tokens=story.output_tokens,
        state=story.state,
    )
    if story.first_token is not None:
        told.first_token_ms = _ms(story.first_token - story.began)
    for attempt in story.attempts:
        told.attempts.add(
            decode_worker=attempt.decode,
            decode_epoch=attempt.decode_epoch,
            prefill_worker=attempt.prefill,
            began_ms=_ms(attempt.began - story.began),
            ended_ms=_ms((attempt.ended or now) - story.began),
            tokens=attempt.tokens,
            outcome=attempt.outcome,
        )
    for phase in story.phases:
        told.phases.add(name=phase.name, seconds=phase.seconds)
    return told


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
