"""What happens to a cluster, and what it makes of the state: `apply(state, event)`. Pure.

Events of a life that is over change nothing, so late news does no harm.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

from twinflow.cluster.controller.state import ClusterState, DrainMode, Failures, Worker
from twinflow.workers.role import Role

# A worker that ends sooner than this after it began to serve counts as one that failed to start.
YOUNG_S = 30.0
# The pause after the first failure; each further one doubles it. It keeps workers that cannot start
# or serve from taking the processor, and runs from when the one that failed began to serve.
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 30.0


@dataclass(frozen=True, slots=True)
class Ticked:
    """Time has passed.

    Attributes:
        now: seconds of the controller's clock.
        room: how many more workers of a role could be started.
    """

    now: float
    room: Mapping[Role, int]


@dataclass(frozen=True, slots=True)
class Started:
    """A new life has begun, with the epoch that was next."""

    worker_id: str
    role: Role


@dataclass(frozen=True, slots=True)
class StartRefused:
    """A worker could not even be started."""

    role: Role
    why: str


@dataclass(frozen=True, slots=True)
class Progressed:
    """A worker says how far it is with starting."""

    worker_id: str
    epoch: int
    detail: str


@dataclass(frozen=True, slots=True)
class Ready:
    """A worker serves."""

    worker_id: str
    epoch: int
    address: str


@dataclass(frozen=True, slots=True)
class Flipped:
    """A worker has another role."""

    worker_id: str
    epoch: int
    role: Role


@dataclass(frozen=True, slots=True)
class DrainBegun:
    """A worker shall get nothing more."""

    worker_id: str
    epoch: int
    mode: DrainMode


@dataclass(frozen=True, slots=True)
class Released:
    """Every gateway knows that a worker leaves."""

    worker_id: str
    epoch: int


@dataclass(frozen=True, slots=True)
class StopOrdered:
    """A worker was told to finish what it has, and to end."""

    worker_id: str
    epoch: int


@dataclass(frozen=True, slots=True)
class Died:
    """A worker has ended unasked, is silent, or takes too long."""

    worker_id: str
    epoch: int
    why: str


@dataclass(frozen=True, slots=True)
class Ended:
    """Nothing is left of a life."""

    worker_id: str
    epoch: int


@dataclass(frozen=True, slots=True)
class Asked:
    """An operator has asked for a change: what failed before may be tried again."""


OfLife: TypeAlias = (
    Progressed | Ready | Flipped | DrainBegun | Released | StopOrdered | Died | Ended
)
Event: TypeAlias = Ticked | Asked | Started | StartRefused | OfLife


def apply(state: ClusterState, event: Event) -> ClusterState:
    """The state after an event."""
    match event:
        case Ticked(now, room):
            return _forgive(replace(state, now=now, room=room))
        case Asked():
            return replace(state, failures={})
        case Started(worker_id, role):
            worker = Worker(
                worker_id=worker_id,
                epoch=state.next_epoch,
                role=role,
                phase="starting",
                since=state.now,
            )
            return replace(state.with_worker(worker), next_epoch=state.next_epoch + 1)
        case StartRefused(role, why):
            return _failed(state, role, why, state.now)
        case _:
            worker_or_none = state.find(event.worker_id, event.epoch)
            return state if worker_or_none is None else _live(state, worker_or_none, event)


def _live(state: ClusterState, worker: Worker, event: OfLife) -> ClusterState:
    """The state after an event in a life that is not over."""
    match event:
        case Progressed(detail=detail):
            return state.with_worker(replace(worker, detail=detail))
        case Ready(address=address) if worker.phase == "starting":
            served = replace(worker, phase="serving", since=state.now, address=address, detail="")
            return state.with_worker(served)
        case Flipped(role=role):
            return state.with_worker(replace(worker, role=role))
        case DrainBegun(mode=mode) if worker.phase == "serving":
            left = replace(worker, phase="leaving", since=state.now, mode=mode, released=False)
            return state.with_worker(left)
        case Released():
            return state.with_worker(replace(worker, released=True))
        case StopOrdered():
            return state.with_worker(replace(worker, phase="stopping", since=state.now))
        case Died(why=why) if worker.phase != "lost":
            return _died(state, worker, why)
        case Ended():
            return state.without(worker.worker_id)
        case _:
            return state


def _forgive(state: ClusterState) -> ClusterState:
    """A worker that came after the latest failure of its role and has lasted ends the row."""
    lasted = [w for w in state.of_phase("serving") if state.now - w.since >= YOUNG_S]
    forgiven = {w.role for w in lasted if w.since > state.failures_of(w.role).at}
    if not forgiven & state.failures.keys():
        return state
    left = {role: one for role, one in state.failures.items() if role not in forgiven}
    return replace(state, failures=left)


def _died(state: ClusterState, worker: Worker, why: str) -> ClusterState:
    lost = state.with_worker(replace(worker, phase="lost", since=state.now, detail=why))
    if worker.phase == "starting":
        return _failed(lost, worker.role, why, state.now)
    if worker.phase != "serving":
        return lost  # it was to end anyway
    if state.now - worker.since < YOUNG_S:
        # While it served there was no crash loop: the pause runs since then.
        return _failed(lost, worker.role, why, worker.since)
    return replace(lost, failures={**lost.failures, worker.role: Failures()})


def _failed(state: ClusterState, role: Role, why: str, since: float) -> ClusterState:
    """One more failure in a row; the next start waits for a pause that began at `since`."""
    count = state.failures_of(role).count + 1
    pause_s = min(FIRST_PAUSE_S * 2 ** (count - 1), LONGEST_PAUSE_S)
    failures = Failures(count, since + pause_s, why, state.now)
    return replace(state, failures={**state.failures, role: failures})
