"""A gateway without doors: follows the controller's table, and passes operators' commands on."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from twinflow.protos.errors import TwinflowError
from twinflow.protos.twinflow.internal.v1 import gateway_pb2 as pb
from twinflow.protos.twinflow.v1 import admin_pb2
from twinflow.workers.convert import failure_of


@dataclass
class FakeGateway:
    """Implements `GatewayLink`.

    Attributes:
        silent: ids of workers that it does not hear of.
        problem: why it cannot work with the table, if it cannot.
        trouble: what an exchange raises, if it does.
        requests: what it was told, one exchange after the other.
        commands: changes that it has to pass on.
        outcomes: how they were answered, by request id.
        events: what it has heard of.
        loads: what workers have reported, by id.
        latencies: what it has counted.
        closed: how often it was closed.
    """

    silent: set[str] = field(default_factory=set)
    problem: TwinflowError | None = None
    trouble: TwinflowError | None = None
    requests: list[pb.SyncRequest] = field(default_factory=list)
    commands: list[pb.Command] = field(default_factory=list)
    outcomes: dict[str, pb.Outcome] = field(default_factory=dict)
    events: list[admin_pb2.Event] = field(default_factory=list)
    loads: dict[str, pb.Load] = field(default_factory=dict)
    latencies: pb.LatencyCounts = field(default_factory=lambda: pb.LatencyCounts(width=0.05))
    closed: int = 0

    def sync(self, request: pb.SyncRequest, timeout_s: float) -> pb.SyncResponse:
        if self.trouble is not None:
            raise self.trouble
        self.requests.append(request)
        self.events += request.events
        for outcome in request.outcomes:
            self.outcomes[outcome.request_id] = outcome
        response = pb.SyncResponse(
            contacts=self._contacts(request.duties),
            commands=[one for one in self.commands if _id_of(one) not in self.outcomes],
            latencies=self.latencies,
        )
        if self.problem is not None:
            response.problem.CopyFrom(failure_of(self.problem))
        return response

    def _contacts(self, duties: Iterable[pb.Duty]) -> list[pb.Contact]:
        return [
            pb.Contact(
                worker_id=duty.worker_id,
                epoch=duty.epoch,
                up=duty.worker_id not in self.silent,
                problem="no sign of life" if duty.worker_id in self.silent else "",
                load=self.loads.get(duty.worker_id),
            )
            for duty in duties
        ]

    def close(self) -> None:
        self.closed += 1

    @property
    def table(self) -> dict[str, pb.Duty]:
        """The latest table, by worker id."""
        return {duty.worker_id: duty for duty in self.requests[-1].duties}

    @property
    def told(self) -> list[str]:
        """The events in words."""
        return [event.message for event in self.events]


def _id_of(command: pb.Command) -> str:
    change = command.WhichOneof("change")
    request_id: str = getattr(command, change or "scale").request_id
    return request_id
