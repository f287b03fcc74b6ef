"""The controller's values as messages, and operators' messages as commands. Pure."""

from collections.abc import Mapping

from twinflow.cluster.autoscale.policy import PoolPolicy
from twinflow.cluster.controller.commands import (
    Autoscale,
    Command,
    DrainWorker,
    FlipWorker,
    RestartAll,
    Scale,
)
from twinflow.cluster.controller.plan import problem_of
from twinflow.cluster.controller.state import (
    ROLES,
    ClusterState,
    Desired,
    DrainMode,
    Phase,
    Worker,
)
from twinflow.protos.errors import InvalidRequest
from twinflow.protos.twinflow.internal.v1 import gateway_pb2
from twinflow.protos.twinflow.v1 import admin_pb2 as pb
from twinflow.workers.role import ROLES as INTERNAL_ROLES
from twinflow.workers.role import Role

ROLE_TO_PB: Mapping[Role, pb.WorkerRole] = {
    "prefill": pb.WORKER_ROLE_PREFILL,
    "decode": pb.WORKER_ROLE_DECODE,
    "mixed": pb.WORKER_ROLE_MIXED,
}
ROLE_FROM_PB: Mapping[int, Role] = {value: name for name, value in ROLE_TO_PB.items()}
PHASE_TO_PB: Mapping[Phase, pb.WorkerPhase] = {
    "starting": pb.WORKER_PHASE_STARTING,
    "serving": pb.WORKER_PHASE_SERVING,
    "leaving": pb.WORKER_PHASE_LEAVING,
    "stopping": pb.WORKER_PHASE_STOPPING,
    "lost": pb.WORKER_PHASE_LOST,
}


def request_id_of(message: gateway_pb2.Command) -> str:
    """The id that its caller gave a change; empty for a change that is none."""
    change = message.WhichOneof("change")
    return getattr(message, change).request_id if change is not None else ""


def command_of(message: gateway_pb2.Command) -> Command:
    """A change.

    Raises:
        InvalidRequest: it is none that this release knows.
    """
    match message.WhichOneof("change"):
        case "scale":
            scale = message.scale
            return Scale(_role(scale.pool), scale.size, _mode(scale.drain))
        case "flip":
            return FlipWorker(message.flip.worker_id, _role(message.flip.role))
        case "drain":
            drain = message.drain
            return DrainWorker(drain.worker_id, _mode(drain.drain), drain.replace)
        case "autoscale":
            change = message.autoscale
            return Autoscale(_role(change.pool), _policy(change), _mode(change.drain))
        case "restart":
            return RestartAll(_mode(message.restart.drain))
        case _:
            raise InvalidRequest("The change is none that this server knows.")


def duty_of(worker: Worker) -> gateway_pb2.Duty:
    """What gateways use a worker for."""
    gone = worker.phase in ("leaving", "stopping")
    return gateway_pb2.Duty(
        worker_id=worker.worker_id,
        epoch=worker.epoch,
        address=worker.address,
        role=INTERNAL_ROLES[worker.role],
        leaving=gone,
        moving=gone and worker.mode == "migrate",
    )


def duties_of(state: ClusterState) -> list[gateway_pb2.Duty]:
    """The table that gateways follow: who serves, and who is still finishing."""
    found = state.of_phase("serving", "leaving", "stopping")
    return [duty_of(worker) for worker in found if worker.address]


def missing_of(state: ClusterState, desired: Desired) -> list[str]:
    """What there should be and is not, in words.

    A worker that shall leave is there until its successor is.
    """
    found: list[str] = []
    for role in ROLES:
        lacking = desired.size(role) - _serving(state, role)
        if lacking > 0:
            workers = "worker is" if lacking == 1 else "workers are"
            why = problem_of(state, desired, role) or "being started"
            found.append(f"{lacking} {role} {workers} missing: {why}")
    return found


def _serving(state: ClusterState, role: Role) -> int:
    """How many workers of a pool serve."""
    return sum(worker.role == role for worker in state.of_phase("serving"))


def cluster_of(state: ClusterState, desired: Desired, ranks: Mapping[Role, int]) -> pb.Cluster:
    """A cluster as operators see it, without how far it is with events and versions.

    Args:
        state: as it is.
        desired: as it shall be.
        ranks: of a worker of each role.
    """
    pools = []
    for role in ROLES:
        serving = _serving(state, role)
        if desired.size(role) or serving:
            problem = problem_of(state, desired, role)
            pools.append(
                pb.Pool(
                    role=ROLE_TO_PB[role],
                    size=desired.size(role),
                    serving=serving,
                    problem=problem,
                    autoscaling=_autoscaling(desired.scaling.get(role)),
                )
            )
    return pb.Cluster(
        version=desired.version,
        pools=pools,
        workers=[_worker(state.workers[name], state.now, ranks) for name in sorted(state.workers)],
    )


def _autoscaling(policy: PoolPolicy | None) -> pb.Autoscaling | None:
    if policy is None:
        return None
    return pb.Autoscaling(
        min=policy.minimum,
        max=policy.maximum,
        ttft_ms=None if policy.ttft_s is None else policy.ttft_s * 1000.0,
        tpot_ms=None if policy.tpot_s is None else policy.tpot_s * 1000.0,
    )


def _policy(change: pb.AutoscalePoolRequest) -> PoolPolicy | None:
    if not change.HasField("autoscaling"):
        return None
    told = change.autoscaling
    return PoolPolicy(
        minimum=told.min,
        maximum=told.max,
        ttft_s=told.ttft_ms / 1000.0 if told.HasField("ttft_ms") else None,
        tpot_s=told.tpot_ms / 1000.0 if told.HasField("tpot_ms") else None,
    )


def _worker(worker: Worker, now: float, ranks: Mapping[Role, int]) -> pb.WorkerInfo:
    return pb.WorkerInfo(
        worker_id=worker.worker_id,
        epoch=worker.epoch,
        role=ROLE_TO_PB[worker.role],
        phase=PHASE_TO_PB[worker.phase],
        detail=worker.detail,
        phase_ms=max(0, round((now - worker.since) * 1000)),
        ranks=ranks.get(worker.role, 1),
    )


def _role(value: int) -> Role:
    role = ROLE_FROM_PB.get(value)
    if role is None:
        raise InvalidRequest("A role is prefill, decode or mixed.", "role")
    return role


def _mode(value: int) -> DrainMode:
    return "migrate" if value == pb.DRAIN_MODE_MIGRATE else "finish"
