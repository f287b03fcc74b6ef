"""What operators may ask for, and what it makes of what is wanted: `wish`. Pure.

A command is checked against the cluster as it is now, and either changes what is wanted or is
refused with a reason; it does nothing itself.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

from twinflow.cluster.autoscale.policy import PoolPolicy
from twinflow.cluster.controller.state import ClusterState, Desired, DrainMode, Worker
from twinflow.protos.errors import InvalidRequest
from twinflow.workers.role import Role

# As of `twinflow serve`.
LARGEST_POOL = 1024


@dataclass(frozen=True, slots=True)
class Scale:
    """Give a pool another size.

    Attributes:
        pool: which one.
        size: workers that it shall have.
        drain: what becomes of the requests of a worker that it lets go.
    """

    pool: Role
    size: int
    drain: DrainMode = "finish"


@dataclass(frozen=True, slots=True)
class FlipWorker:
    """Move a worker to another pool; that one grows by it."""

    worker_id: str
    role: Role


@dataclass(frozen=True, slots=True)
class DrainWorker:
    """Take a worker out of service.

    Attributes:
        worker_id: which one.
        drain: what becomes of its requests.
        replace: start another one in its place first; otherwise its pool gets smaller.
    """

    worker_id: str
    drain: DrainMode = "finish"
    replace: bool = False


@dataclass(frozen=True, slots=True)
class RestartAll:
    """Replace every worker by a new one, one after the other."""

    drain: DrainMode = "finish"


@dataclass(frozen=True, slots=True)
class Autoscale:
    """Let a pool size itself, or end that.

    Attributes:
        pool: which one.
        policy: what it keeps to; None for the size that it has.
        drain: what becomes of the requests of a worker that it lets go.
    """

    pool: Role
    policy: PoolPolicy | None
    drain: DrainMode = "finish"


@dataclass(frozen=True, slots=True)
class Resize:
    """Pools that size themselves have decided."""

    sizes: Mapping[Role, int]


Command: TypeAlias = Scale | FlipWorker | DrainWorker | RestartAll | Autoscale | Resize


def wish(state: ClusterState, desired: Desired, command: Command) -> Desired:
    """What is wanted once a command is accepted.

    Args:
        state: the cluster now.
        desired: what was wanted before.
        command: of an operator.

    Raises:
        InvalidRequest: the command cannot be carried out, and why.
    """
    current = _without_the_dead(state, desired)
    match command:
        case Scale():
            wanted = _scaled(current, command)
        case Autoscale():
            wanted = _autoscaled(current, command)
        case Resize(sizes):
            wanted = replace(current, sizes={**current.sizes, **sizes})
            check_sizes(wanted.sizes)
        case FlipWorker():
            wanted = _flipped(state, current, command)
        case DrainWorker():
            wanted = _drained(state, current, command)
        case RestartAll(drain):
            _check_room(state, current, *state.of_phase("serving"))
            lives = (worker.epoch for worker in state.of_phase("starting", "serving"))
            wanted = replace(current, leaving={**current.leaving, **dict.fromkeys(lives, drain)})
    return replace(wanted, version=desired.version + 1)


def check_sizes(sizes: Mapping[Role, int]) -> None:
    """Refuse pools of which no worker computes prompts, or none continues them.

    Raises:
        InvalidRequest: there is nobody for one of the two.
    """
    if sizes.get("mixed", 0):
        return
    for role in ("prefill", "decode"):
        if not sizes.get(role, 0):
            shown = ", ".join(f"{size} {pool}" for pool, size in sizes.items()) or "no workers"
            raise InvalidRequest(
                f"{shown} would be left: without a mixed worker, a {role} worker is needed.",
                "size",
            )


def _scaled(desired: Desired, command: Scale) -> Desired:
    if not 0 <= command.size <= LARGEST_POOL:
        raise InvalidRequest(f"A pool has 0 to {LARGEST_POOL} workers.", "size")
    if command.pool in desired.scaling:
        raise InvalidRequest(
            f"The {command.pool} pool is scaled automatically: end that first.", "pool"
        )
    sizes = {**desired.sizes, command.pool: command.size}
    check_sizes(sizes)
    drains = {**desired.drains, command.pool: command.drain}
    return replace(desired, sizes=sizes, drains=drains)


def _autoscaled(desired: Desired, command: Autoscale) -> Desired:
    scaling = {role: one for role, one in desired.scaling.items() if role != command.pool}
    if command.policy is None:
        return replace(desired, scaling=scaling)
    command.policy.check(command.pool, LARGEST_POOL)
    size = desired.size(command.pool)
    bounded = min(max(size, command.policy.minimum), command.policy.maximum)
    sizes = {**desired.sizes, command.pool: bounded}
    check_sizes(sizes)
    return replace(
        desired,
        sizes=sizes,
        drains={**desired.drains, command.pool: command.drain},
        scaling={**scaling, command.pool: command.policy},
    )


def _flipped(state: ClusterState, desired: Desired, command: FlipWorker) -> Desired:
    worker = _serving(state, desired, command.worker_id)
    if state.no_flips:
        raise InvalidRequest(state.no_flips, "role")
    before = desired.roles.get(worker.epoch, worker.role)
    if before == command.role:
        return desired
    sizes = _moved(desired.sizes, before, -1)
    sizes = _moved(sizes, command.role, +1)
    check_sizes(sizes)
    return replace(desired, sizes=sizes, roles={**desired.roles, worker.epoch: command.role})


def _drained(state: ClusterState, desired: Desired, command: DrainWorker) -> Desired:
    worker = _serving(state, desired, command.worker_id)
    leaving = {**desired.leaving, worker.epoch: command.drain}
    if command.replace:
        _check_room(state, desired, worker)
        return replace(desired, leaving=leaving)
    role = desired.roles.get(worker.epoch, worker.role)
    sizes = _moved(desired.sizes, role, -1)
    check_sizes(sizes)
    return replace(desired, sizes=sizes, leaving=leaving)


def _moved(sizes: Mapping[Role, int], role: Role, by: int) -> dict[Role, int]:
    return {**sizes, role: max(0, sizes.get(role, 0) + by)}


def _serving(state: ClusterState, desired: Desired, worker_id: str) -> Worker:
    worker = state.workers.get(worker_id)
    if worker is None:
        known = ", ".join(sorted(state.workers)) or "none"
        raise InvalidRequest(f"There is no worker {worker_id!r}; there are {known}.", "worker_id")
    if worker.phase != "serving":
        raise InvalidRequest(f"Worker {worker_id} is {worker.phase}.", "worker_id")
    if worker.epoch in desired.leaving:
        raise InvalidRequest(f"Worker {worker_id} is asked to leave already.", "worker_id")
    return worker


def _check_room(state: ClusterState, desired: Desired, *workers: Worker) -> None:
    """Refuse to replace the only worker that serves where no other fits beside it."""
    serving = state.of_phase("serving")
    if len(serving) > 1:
        return
    for worker in workers:
        role = desired.roles.get(worker.epoch, worker.role)
        if not state.room_for(role):
            raise InvalidRequest(
                f"Worker {worker.worker_id} is the only one, and there is no room for another "
                "beside it: stop the deployment and start it again instead.",
                "worker_id",
            )


def _without_the_dead(state: ClusterState, desired: Desired) -> Desired:
    """What is wanted, without wishes for lives that are over or have what they were to have."""
    roles = {worker.epoch: worker.role for worker in state.workers.values()}
    return replace(
        desired,
        roles={e: role for e, role in desired.roles.items() if roles.get(e, role) != role},
        leaving={epoch: mode for epoch, mode in desired.leaving.items() if epoch in roles},
    )


def describe(command: Command) -> str:
    """A command in words."""
    match command:
        case Scale(pool, size, drain):
            return f"{pool} pool of {size} (drain: {drain})"
        case Autoscale(pool, None):
            return f"{pool} pool keeps its size"
        case Autoscale(pool, policy, drain):
            return f"{pool} pool sizes itself: {policy} (drain: {drain})"
        case Resize(sizes):
            return ", ".join(f"{pool} pool of {size}" for pool, size in sizes.items())
        case FlipWorker(worker_id, role):
            return f"{worker_id} becomes a {role} worker"
        case DrainWorker(worker_id, drain, again):
            return f"{worker_id} {'is replaced' if again else 'leaves'} (drain: {drain})"
        case RestartAll(drain):
            return f"every worker is replaced (drain: {drain})"
