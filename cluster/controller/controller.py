"""The controller's loop: look, listen, decide, act; once every fraction of a second.

    fleet ── sightings ─┐
                        ├─► events ─ apply ─► state ─ plan ─► one action ─► fleet or table
    gateway ─ contacts ─┘                       ▲
            ─ commands ─── wish ─► desired ─────┘

It runs in one thread and never waits for more than a call: what takes long is a phase of a worker
and is looked at again. Requests and tokens do not pass here: while it stands still, everything that
serves goes on. Decisions are in `plan`; this carries them out and tells of them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import structlog

from twinflow.cluster.autoscale.policy import Tempo
from twinflow.cluster.controller import events
from twinflow.cluster.controller.autoscaler import Autoscaler
from twinflow.cluster.controller.chronicle import Chronicle
from twinflow.cluster.controller.commands import Resize, describe, wish
from twinflow.cluster.controller.contacts import ContactLimits, Contacts
from twinflow.cluster.controller.fleet import GatewayLink, WorkerFleet
from twinflow.cluster.controller.plan import (
    GIVE_UP_AFTER,
    Action,
    Drain,
    Fence,
    Flip,
    Patience,
    Start,
    Stop,
    is_settled,
    plan,
)
from twinflow.cluster.controller.state import ROLES, ClusterState, Desired, Worker
from twinflow.cluster.controller.wire import (
    cluster_of,
    command_of,
    duties_of,
    missing_of,
    request_id_of,
)
from twinflow.protos.errors import ServerError, TwinflowError, from_code
from twinflow.protos.twinflow.internal.v1 import gateway_pb2
from twinflow.protos.twinflow.v1 import admin_pb2 as pb
from twinflow.workers.role import Role

# An exchange takes milliseconds; in the first one a gateway asks every worker who it is.
_SYNC_S = 2.0
_FIRST_SYNC_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ControllerConfig:
    """How patient the controller is, and with what.

    Attributes:
        patience: limits of a worker's phases.
        contact: limits of silence.
        tempo: how fast pools that size themselves may change.
        ranks: of a worker of each role, for those who ask.
    """

    patience: Patience = field(default_factory=Patience)
    contact: ContactLimits = field(default_factory=ContactLimits)
    tempo: Tempo = field(default_factory=Tempo)
    ranks: Mapping[Role, int]


class Controller:
    """Keeps a cluster as it is wanted.

    Args:
        state: the cluster to begin with.
        desired: what is wanted to begin with.
        fleet: workers' processes.
        gateway: follows the table and brings commands.
        config: limits.
        chronicle: hears what happens.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        state: ClusterState,
        desired: Desired,
        fleet: WorkerFleet,
        gateway: GatewayLink,
        *,
        config: ControllerConfig,
        chronicle: Chronicle,
        clock: Callable[[], float],
    ) -> None:
        self._state = state
        self._desired = desired
        self._fleet = fleet
        self._gateway = gateway
        self._config = config
        self._chronicle = chronicle
        self._clock = clock
        self._contacts = Contacts(config.contact)
        self._autoscaler = Autoscaler(config.tempo)
        self._table: tuple[int, list[gateway_pb2.Duty]] = (0, [])
        self._asked: list[str] = []
        self._told = 0
        self._settled = desired.version
        self._at_rest = True
        self._gave_up: set[Role] = set()
        self._gateway_problem = ""

    @property
    def state(self) -> ClusterState:
        """The cluster now."""
        return self._state

    @property
    def desired(self) -> Desired:
        """What is wanted."""
        return self._desired

    @property
    def at_rest(self) -> bool:
        """Whether everything is as wanted."""
        return self._at_rest

    def tick(self) -> None:
        """Look, listen, decide, act.

        Raises:
            ServerError: no worker is left, and none can be started.
        """
        self._happen(events.Ticked(self._clock(), self._fleet.room()))
        self._look()
        self._exchange()
        self._autoscale()
        action = plan(self._state, self._desired, self._config.patience)
        if action is not None:
            self._carry_out(action)
        self._tell_of_results()

    def introduce(self) -> None:
        """Tell the gateway for the first time who works.

        Raises:
            TwinflowError: it cannot work with them, or does not answer.
        """
        self._sync(_FIRST_SYNC_S)

    def _look(self) -> None:
        for worker in self._state.of_phase("starting", "serving", "leaving", "stopping"):
            name, epoch = worker.worker_id, worker.epoch
            seen = self._fleet.look(name)
            if seen.state == "gone" and worker.phase == "stopping":
                self._fleet.kill(name)
                self._happen(events.Ended(name, epoch))
                self._note(pb.EVENT_KIND_ENDED, f"{name} has ended", worker)
            elif seen.state == "gone":
                self._lose(worker, seen.detail)
            elif worker.phase == "starting" and seen.state == "ready":
                self._happen(events.Ready(name, epoch, seen.address))
                self._note(pb.EVENT_KIND_READY, f"{name} serves as {worker.role} worker", worker)
            elif worker.phase == "starting" and seen.detail != worker.detail:
                self._happen(events.Progressed(name, epoch, seen.detail))

    def _exchange(self) -> None:
        """Talk to the gateway; if it does not answer, nothing is concluded from that."""
        began = self._clock()
        try:
            self._sync(_SYNC_S)
            self._gateway_problem = ""
        except TwinflowError as error:
            if str(error) != self._gateway_problem:
                self._gateway_problem = str(error)
                structlog.get_logger().warning("the gateway does not follow", problem=str(error))
            self._contacts.hold(self._clock() - began)

    def _sync(self, timeout_s: float) -> None:
        version, duties = self._current_table()
        serving = self._state.of_phase("serving", "leaving", "stopping")
        self._contacts.keep({worker.epoch for worker in serving}, self._clock())
        cluster = cluster_of(self._state, self._desired, self._config.ranks)
        cluster.settled_version = self._settled
        cluster.last_event = self._chronicle.last
        self._autoscaler.describe(cluster)
        response = self._gateway.sync(
            gateway_pb2.SyncRequest(
                table_version=version,
                duties=duties,
                missing=missing_of(self._state, self._desired),
                cluster=cluster,
                events=self._chronicle.since(self._told),
                outcomes=self._chronicle.outcomes(self._asked),
            ),
            timeout_s,
        )
        self._told = cluster.last_event
        self._hear(response)

    def _current_table(self) -> tuple[int, list[gateway_pb2.Duty]]:
        version, duties = self._table
        current = duties_of(self._state)
        if current != duties:
            self._table = (version + 1, current)
        return self._table

    def _hear(self, response: gateway_pb2.SyncResponse) -> None:
        if response.HasField("problem"):
            raise from_code(response.problem.code, response.problem.message)
        now = self._clock()
        for contact in response.contacts:
            if contact.up:
                self._contacts.heard(contact.epoch, now)
            else:
                self._contacts.silent(contact.epoch, contact.problem)
        # They were in the table that the gateway has just taken.
        for worker in self._state.of_phase("leaving"):
            self._happen(events.Released(worker.worker_id, worker.epoch))
        self._autoscaler.hear(self._state, response)
        self._lose_the_silent(now)
        self._asked = [self._take(command) for command in response.commands]

    def _lose_the_silent(self, now: float) -> None:
        # One that stops ends its sessions first, and has a little to do behind that.
        ending = self._contacts.lost(now - self._config.patience.stop_s)
        silent = self._contacts.lost(now)
        for worker in self._state.of_phase("serving", "leaving", "stopping"):
            lost = ending if worker.phase == "stopping" else silent
            if worker.epoch in lost:
                self._lose(worker, lost[worker.epoch])

    def _take(self, message: gateway_pb2.Command) -> str:
        """Accept or refuse a change, once; returns its request id."""
        request_id = request_id_of(message)
        if self._chronicle.answered(request_id):
            return request_id
        try:
            command = command_of(message)
            self._desired = wish(self._state, self._desired, command)
        except TwinflowError as error:
            self._chronicle.answer(request_id, error)
            return request_id
        self._happen(events.Asked())
        self._gave_up.clear()
        self._note(pb.EVENT_KIND_ACCEPTED, f"wanted: {describe(command)}")
        self._chronicle.answer(request_id)
        return request_id

    def _autoscale(self) -> None:
        """Let pools that size themselves decide; what they want is carried out like a command."""
        decision = self._autoscaler.decide(self._state, self._desired)
        sizes = {role: one.after for role, one in decision.items() if one.after != one.before}
        if sizes:
            self._desired = wish(self._state, self._desired, Resize(sizes))
        for message in self._autoscaler.news(decision):
            self._note(pb.EVENT_KIND_AUTOSCALED, message)

    def _carry_out(self, action: Action) -> None:
        match action:
            case Start(worker_id, role):
                self._start(worker_id, role)
            case Flip(worker_id, epoch, role):
                self._happen(events.Flipped(worker_id, epoch, role))
                worker = self._state.workers[worker_id]
                self._note(pb.EVENT_KIND_FLIPPED, f"{worker_id} is a {role} worker now", worker)
            case Drain(worker_id, epoch, mode):
                worker = self._state.workers[worker_id]
                self._happen(events.DrainBegun(worker_id, epoch, mode))
                what = "move" if mode == "migrate" else "finish"
                text = f"{worker_id} leaves, and its requests {what}"
                self._note(pb.EVENT_KIND_DRAINING, text, worker)
            case Stop(worker_id, epoch, grace_s):
                worker = self._state.workers[worker_id]
                self._fleet.stop(worker_id, grace_s)
                self._happen(events.StopOrdered(worker_id, epoch))
                self._note(pb.EVENT_KIND_STOPPING, f"{worker_id} finishes and ends", worker)
            case Fence(worker_id, epoch, why):
                worker = self._state.workers[worker_id]
                self._lose(worker, why)
                self._fleet.kill(worker_id)
                self._happen(events.Ended(worker_id, epoch))

    def _start(self, worker_id: str, role: Role) -> None:
        try:
            self._fleet.start(worker_id, role, self._state.next_epoch)
        except TwinflowError as error:
            self._happen(events.StartRefused(role, str(error)))
            return
        self._happen(events.Started(worker_id, role))
        worker = self._state.workers[worker_id]
        self._note(pb.EVENT_KIND_STARTED, f"{worker_id} starts", worker)

    def _lose(self, worker: Worker, why: str) -> None:
        if worker.phase != "lost":
            self._happen(events.Died(worker.worker_id, worker.epoch, why))
            self._note(pb.EVENT_KIND_LOST, f"{worker.worker_id} is lost: {why}", worker)

    def _tell_of_results(self) -> None:
        """Say what has come of it all.

        Raises:
            ServerError: no worker is left, and none can be started.
        """
        for role in ROLES:
            failures = self._state.failures_of(role)
            if failures.count >= GIVE_UP_AFTER and role not in self._gave_up:
                self._gave_up.add(role)
                text = f"{role} workers do not start, given up: {failures.why}"
                self._note(pb.EVENT_KIND_GAVE_UP, text)
        if self._gave_up and not self._state.workers:
            raise ServerError(self._state.failures_of(next(iter(self._gave_up))).why)
        settled = is_settled(self._state, self._desired)
        if settled and not (self._at_rest and self._settled == self._desired.version):
            self._settled = self._desired.version
            self._note(pb.EVENT_KIND_SETTLED, "everything is as wanted")
        self._at_rest = settled

    def _happen(self, event: events.Event) -> None:
        self._state = events.apply(self._state, event)

    def _note(self, kind: pb.EventKind, message: str, worker: Worker | None = None) -> None:
        self._chronicle.note(kind, message, self._desired.version, worker)
