"""What the controller knows of a cluster, and what is wanted of it. Values only.

A worker's life:

    starting ─► serving ─► leaving ─► stopping ─► (gone)
        │          │          │           │
        └──────────┴── lost ◄─┴───────────┘   its processes are killed ─► (gone)

A life has an epoch, which no other life of any worker has. An id may come back in another life.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from twinflow.cluster.autoscale.policy import PoolPolicy
from twinflow.workers.role import Role

Phase = Literal["starting", "serving", "leaving", "stopping", "lost"]
DrainMode = Literal["finish", "migrate"]

ROLES: tuple[Role, ...] = get_args(Role)
# More workers than anybody starts: a machine without a bound of its own.
UNBOUNDED = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """One life of a worker.

    Attributes:
        worker_id: unique among those that are there at a time.
        epoch: which life; no other one has it.
        role: which requests it gets.
        phase: how far its life is.
        since: when the phase began, in seconds of the controller's clock.
        address: of its gRPC server, once it serves.
        mode: what becomes of its requests when it leaves.
        released: every gateway knows that it leaves.
        detail: what it is doing, or what is wrong.
    """

    worker_id: str
    epoch: int
    role: Role
    phase: Phase
    since: float
    address: str = ""
    mode: DrainMode = "finish"
    released: bool = False
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Failures:
    """How often workers of a role failed one after the other, without one that lasted.

    Attributes:
        count: so often.
        not_before: when the next one may start.
        why: the latest failure.
        at: when that was.
    """

    count: int = 0
    not_before: float = 0.0
    why: str = ""
    at: float = 0.0


@dataclass(frozen=True, slots=True)
class ClusterState:
    """Everything that decisions are made from.

    Attributes:
        now: seconds of the controller's clock.
        workers: by id.
        room: how many more workers of a role could be started now.
        failures: of each role.
        next_epoch: of the next life.
        no_flips: why workers of this deployment cannot change their role; empty if they can.
    """

    now: float = 0.0
    workers: Mapping[str, Worker] = field(default_factory=dict)
    room: Mapping[Role, int] = field(default_factory=dict)
    failures: Mapping[Role, Failures] = field(default_factory=dict)
    next_epoch: int = 1
    no_flips: str = ""

    def of_phase(self, *phases: Phase) -> tuple[Worker, ...]:
        """The workers in one of these phases, the oldest lives first."""
        found = (worker for worker in self.workers.values() if worker.phase in phases)
        return tuple(sorted(found, key=lambda worker: worker.epoch))

    def find(self, worker_id: str, epoch: int) -> Worker | None:
        """This life of a worker, if it is still there."""
        worker = self.workers.get(worker_id)
        return worker if worker is not None and worker.epoch == epoch else None

    def room_for(self, role: Role) -> int:
        """How many more workers of a role could be started now."""
        return self.room.get(role, UNBOUNDED)

    def failures_of(self, role: Role) -> Failures:
        """How often workers of a role failed lately."""
        return self.failures.get(role, Failures())

    def with_worker(self, worker: Worker) -> "ClusterState":
        """The state with a worker put in or replaced."""
        return replace(self, workers={**self.workers, worker.worker_id: worker})

    def without(self, worker_id: str) -> "ClusterState":
        """The state without a worker."""
        left = {name: worker for name, worker in self.workers.items() if name != worker_id}
        return replace(self, workers=left)

    def free_id(self, role: Role) -> str:
        """A name for a new worker of a role that nobody has."""
        numbers: Iterator[int] = (n for n in range(len(self.workers) + 1))
        return next(name for n in numbers if (name := f"{role}-{n}") not in self.workers)

    def check_integrity(self) -> None:
        """Raise AssertionError if two lives share an epoch, or one is from the future."""
        epochs = [worker.epoch for worker in self.workers.values()]
        if len(set(epochs)) < len(epochs) or max(epochs, default=0) >= self.next_epoch:
            raise AssertionError(f"epochs {sorted(epochs)} with {self.next_epoch} to come")
        for name, worker in self.workers.items():
            if name != worker.worker_id:
                raise AssertionError(f"worker {worker.worker_id} is kept as {name}")


@dataclass(frozen=True, slots=True)
class Desired:
    """What is wanted.

    Attributes:
        version: grows with every change.
        sizes: workers of each pool.
        drains: what becomes of the requests of a worker that a smaller pool lets go.
        roles: workers that shall have a role of their own, by epoch.
        leaving: lives that shall end, by epoch, and what becomes of their requests.
        scaling: what pools that size themselves keep to.
    """

    version: int = 1
    sizes: Mapping[Role, int] = field(default_factory=dict)
    drains: Mapping[Role, DrainMode] = field(default_factory=dict)
    roles: Mapping[int, Role] = field(default_factory=dict)
    leaving: Mapping[int, DrainMode] = field(default_factory=dict)
    scaling: Mapping[Role, PoolPolicy] = field(default_factory=dict)

    def size(self, role: Role) -> int:
        """Workers that a pool shall have."""
        return self.sizes.get(role, 0)

    def members(self, state: ClusterState, role: Role) -> tuple[Worker, ...]:
        """The workers of a pool that count: those that serve or start and shall not leave."""
        return tuple(
            worker
            for worker in state.of_phase("starting", "serving")
            if worker.role == role and worker.epoch not in self.leaving
        )
