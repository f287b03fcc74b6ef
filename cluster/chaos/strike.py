"""Does one fault to a deployment at its moment, and undoes what can be undone."""

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from twinflow.cluster.chaos import processes
from twinflow.cluster.chaos.deployed import Deployed
from twinflow.cluster.chaos.faults import Action, Fault, Target
from twinflow.cluster.chaos.network import OwnNetwork
from twinflow.cluster.client.admin import Admin, DrainName, PoolName
from twinflow.cluster.client.cluster_view import WorkerInfo
from twinflow.protos.errors import ConfigError, ServerError
from twinflow.workers.fault_points import FaultOrder, Point, give_order, struck, take_back

BLIP_S = 2.0
PARTITION_S = 15.0
SLOW_S = 10.0
_SLOW_SHARE = 0.1
# How long a delayed block is on the way; the other is beyond every time-out of a hand-off.
_DELAY_S = 3.0
_STALL_S = 12.0
_POLL_S = 0.01

_SIGNALS = {
    Action.KILL: signal.SIGKILL,
    Action.TERMINATE: signal.SIGTERM,
    Action.FREEZE: signal.SIGSTOP,
    Action.BLIP: signal.SIGSTOP,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Strike:
    """A fault that was done.

    Attributes:
        at: when; Unix time in seconds.
        broken_from: since when a worker was missing for certain; None if none was.
        undo_at: when it is to be undone; None if it is not.
        undo: does it.
    """

    at: float
    broken_from: float | None = None
    undo_at: float | None = None
    undo: Callable[[], None] = lambda: None


class Striker:
    """Does faults.

    Args:
        deployed: to what.
        admin: its operator's door.
        network: of its own; None if there is none.
        clock: Unix time in seconds.
    """

    def __init__(
        self,
        deployed: Deployed,
        admin: Admin,
        network: OwnNetwork | None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._deployed = deployed
        self._admin = admin
        self._network = network
        self._clock = clock

    def forgive(self) -> None:
        """Ask for the pools as they are: workers that died young do not count any more.

        A pool whose workers die again and again is given up, and that is what is done here.
        """
        for pool in self._admin.cluster().pools:
            self._admin.pools.scale(cast(PoolName, pool.role), pool.size)

    def victim(self, fault: Fault) -> WorkerInfo:
        """The worker whose requests are watched, which is hit unless something else is."""
        found = [w for w in self._admin.workers.list() if w.role == fault.trigger.value]
        return sorted(found, key=lambda worker: worker.worker_id)[fault.victim % len(found)]

    def strike(self, fault: Fault, victim: str, timeout_s: float) -> Strike | None:
        """Wait for the moment and do it; None if the moment does not come."""
        orders, point = self._deployed.orders, fault.point
        give_order(orders, victim, point, self._order(fault, victim))
        broken_from = self._bring_about(fault, victim)
        end = self._clock() + timeout_s
        while (done := struck(orders, victim, point)) is None:
            if self._clock() > end:
                take_back(orders, victim, point)
                return None
            time.sleep(_POLL_S)
        return self._follow_up(fault, victim, done.at, broken_from)

    def _order(self, fault: Fault, victim: str) -> FaultOrder:
        number = _SIGNALS.get(fault.action, 0)
        return FaultOrder(
            signal=int(number),
            pid=self._pid(fault, victim) if number else 0,
            hold_s={Action.DELAY: _DELAY_S, Action.STALL: _STALL_S}.get(fault.action, 0.0),
            corrupt=fault.action is Action.CORRUPT,
            cut=fault.action is Action.CUT,
            skip=fault.skip,
        )

    def _pid(self, fault: Fault, victim: str) -> int:
        """The process to be hit; 0 for the victim itself."""
        pids = self._deployed.pids()
        match fault.target:
            case Target.GATEWAY:
                return pids["gateway-0"]
            case Target.CONTROLLER:
                return self._deployed.pid
            case Target.RANK:
                return pids[f"{victim}-rank1"]
            case _:
                return 0

    def _bring_about(self, fault: Fault, victim: str) -> float | None:
        """Some moments do not come by themselves."""
        if fault.point is Point.START_UP:
            processes.send(self._deployed.pids()[victim], signal.SIGKILL)
            return self._clock()
        if fault.point is Point.DRAINING:
            drain: DrainName = "migrate" if fault.migrate else "finish"
            self._admin.workers.drain(victim, drain=drain, replace=True, wait=False)
        return None

    def _follow_up(self, fault: Fault, victim: str, at: float, broken: float | None) -> Strike:
        if fault.action is Action.BLIP:
            pid = self._pid(fault, victim) or self._deployed.pids()[victim]
            return Strike(
                at=at,
                broken_from=broken,
                undo_at=at + BLIP_S,
                undo=lambda: processes.send(pid, signal.SIGCONT),
            )
        if fault.action is Action.SLOW:
            throttle = processes.Throttle(self._deployed.pids()[victim], _SLOW_SHARE)
            return Strike(at=at, broken_from=broken, undo_at=at + SLOW_S, undo=throttle.release)
        if fault.target is Target.SESSION:
            return self._cut(victim, one_way=fault.action is Action.ONE_WAY)
        sudden = fault.action in (Action.KILL, Action.FREEZE) and fault.loses_a_worker
        # One that leaves has its successor already.
        if broken is None and sudden and fault.point is not Point.DRAINING:
            broken = at
        return Strike(at=at, broken_from=broken)

    def _cut(self, victim: str, *, one_way: bool) -> Strike:
        if self._network is None:
            raise ConfigError("sessions can be cut in a network of one's own only")
        ports = processes.listening_ports(self._deployed.pids()[victim])
        if not ports:
            raise ServerError(f"{victim} listens nowhere")
        for port in ports:
            self._network.cut(port, one_way=one_way)
        at = self._clock()
        return Strike(at=at, broken_from=at, undo_at=at + PARTITION_S, undo=self._network.heal)
