"""The workers of a deployment as the controller acts on them: `WorkerFleet` over any launcher.

A worker is its ranks, which start, stop and die together. The fleet keeps count of who is where; on
a CPU there is no bound but memory, which a worker checks itself when it starts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from twinflow.cluster.controller.fleet import Sighting
from twinflow.cluster.controller.state import ROLES
from twinflow.cluster.launch.base import Launcher, ServiceHandle, ServiceStatus
from twinflow.cluster.launch.deployment import WorkerPlan, WorkerPlanner
from twinflow.cluster.launch.places import NoRoom, Place
from twinflow.protos.errors import RankLost
from twinflow.workers.role import Role

# How long the processes of a worker that is stopping are waited for in a look at it.
_LOOK_S = 0.0


@dataclass(slots=True)
class _Worker:
    """A started worker.

    Attributes:
        ranks: a process each, rank 0 first.
        place: where they are.
        stopping: it was ordered to stop.
    """

    ranks: Sequence[ServiceHandle]
    place: Place
    stopping: bool = False


class LaunchedFleet:
    """Workers that a launcher starts.

    Args:
        launcher: open.
        planner: says how a worker is configured.
    """

    def __init__(self, launcher: Launcher, planner: WorkerPlanner) -> None:
        self._launcher = launcher
        self._planner = planner
        self._workers: dict[str, _Worker] = {}

    @property
    def handles(self) -> list[ServiceHandle]:
        """The processes of all workers."""
        return [rank for worker in self._workers.values() for rank in worker.ranks]

    def room(self) -> Mapping[Role, int]:
        """See `WorkerFleet.room`."""
        found = {role: self._planner.floor.room(role, self._taken()) for role in ROLES}
        return {role: room for role, room in found.items() if room is not None}

    def adopt(self, plan: WorkerPlan) -> None:
        """Start a worker that is planned already."""
        self._workers[plan.name] = _Worker(self._launcher.start(plan.ranks), plan.place)

    def start(self, worker_id: str, role: Role, epoch: int) -> None:
        """See `WorkerFleet.start`."""
        place = self._planner.floor.find(role, self._taken())
        if place is None:
            raise NoRoom(f"there is no room for another {role} worker")
        self.adopt(self._planner.later(place, worker_id, epoch))

    def look(self, worker_id: str) -> Sighting:
        """See `WorkerFleet.look`."""
        worker = self._workers[worker_id]
        if worker.stopping and all(rank.wait_stopped(_LOOK_S) for rank in worker.ranks):
            return Sighting("gone", detail="it was stopped")
        statuses = {rank.name: rank.status() for rank in worker.ranks}
        failed = failure_among(statuses)
        if failed is not None and not worker.stopping:
            name, status = failed
            detail = status.detail if status.state == "gone" else f"{name}: {status.detail}"
            return Sighting("gone", detail=detail)
        late = [status for status in statuses.values() if status.state == "starting"]
        if late:
            return Sighting("starting", detail=late[0].detail)
        address = dict(statuses[worker.ranks[0].name].endpoints).get("grpc", "")
        return Sighting("ready", address)

    def stop(self, worker_id: str, grace_s: float) -> None:
        """See `WorkerFleet.stop`."""
        worker = self._workers[worker_id]
        worker.stopping = True
        for rank in worker.ranks:
            rank.stop(grace_s)

    def kill(self, worker_id: str) -> None:
        """See `WorkerFleet.kill`."""
        worker = self._workers.pop(worker_id)
        for rank in worker.ranks:
            rank.kill()
        self._launcher.release(worker.ranks)

    def _taken(self) -> list[Place]:
        return [worker.place for worker in self._workers.values()]


def failure_among(statuses: Mapping[str, ServiceStatus]) -> tuple[str, ServiceStatus] | None:
    """The service that is to be blamed, if one has failed or is gone.

    Ranks that fail because another one did are not.
    """
    failed = [one for one in statuses.items() if one[1].state in ("failed", "gone")]
    return min(failed, key=lambda one: one[1].error_code == RankLost.code, default=None)
