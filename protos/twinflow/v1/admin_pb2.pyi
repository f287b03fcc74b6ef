from twinflow.protos.twinflow.v1 import inference_pb2 as _inference_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class WorkerRole(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    WORKER_ROLE_UNSPECIFIED: _ClassVar[WorkerRole]
    WORKER_ROLE_PREFILL: _ClassVar[WorkerRole]
    WORKER_ROLE_DECODE: _ClassVar[WorkerRole]
    WORKER_ROLE_MIXED: _ClassVar[WorkerRole]

class WorkerPhase(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    WORKER_PHASE_UNSPECIFIED: _ClassVar[WorkerPhase]
    WORKER_PHASE_STARTING: _ClassVar[WorkerPhase]
    WORKER_PHASE_SERVING: _ClassVar[WorkerPhase]
    WORKER_PHASE_LEAVING: _ClassVar[WorkerPhase]
    WORKER_PHASE_STOPPING: _ClassVar[WorkerPhase]
    WORKER_PHASE_LOST: _ClassVar[WorkerPhase]

class DrainMode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DRAIN_MODE_UNSPECIFIED: _ClassVar[DrainMode]
    DRAIN_MODE_FINISH: _ClassVar[DrainMode]
    DRAIN_MODE_MIGRATE: _ClassVar[DrainMode]

class EventKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    EVENT_KIND_UNSPECIFIED: _ClassVar[EventKind]
    EVENT_KIND_ACCEPTED: _ClassVar[EventKind]
    EVENT_KIND_STARTED: _ClassVar[EventKind]
    EVENT_KIND_READY: _ClassVar[EventKind]
    EVENT_KIND_FLIPPED: _ClassVar[EventKind]
    EVENT_KIND_DRAINING: _ClassVar[EventKind]
    EVENT_KIND_STOPPING: _ClassVar[EventKind]
    EVENT_KIND_ENDED: _ClassVar[EventKind]
    EVENT_KIND_LOST: _ClassVar[EventKind]
    EVENT_KIND_GAVE_UP: _ClassVar[EventKind]
    EVENT_KIND_SETTLED: _ClassVar[EventKind]
    EVENT_KIND_AUTOSCALED: _ClassVar[EventKind]
WORKER_ROLE_UNSPECIFIED: WorkerRole
WORKER_ROLE_PREFILL: WorkerRole
WORKER_ROLE_DECODE: WorkerRole
WORKER_ROLE_MIXED: WorkerRole
WORKER_PHASE_UNSPECIFIED: WorkerPhase
WORKER_PHASE_STARTING: WorkerPhase
WORKER_PHASE_SERVING: WorkerPhase
WORKER_PHASE_LEAVING: WorkerPhase
WORKER_PHASE_STOPPING: WorkerPhase
WORKER_PHASE_LOST: WorkerPhase
DRAIN_MODE_UNSPECIFIED: DrainMode
DRAIN_MODE_FINISH: DrainMode
DRAIN_MODE_MIGRATE: DrainMode
EVENT_KIND_UNSPECIFIED: EventKind
EVENT_KIND_ACCEPTED: EventKind
EVENT_KIND_STARTED: EventKind
EVENT_KIND_READY: EventKind
EVENT_KIND_FLIPPED: EventKind
EVENT_KIND_DRAINING: EventKind
EVENT_KIND_STOPPING: EventKind
EVENT_KIND_ENDED: EventKind
EVENT_KIND_LOST: EventKind
EVENT_KIND_GAVE_UP: EventKind
EVENT_KIND_SETTLED: EventKind
EVENT_KIND_AUTOSCALED: EventKind

class Autoscaling(_message.Message):
    __slots__ = ("min", "max", "ttft_ms", "tpot_ms")
    MIN_FIELD_NUMBER: _ClassVar[int]
    MAX_FIELD_NUMBER: _ClassVar[int]
    TTFT_MS_FIELD_NUMBER: _ClassVar[int]
    TPOT_MS_FIELD_NUMBER: _ClassVar[int]
    min: int
    max: int
    ttft_ms: float
    tpot_ms: float
    def __init__(self, min: _Optional[int] = ..., max: _Optional[int] = ..., ttft_ms: _Optional[float] = ..., tpot_ms: _Optional[float] = ...) -> None: ...

class Pool(_message.Message):
    __slots__ = ("role", "size", "serving", "problem", "autoscaling", "verdict", "grown", "shrunk")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    SERVING_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    AUTOSCALING_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    GROWN_FIELD_NUMBER: _ClassVar[int]
    SHRUNK_FIELD_NUMBER: _ClassVar[int]
    role: WorkerRole
    size: int
    serving: int
    problem: str
    autoscaling: Autoscaling
    verdict: str
    grown: int
    shrunk: int
    def __init__(self, role: _Optional[_Union[WorkerRole, str]] = ..., size: _Optional[int] = ..., serving: _Optional[int] = ..., problem: _Optional[str] = ..., autoscaling: _Optional[_Union[Autoscaling, _Mapping]] = ..., verdict: _Optional[str] = ..., grown: _Optional[int] = ..., shrunk: _Optional[int] = ...) -> None: ...

class WorkerLoad(_message.Message):
    __slots__ = ("running", "waiting", "receiving", "free_blocks", "total_blocks", "leased_blocks")
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    RECEIVING_FIELD_NUMBER: _ClassVar[int]
    FREE_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    LEASED_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    running: int
    waiting: int
    receiving: int
    free_blocks: int
    total_blocks: int
    leased_blocks: int
    def __init__(self, running: _Optional[int] = ..., waiting: _Optional[int] = ..., receiving: _Optional[int] = ..., free_blocks: _Optional[int] = ..., total_blocks: _Optional[int] = ..., leased_blocks: _Optional[int] = ...) -> None: ...

class WorkerInfo(_message.Message):
    __slots__ = ("worker_id", "epoch", "role", "phase", "detail", "phase_ms", "ranks", "load", "pid")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    PHASE_MS_FIELD_NUMBER: _ClassVar[int]
    RANKS_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    epoch: int
    role: WorkerRole
    phase: WorkerPhase
    detail: str
    phase_ms: int
    ranks: int
    load: WorkerLoad
    pid: int
    def __init__(self, worker_id: _Optional[str] = ..., epoch: _Optional[int] = ..., role: _Optional[_Union[WorkerRole, str]] = ..., phase: _Optional[_Union[WorkerPhase, str]] = ..., detail: _Optional[str] = ..., phase_ms: _Optional[int] = ..., ranks: _Optional[int] = ..., load: _Optional[_Union[WorkerLoad, _Mapping]] = ..., pid: _Optional[int] = ...) -> None: ...

class Cluster(_message.Message):
    __slots__ = ("version", "settled_version", "pools", "workers", "last_event")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SETTLED_VERSION_FIELD_NUMBER: _ClassVar[int]
    POOLS_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    LAST_EVENT_FIELD_NUMBER: _ClassVar[int]
    version: int
    settled_version: int
    pools: _containers.RepeatedCompositeFieldContainer[Pool]
    workers: _containers.RepeatedCompositeFieldContainer[WorkerInfo]
    last_event: int
    def __init__(self, version: _Optional[int] = ..., settled_version: _Optional[int] = ..., pools: _Optional[_Iterable[_Union[Pool, _Mapping]]] = ..., workers: _Optional[_Iterable[_Union[WorkerInfo, _Mapping]]] = ..., last_event: _Optional[int] = ...) -> None: ...

class Event(_message.Message):
    __slots__ = ("number", "kind", "time_ms", "worker_id", "epoch", "role", "message", "version")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    TIME_MS_FIELD_NUMBER: _ClassVar[int]
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    number: int
    kind: EventKind
    time_ms: int
    worker_id: str
    epoch: int
    role: WorkerRole
    message: str
    version: int
    def __init__(self, number: _Optional[int] = ..., kind: _Optional[_Union[EventKind, str]] = ..., time_ms: _Optional[int] = ..., worker_id: _Optional[str] = ..., epoch: _Optional[int] = ..., role: _Optional[_Union[WorkerRole, str]] = ..., message: _Optional[str] = ..., version: _Optional[int] = ...) -> None: ...

class GetClusterRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetClusterResponse(_message.Message):
    __slots__ = ("cluster",)
    CLUSTER_FIELD_NUMBER: _ClassVar[int]
    cluster: Cluster
    def __init__(self, cluster: _Optional[_Union[Cluster, _Mapping]] = ...) -> None: ...

class ScalePoolRequest(_message.Message):
    __slots__ = ("request_id", "pool", "size", "drain")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    POOL_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    DRAIN_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    pool: WorkerRole
    size: int
    drain: DrainMode
    def __init__(self, request_id: _Optional[str] = ..., pool: _Optional[_Union[WorkerRole, str]] = ..., size: _Optional[int] = ..., drain: _Optional[_Union[DrainMode, str]] = ...) -> None: ...

class ScalePoolResponse(_message.Message):
    __slots__ = ("cluster",)
    CLUSTER_FIELD_NUMBER: _ClassVar[int]
    cluster: Cluster
    def __init__(self, cluster: _Optional[_Union[Cluster, _Mapping]] = ...) -> None: ...

class AutoscalePoolRequest(_message.Message):
    __slots__ = ("request_id", "pool", "autoscaling", "drain")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    POOL_FIELD_NUMBER: _ClassVar[int]
    AUTOSCALING_FIELD_NUMBER: _ClassVar[int]
    DRAIN_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    pool: WorkerRole
    autoscaling: Autoscaling
    drain: DrainMode
    def __init__(self, request_id: _Optional[str] = ..., pool: _Optional[_Union[WorkerRole, str]] = ..., autoscaling: _Optional[_Union[Autoscaling, _Mapping]] = ..., drain: _Optional[_Union[DrainMode, str]] = ...) -> None: ...

class AutoscalePoolResponse(_message.Message):
    __slots__ = ("cluster",)
    CLUSTER_FIELD_NUMBER: _ClassVar[int]
    cluster: Cluster
    def __init__(self, cluster: _Optional[_Union[Cluster, _Mapping]] = ...) -> None: ...

class FlipWorkerRequest(_message.Message):
    __slots__ = ("request_id", "worker_id", "role")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    worker_id: str
    role: WorkerRole
    def __init__(self, request_id: _Optional[str] = ..., worker_id: _Optional[str] = ..., role: _Optional[_Union[WorkerRole, str]] = ...) -> None: ...

class FlipWorkerResponse(_message.Message):
    __slots__ = ("cluster",)
    CLUSTER_FIELD_NUMBER: _ClassVar[int]
    cluster: Cluster
    def __init__(self, cluster: _Optional[_Union[Cluster, _Mapping]] = ...) -> None: ...

class DrainWorkerRequest(_message.Message):
    __slots__ = ("request_id", "worker_id", "drain", "replace")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    DRAIN_FIELD_NUMBER: _ClassVar[int]
    REPLACE_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    worker_id: str
    drain: DrainMode
    replace: bool
    def __init__(self, request_id: _Optional[str] = ..., worker_id: _Optional[str] = ..., drain: _Optional[_Union[DrainMode, str]] = ..., replace: _Optional[bool] = ...) -> None: ...

class DrainWorkerResponse(_message.Message):
    __slots__ = ("cluster",)
    CLUSTER_FIELD_NUMBER: _ClassVar[int]
    cluster: Cluster
    def __init__(self, cluster: _Optional[_Union[Cluster, _Mapping]] = ...) -> None: ...

class RestartWorkersRequest(_message.Message):
    __slots__ = ("request_id", "drain")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    DRAIN_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    drain: DrainMode
    def __init__(self, request_id: _Optional[str] = ..., drain: _Optional[_Union[DrainMode, str]] = ...) -> None: ...

class RestartWorkersResponse(_message.Message):
    __slots__ = ("cluster",)
    CLUSTER_FIELD_NUMBER: _ClassVar[int]
    cluster: Cluster
    def __init__(self, cluster: _Optional[_Union[Cluster, _Mapping]] = ...) -> None: ...

class WatchRequest(_message.Message):
    __slots__ = ("after",)
    AFTER_FIELD_NUMBER: _ClassVar[int]
    after: int
    def __init__(self, after: _Optional[int] = ...) -> None: ...

class WatchResponse(_message.Message):
    __slots__ = ("event",)
    EVENT_FIELD_NUMBER: _ClassVar[int]
    event: Event
    def __init__(self, event: _Optional[_Union[Event, _Mapping]] = ...) -> None: ...

class ExplainRequest(_message.Message):
    __slots__ = ("request_id",)
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    def __init__(self, request_id: _Optional[str] = ...) -> None: ...

class Attempt(_message.Message):
    __slots__ = ("decode_worker", "decode_epoch", "prefill_worker", "began_ms", "ended_ms", "tokens", "outcome")
    DECODE_WORKER_FIELD_NUMBER: _ClassVar[int]
    DECODE_EPOCH_FIELD_NUMBER: _ClassVar[int]
    PREFILL_WORKER_FIELD_NUMBER: _ClassVar[int]
    BEGAN_MS_FIELD_NUMBER: _ClassVar[int]
    ENDED_MS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    decode_worker: str
    decode_epoch: int
    prefill_worker: str
    began_ms: int
    ended_ms: int
    tokens: int
    outcome: str
    def __init__(self, decode_worker: _Optional[str] = ..., decode_epoch: _Optional[int] = ..., prefill_worker: _Optional[str] = ..., began_ms: _Optional[int] = ..., ended_ms: _Optional[int] = ..., tokens: _Optional[int] = ..., outcome: _Optional[str] = ...) -> None: ...

class SequenceStory(_message.Message):
    __slots__ = ("sequence_id", "prompt_tokens", "output_tokens", "state", "first_token_ms", "attempts", "phases")
    SEQUENCE_ID_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    FIRST_TOKEN_MS_FIELD_NUMBER: _ClassVar[int]
    ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    PHASES_FIELD_NUMBER: _ClassVar[int]
    sequence_id: str
    prompt_tokens: int
    output_tokens: int
    state: str
    first_token_ms: int
    attempts: _containers.RepeatedCompositeFieldContainer[Attempt]
    phases: _containers.RepeatedCompositeFieldContainer[_inference_pb2.Timeline.Phase]
    def __init__(self, sequence_id: _Optional[str] = ..., prompt_tokens: _Optional[int] = ..., output_tokens: _Optional[int] = ..., state: _Optional[str] = ..., first_token_ms: _Optional[int] = ..., attempts: _Optional[_Iterable[_Union[Attempt, _Mapping]]] = ..., phases: _Optional[_Iterable[_Union[_inference_pb2.Timeline.Phase, _Mapping]]] = ...) -> None: ...

class ExplainResponse(_message.Message):
    __slots__ = ("sequences",)
    SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    sequences: _containers.RepeatedCompositeFieldContainer[SequenceStory]
    def __init__(self, sequences: _Optional[_Iterable[_Union[SequenceStory, _Mapping]]] = ...) -> None: ...
