"""The next step towards what is wanted: `plan(state, desired) -> Action | None`. Pure.

The rules, the first that has something to do decides:

    1  end what is left of a worker that is lost, or that takes too long
    2  stop a worker that every gateway has let go
    3  give a worker the role that was asked for by name
    4  give a worker of a pool that has too many to one that has too few
    5  start a worker that is missing, one at a time
    6  let a worker go that is too many, or that was asked to leave

Rules 1 to 3 and 5 mend or change without taking anything away. Rule 6 takes away, and so it waits
until nothing is starting, leaving or lost, until every pool has what it should, as far as there is
room for it, and never takes the last worker that serves. An action shows in the state at once, so
that the same action is never due twice; loading a model and draining go on behind it.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

from twinflow.cluster.controller.state import ROLES, ClusterState, Desired, DrainMode, Worker
from twinflow.workers.role import Role

# After so many failures one after the other no worker of a pool is started until somebody asks.
GIVE_UP_AFTER = 5


@dataclass(frozen=True, slots=True)
class Start:
    """Start a new worker."""

    worker_id: str
    role: Role


@dataclass(frozen=True, slots=True)
class Flip:
    """Give a worker another role."""

    worker_id: str
    epoch: int
    role: Role


@dataclass(frozen=True, slots=True)
class Drain:
    """Let every gateway know that a worker leaves."""

    worker_id: str
    epoch: int
    mode: DrainMode


@dataclass(frozen=True, slots=True)
class Stop:
    """Let a worker finish what it has within `grace_s`, and end."""

    worker_id: str
    epoch: int
    grace_s: float


@dataclass(frozen=True, slots=True)
class Fence:
    """End what is left of a worker at once, so that it can do nothing any more."""

    worker_id: str
    epoch: int
    why: str


Action: TypeAlias = Start | Flip | Drain | Stop | Fence


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long a phase may take, in seconds.

    Attributes:
        start_s: from its start until a worker serves.
        release_s: until every gateway knows that a worker leaves.
        finish_s: what requests get to finish where they are.
        leases_s: what other workers get to read the blocks of one whose requests have moved.
        stop_s: what a worker gets beyond that to end its processes.
    """

    start_s: float = 600.0
    release_s: float = 10.0
    finish_s: float = 600.0
    leases_s: float = 35.0
    stop_s: float = 15.0

    def grace_s(self, mode: DrainMode) -> float:
        """What a worker that leaves gets to finish what it has."""
        return self.finish_s if mode == "finish" else self.leases_s


_DEFAULT = Patience()


def plan(state: ClusterState, desired: Desired, patience: Patience = _DEFAULT) -> Action | None:
    """What to do next; None if there is nothing to do but wait."""
    return (
        _fence(state, patience)
        or _stop(state, patience)
        or _flip_by_name(state, desired)
        or _trade(state, desired)
        or _start(state, desired)
        or _let_go(state, desired)
    )


def is_settled(state: ClusterState, desired: Desired) -> bool:
    """Whether everything is as wanted."""
    calm = all(worker.phase == "serving" for worker in state.workers.values())
    leaving = any(worker.epoch in desired.leaving for worker in state.workers.values())
    return calm and not leaving and not any(_lacks(state, desired, role) for role in ROLES)


def problem_of(state: ClusterState, desired: Desired, role: Role) -> str:
    """Why a pool that lacks workers gets none; empty if it gets one, or lacks none."""
    if _lacks(state, desired, role) <= 0:
        return ""
    failures = state.failures_of(role)
    if failures.count >= GIVE_UP_AFTER:
        return f"gave up after {failures.count} failures: {failures.why}"
    if not state.room_for(role):
        return "there is no room for another worker"
    return failures.why


def _lacks(state: ClusterState, desired: Desired, role: Role) -> int:
    """How many workers a pool has too few; negative if too many."""
    return desired.size(role) - len(desired.members(state, role))


def _fence(state: ClusterState, patience: Patience) -> Fence | None:
    for worker in state.of_phase("lost", "starting", "stopping"):
        age_s = state.now - worker.since
        if worker.phase == "lost":
            return Fence(worker.worker_id, worker.epoch, worker.detail)
        limit_s = patience.start_s
        if worker.phase == "stopping":
            # One that never served has nothing to finish.
            grace_s = patience.grace_s(worker.mode) if worker.address else 0.0
            limit_s = grace_s + patience.stop_s
        if age_s > limit_s:
            why = f"{worker.worker_id} was still {worker.phase} after {limit_s:g} s"
            if worker.detail:
                why += f": {worker.detail}"
            return Fence(worker.worker_id, worker.epoch, why)
    return None


def _stop(state: ClusterState, patience: Patience) -> Stop | None:
    for worker in state.of_phase("leaving"):
        if worker.released or state.now - worker.since > patience.release_s:
            return Stop(worker.worker_id, worker.epoch, patience.grace_s(worker.mode))
    return None


def _flip_by_name(state: ClusterState, desired: Desired) -> Flip | None:
    for worker in state.of_phase("serving"):
        role = desired.roles.get(worker.epoch, worker.role)
        if role != worker.role:
            return Flip(worker.worker_id, worker.epoch, role)
    return None


def _trade(state: ClusterState, desired: Desired) -> Flip | None:
    if state.no_flips:
        return None
    for role in ROLES:
        if _lacks(state, desired, role) <= 0:
            continue
        for other in ROLES:
            if _lacks(state, desired, other) < 0:
                for worker in reversed(desired.members(state, other)):
                    if worker.phase == "serving" and worker.epoch not in desired.roles:
                        return Flip(worker.worker_id, worker.epoch, role)
    return None


def _start(state: ClusterState, desired: Desired) -> Start | None:
    if state.of_phase("starting"):
        return None
    for role in _neediest_first(state, desired):
        failures = state.failures_of(role)
        given_up = failures.count >= GIVE_UP_AFTER
        if state.room_for(role) and not given_up and state.now >= failures.not_before:
            return Start(state.free_id(role), role)
    return None


def _neediest_first(state: ClusterState, desired: Desired) -> list[Role]:
    """The pools that lack workers; first those that have none at all."""
    lacking = [role for role in ROLES if _lacks(state, desired, role) > 0]
    return sorted(lacking, key=lambda role: len(desired.members(state, role)))


def _let_go(state: ClusterState, desired: Desired) -> Drain | Stop | None:
    for worker in _too_many(state, desired, state.of_phase("starting")):
        return Stop(worker.worker_id, worker.epoch, 0.0)
    if state.of_phase("starting", "leaving", "stopping", "lost"):
        return None
    # What could still be started is waited for before anything is taken away.
    if any(_lacks(state, desired, role) > 0 and state.room_for(role) for role in ROLES):
        return None
    serving = state.of_phase("serving")
    asked = [worker for worker in serving if worker.epoch in desired.leaving]
    for worker in (*asked, *_too_many(state, desired, serving)):
        if len(serving) > 1:
            mode = desired.leaving.get(worker.epoch, desired.drains.get(worker.role, "finish"))
            return Drain(worker.worker_id, worker.epoch, mode)
    return None


def _too_many(state: ClusterState, desired: Desired, workers: Iterable[Worker]) -> list[Worker]:
    """Those of `workers` that are in a pool which has too many; the youngest first."""
    found = [
        worker
        for worker in workers
        if worker.epoch not in desired.leaving and _lacks(state, desired, worker.role) < 0
    ]
    return sorted(found, key=lambda worker: -worker.epoch)
