"""What operators are told of a deployment, as values."""

from dataclasses import dataclass, field
from typing import Any

from twinflow.protos.twinflow.v1 import admin_pb2 as pb
from twinflow.runtime.outputs import PhaseTime

ROLES: dict[str, Any] = {
    "prefill": pb.WORKER_ROLE_PREFILL,
    "decode": pb.WORKER_ROLE_DECODE,
    "mixed": pb.WORKER_ROLE_MIXED,
}
DRAINS: dict[str, Any] = {
    "finish": pb.DRAIN_MODE_FINISH,
    "migrate": pb.DRAIN_MODE_MIGRATE,
}
_ROLE_NAMES = {value: name for name, value in ROLES.items()}


@dataclass(frozen=True, slots=True)
class WorkerLoad:
    """What the gateway last heard from a worker.

    Attributes:
        running: sequences in its batch.
        waiting: sequences in its queue.
        receiving: sequences whose KV is on its way.
        free_blocks: KV blocks that can be allocated.
        total_blocks: KV blocks.
        leased_blocks: KV blocks kept for another worker.
    """

    running: int
    waiting: int
    receiving: int
    free_blocks: int
    total_blocks: int
    leased_blocks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerInfo:
    """One worker.

    Attributes:
        worker_id: its name.
        epoch: which life of it.
        role: `prefill`, `decode` or `mixed`.
        phase: `starting`, `serving`, `leaving`, `stopping` or `lost`.
        detail: what it is doing, or what is wrong.
        phase_s: how long it has been in its phase.
        ranks: processes that compute the model together.
        load: what it is busy with; None if the gateway does not hear of it.
        pid: process of its rank 0, where it runs; 0 if the gateway does not hear of it.
    """

    worker_id: str
    epoch: int
    role: str
    phase: str
    detail: str
    phase_s: float
    ranks: int
    load: WorkerLoad | None
    pid: int


@dataclass(frozen=True, slots=True)
class AutoscalingInfo:
    """What a pool that sizes itself keeps to.

    Attributes:
        min: workers that it always has.
        max: workers that it never has more of.
        ttft_ms: what nine of ten requests may wait for their first token; None for no objective.
        tpot_ms: what nine of ten further tokens may take; None for no objective.
    """

    min: int
    max: int
    ttft_ms: float | None = None
    tpot_ms: float | None = None


@dataclass(frozen=True, slots=True)
class PoolInfo:
    """One pool.

    Attributes:
        role: its name.
        size: workers that it shall have.
        serving: workers that serve in it.
        problem: why none is started although some are missing.
        autoscaling: what it sizes itself by; None if it has the size that it was given.
        verdict: what was found at the latest decision about its size.
        grown: decisions that made it larger.
        shrunk: decisions that made it smaller.
    """

    role: str
    size: int
    serving: int
    problem: str
    autoscaling: AutoscalingInfo | None = None
    verdict: str = ""
    grown: int = 0
    shrunk: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """Pools and workers.

    Attributes:
        version: of what is wanted; grows with every change.
        settled_version: the last one that everything was as wanted.
        pools: those that have workers, or shall have some.
        workers: by name.
        last_event: number of the latest event.
    """

    version: int
    settled_version: int
    pools: tuple[PoolInfo, ...]
    workers: tuple[WorkerInfo, ...]
    last_event: int

    def is_settled_for(self, version: int) -> bool:
        """Whether everything was as wanted in this version, or in a later one."""
        return self.settled_version >= version

    def unfinished(self) -> str:
        """What is not as wanted, in words."""
        pools = [
            f"{pool.role} pool {pool.serving} of {pool.size}"
            for pool in self.pools
            if pool.serving != pool.size
        ]
        workers = [
            f"{worker.worker_id} {worker.phase}"
            for worker in self.workers
            if worker.phase != "serving"
        ]
        return ", ".join([*pools, *workers]) or "nothing is missing any more"


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened.

    Attributes:
        number: counts up from 1.
        kind: `accepted`, `started`, `ready`, `flipped`, `draining`, `stopping`, `ended`, `lost`,
            `gave_up`, `settled` or `autoscaled`.
        time: Unix time in seconds.
        worker_id: whom it is about; empty for nobody.
        role: of that worker then.
        message: in words.
        version: of what was wanted then.
    """

    number: int
    kind: str
    time: float
    worker_id: str
    role: str
    message: str
    version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptInfo:
    """One stay of a sequence on the workers, in seconds since it was first sent to one.

    Attributes:
        decode_worker: that it was submitted to.
        prefill_worker: that computed its prompt; empty if `decode_worker` did.
        began_s: when.
        ended_s: when, or now.
        tokens: that it brought.
        outcome: why it ended; empty while it runs.
    """

    decode_worker: str
    prefill_worker: str
    began_s: float
    ended_s: float
    tokens: int
    outcome: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceInfo:
    """One sequence of a request.

    Attributes:
        sequence_id: of the gateway.
        prompt_tokens: of its prompt.
        output_tokens: so far.
        state: `running`, `finished`, `aborted` or `failed`.
        first_token_s: when its first token came, since it was first sent to a worker.
        attempts: its stays, the latest last.
        phases: where the time of the latest one went, as last told.
    """

    sequence_id: str
    prompt_tokens: int
    output_tokens: int
    state: str
    first_token_s: float | None
    attempts: tuple[AttemptInfo, ...]
    phases: tuple[PhaseTime, ...] = ()


@dataclass(frozen=True, slots=True)
class Explanation:
    """What became of a request: its sequences."""

    sequences: tuple[SequenceInfo, ...] = field(default_factory=tuple)


def cluster_from_pb(message: pb.Cluster) -> Cluster:
    """A cluster from its message."""
    return Cluster(
        version=message.version,
        settled_version=message.settled_version,
        pools=tuple(_pool(pool) for pool in message.pools),
        workers=tuple(_worker(worker) for worker in message.workers),
        last_event=message.last_event,
    )


def event_from_pb(message: pb.Event) -> Event:
    """An event from its message."""
    return Event(
        number=message.number,
        kind=_short(pb.EventKind.Name(message.kind), "EVENT_KIND_"),
        time=message.time_ms / 1000,
        worker_id=message.worker_id,
        role=_ROLE_NAMES.get(message.role, ""),
        message=message.message,
        version=message.version,
    )


def explanation_from_pb(message: pb.ExplainResponse) -> Explanation:
    """What became of a request, from its message."""
    return Explanation(tuple(_sequence(sequence) for sequence in message.sequences))


def _pool(message: pb.Pool) -> PoolInfo:
    autoscaling = None
    if message.HasField("autoscaling"):
        told = message.autoscaling
        autoscaling = AutoscalingInfo(
            told.min,
            told.max,
            told.ttft_ms if told.HasField("ttft_ms") else None,
            told.tpot_ms if told.HasField("tpot_ms") else None,
        )
    return PoolInfo(
        role=_ROLE_NAMES.get(message.role, "?"),
        size=message.size,
        serving=message.serving,
        problem=message.problem,
        autoscaling=autoscaling,
        verdict=message.verdict,
        grown=message.grown,
        shrunk=message.shrunk,
    )


def _worker(message: pb.WorkerInfo) -> WorkerInfo:
    load = None
    if message.HasField("load"):
        told = message.load
        load = WorkerLoad(
            running=told.running,
            waiting=told.waiting,
            receiving=told.receiving,
            free_blocks=told.free_blocks,
            total_blocks=told.total_blocks,
            leased_blocks=told.leased_blocks,
        )
    return WorkerInfo(
        worker_id=message.worker_id,
        epoch=message.epoch,
        role=_ROLE_NAMES.get(message.role, "?"),
        phase=_short(pb.WorkerPhase.Name(message.phase), "WORKER_PHASE_"),
        detail=message.detail,
        phase_s=message.phase_ms / 1000,
        ranks=message.ranks,
        load=load,
        pid=message.pid,
    )


def _sequence(message: pb.SequenceStory) -> SequenceInfo:
    told = message.HasField("first_token_ms")
    return SequenceInfo(
        sequence_id=message.sequence_id,
        prompt_tokens=message.prompt_tokens,
        output_tokens=message.output_tokens,
        state=message.state,
        first_token_s=message.first_token_ms / 1000 if told else None,
        attempts=tuple(
            AttemptInfo(
                decode_worker=attempt.decode_worker,
                prefill_worker=attempt.prefill_worker,
                began_s=attempt.began_ms / 1000,
                ended_s=attempt.ended_ms / 1000,
                tokens=attempt.tokens,
                outcome=attempt.outcome,
            )
            for attempt in message.attempts
        ),
        phases=tuple(PhaseTime(phase.name, phase.seconds) for phase in message.phases),
    )


def _short(name: str, prefix: str) -> str:
    return name.removeprefix(prefix).lower()
