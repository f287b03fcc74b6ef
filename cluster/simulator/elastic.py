"""Pools that size themselves under virtual time: the real controller over simulated workers.

The controller, its decisions and its plans are those that serve, and they are told what a gateway
tells them. Workers take as long to start as they are said to, and end when what they have is over;
what they cost counts from the one to the other. No worker dies.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from twinflow.cluster.autoscale.policy import PoolPolicy, Tempo
from twinflow.cluster.controller.chronicle import Chronicle
from twinflow.cluster.controller.controller import Controller, ControllerConfig
from twinflow.cluster.controller.fleet import Sighting
from twinflow.cluster.controller.state import ClusterState, Desired, Worker
from twinflow.cluster.gateway.control import latencies_to_pb
from twinflow.cluster.simulator.fleet import Fleet
from twinflow.cluster.simulator.worker import SimulatedWorker
from twinflow.protos.twinflow.internal.v1 import gateway_pb2 as pb
from twinflow.workers.role import ROLE_NAMES, Role


@dataclass(frozen=True, slots=True, kw_only=True)
class Elasticity:
    """How pools size themselves.

    Attributes:
        policies: of the pools that do.
        places: workers that there is room for.
        start_s: from when a worker is started until it serves.
        tick_s: between two looks of the controller.
        tempo: how fast pools may change.
    """

    policies: Mapping[Role, PoolPolicy]
    places: int
    start_s: float = 15.0
    tick_s: float = 1.0
    tempo: Tempo = field(default_factory=Tempo)


@dataclass(slots=True)
class _Shift:
    """A worker's time: when it was started, for which role, and whether it is to end."""

    began: float
    role: Role
    stopping: bool = False


class Staff:
    """Implements `WorkerFleet` and `GatewayLink` over simulated workers.

    Args:
        fleet: with one gateway; its first workers are there from the beginning.
        elasticity: places and start-up time.

    Attributes:
        shifts: of the workers that are there.
        ended_s: devices' time of those that are not.
        history: times, and workers of each role that were there from then on.
    """

    def __init__(self, fleet: Fleet, elasticity: Elasticity) -> None:
        self._fleet = fleet
        self._elasticity = elasticity
        self.shifts = {one.worker_id: _Shift(0.0, one.role) for one in fleet.workers}
        self.ended_s = 0.0
        self.history: list[tuple[float, Mapping[Role, int]]] = []
        self._note()

    def room(self) -> Mapping[Role, int]:
        """See `WorkerFleet.room`."""
        left = self._elasticity.places - len(self.shifts)
        return {"prefill": left, "decode": left, "mixed": left}

    def start(self, worker_id: str, role: Role, epoch: int) -> None:
        """See `WorkerFleet.start`."""
        self.shifts[worker_id] = _Shift(self._fleet.now, role)
        self._note()

    def look(self, worker_id: str) -> Sighting:
        """See `WorkerFleet.look`."""
        shift, worker = self.shifts[worker_id], self._worker(worker_id)
        if worker is None:
            if self._fleet.now - shift.began < self._elasticity.start_s:
                return Sighting("starting")
            self._fleet.hire(worker_id, shift.role)
        elif shift.stopping and not len(worker.engine.queues):
            return Sighting("gone", detail="it was stopped")
        return Sighting("ready", worker_id)

    def stop(self, worker_id: str, grace_s: float) -> None:
        """See `WorkerFleet.stop`."""
        self.shifts[worker_id].stopping = True

    def kill(self, worker_id: str) -> None:
        """See `WorkerFleet.kill`."""
        shift = self.shifts.pop(worker_id)
        self.ended_s += self._fleet.now - shift.began
        if self._worker(worker_id) is not None:
            self._fleet.dismiss(worker_id)
        self._note()

    def sync(self, request: pb.SyncRequest, timeout_s: float) -> pb.SyncResponse:
        """See `GatewayLink.sync`."""
        contacts = []
        for duty in request.duties:
            worker = self._worker(duty.worker_id)
            if worker is not None:
                worker.assign(ROLE_NAMES[duty.role], leaving=duty.leaving)
                self.shifts[duty.worker_id].role = worker.role
                load = load_of(worker)
                contacts.append(
                    pb.Contact(worker_id=duty.worker_id, epoch=duty.epoch, up=True, load=load)
                )
        self._note()
        latencies = latencies_to_pb(self._fleet.measures)
        return pb.SyncResponse(contacts=contacts, latencies=latencies)

    def device_s(self, end: float) -> float:
        """Devices' time until `end`."""
        return self.ended_s + sum(end - shift.began for shift in self.shifts.values())

    def _worker(self, worker_id: str) -> SimulatedWorker | None:
        return next((one for one in self._fleet.workers if one.worker_id == worker_id), None)

    def _note(self) -> None:
        counts: dict[Role, int] = {}
        for shift in self.shifts.values():
            counts[shift.role] = counts.get(shift.role, 0) + 1
        if not self.history or self.history[-1][1] != counts:
            self.history.append((self._fleet.now, counts))


def load_of(worker: SimulatedWorker) -> pb.Load:
    """What a worker would report now."""
    now = worker.report()
    used = 1.0 - now.free_blocks / now.total_blocks
    return pb.Load(
        running=now.num_running,
        receiving=now.num_receiving,
        waiting=now.num_waiting,
        waiting_tokens=now.waiting_tokens,
        full=max(used, now.num_running / worker.engine.config.max_num_seqs),
        busy_seconds=now.busy_seconds,
        prompt_tokens=now.prompt_tokens,
    )


def make_elastic(fleet: Fleet, elasticity: Elasticity) -> tuple[Staff, Chronicle]:
    """Let a fleet that has not run yet size itself; returns who works, and what will be told."""
    staff = Staff(fleet, elasticity)
    workers = {
        one.worker_id: Worker(
            worker_id=one.worker_id,
            epoch=epoch,
            role=one.role,
            phase="serving",
            since=0.0,
            address=one.worker_id,
        )
        for epoch, one in enumerate(fleet.workers, 1)
    }
    sizes: dict[Role, int] = {}
    for one in workers.values():
        sizes[one.role] = sizes.get(one.role, 0) + 1
    chronicle = Chronicle(lambda: fleet.now)
    controller = Controller(
        ClusterState(workers=workers, next_epoch=len(workers) + 1),
        Desired(sizes=sizes, scaling=elasticity.policies),
        staff,
        staff,
        config=ControllerConfig(ranks={}, tempo=elasticity.tempo),
        chronicle=chronicle,
        clock=lambda: fleet.now,
    )
    controller.introduce()
    fleet.every(elasticity.tick_s, controller.tick)
    return staff, chronicle
