from twinflow.protos.twinflow.internal.v1 import worker_pb2 as _worker_pb2
from twinflow.protos.twinflow.v1 import admin_pb2 as _admin_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Duty(_message.Message):
    __slots__ = ("worker_id", "epoch", "address", "role", "leaving", "moving")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    LEAVING_FIELD_NUMBER: _ClassVar[int]
    MOVING_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    epoch: int
    address: str
    role: _worker_pb2.Role
    leaving: bool
    moving: bool
    def __init__(self, worker_id: _Optional[str] = ..., epoch: _Optional[int] = ..., address: _Optional[str] = ..., role: _Optional[_Union[_worker_pb2.Role, str]] = ..., leaving: _Optional[bool] = ..., moving: _Optional[bool] = ...) -> None: ...

class Outcome(_message.Message):
    __slots__ = ("request_id", "failure")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    failure: _worker_pb2.Failure
    def __init__(self, request_id: _Optional[str] = ..., failure: _Optional[_Union[_worker_pb2.Failure, _Mapping]] = ...) -> None: ...

class SyncRequest(_message.Message):
    __slots__ = ("table_version", "duties", "missing", "cluster", "events", "outcomes")
    TABLE_VERSION_FIELD_NUMBER: _ClassVar[int]
    DUTIES_FIELD_NUMBER: _ClassVar[int]
    MISSING_FIELD_NUMBER: _ClassVar[int]
    CLUSTER_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    OUTCOMES_FIELD_NUMBER: _ClassVar[int]
    table_version: int
    duties: _containers.RepeatedCompositeFieldContainer[Duty]
    missing: _containers.RepeatedScalarFieldContainer[str]
    cluster: _admin_pb2.Cluster
    events: _containers.RepeatedCompositeFieldContainer[_admin_pb2.Event]
    outcomes: _containers.RepeatedCompositeFieldContainer[Outcome]
    def __init__(self, table_version: _Optional[int] = ..., duties: _Optional[_Iterable[_Union[Duty, _Mapping]]] = ..., missing: _Optional[_Iterable[str]] = ..., cluster: _Optional[_Union[_admin_pb2.Cluster, _Mapping]] = ..., events: _Optional[_Iterable[_Union[_admin_pb2.Event, _Mapping]]] = ..., outcomes: _Optional[_Iterable[_Union[Outcome, _Mapping]]] = ...) -> None: ...

class Contact(_message.Message):
    __slots__ = ("worker_id", "epoch", "up", "problem", "load")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    UP_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    epoch: int
    up: bool
    problem: str
    load: Load
    def __init__(self, worker_id: _Optional[str] = ..., epoch: _Optional[int] = ..., up: _Optional[bool] = ..., problem: _Optional[str] = ..., load: _Optional[_Union[Load, _Mapping]] = ...) -> None: ...

class Load(_message.Message):
    __slots__ = ("running", "waiting", "waiting_tokens", "full", "busy_seconds", "prompt_tokens", "receiving")
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    WAITING_TOKENS_FIELD_NUMBER: _ClassVar[int]
    FULL_FIELD_NUMBER: _ClassVar[int]
    BUSY_SECONDS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    RECEIVING_FIELD_NUMBER: _ClassVar[int]
    running: int
    waiting: int
    waiting_tokens: int
    full: float
    busy_seconds: float
    prompt_tokens: int
    receiving: int
    def __init__(self, running: _Optional[int] = ..., waiting: _Optional[int] = ..., waiting_tokens: _Optional[int] = ..., full: _Optional[float] = ..., busy_seconds: _Optional[float] = ..., prompt_tokens: _Optional[int] = ..., receiving: _Optional[int] = ...) -> None: ...

class LatencyCounts(_message.Message):
    __slots__ = ("width", "ttft", "gaps")
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    TTFT_FIELD_NUMBER: _ClassVar[int]
    GAPS_FIELD_NUMBER: _ClassVar[int]
    width: float
    ttft: _containers.RepeatedScalarFieldContainer[int]
    gaps: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, width: _Optional[float] = ..., ttft: _Optional[_Iterable[int]] = ..., gaps: _Optional[_Iterable[int]] = ...) -> None: ...

class Command(_message.Message):
    __slots__ = ("scale", "flip", "drain", "restart", "autoscale")
    SCALE_FIELD_NUMBER: _ClassVar[int]
    FLIP_FIELD_NUMBER: _ClassVar[int]
    DRAIN_FIELD_NUMBER: _ClassVar[int]
    RESTART_FIELD_NUMBER: _ClassVar[int]
    AUTOSCALE_FIELD_NUMBER: _ClassVar[int]
    scale: _admin_pb2.ScalePoolRequest
    flip: _admin_pb2.FlipWorkerRequest
    drain: _admin_pb2.DrainWorkerRequest
    restart: _admin_pb2.RestartWorkersRequest
    autoscale: _admin_pb2.AutoscalePoolRequest
    def __init__(self, scale: _Optional[_Union[_admin_pb2.ScalePoolRequest, _Mapping]] = ..., flip: _Optional[_Union[_admin_pb2.FlipWorkerRequest, _Mapping]] = ..., drain: _Optional[_Union[_admin_pb2.DrainWorkerRequest, _Mapping]] = ..., restart: _Optional[_Union[_admin_pb2.RestartWorkersRequest, _Mapping]] = ..., autoscale: _Optional[_Union[_admin_pb2.AutoscalePoolRequest, _Mapping]] = ...) -> None: ...

class SyncResponse(_message.Message):
    __slots__ = ("problem", "contacts", "commands", "latencies")
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    CONTACTS_FIELD_NUMBER: _ClassVar[int]
    COMMANDS_FIELD_NUMBER: _ClassVar[int]
    LATENCIES_FIELD_NUMBER: _ClassVar[int]
    problem: _worker_pb2.Failure
    contacts: _containers.RepeatedCompositeFieldContainer[Contact]
    commands: _containers.RepeatedCompositeFieldContainer[Command]
    latencies: LatencyCounts
    def __init__(self, problem: _Optional[_Union[_worker_pb2.Failure, _Mapping]] = ..., contacts: _Optional[_Iterable[_Union[Contact, _Mapping]]] = ..., commands: _Optional[_Iterable[_Union[Command, _Mapping]]] = ..., latencies: _Optional[_Union[LatencyCounts, _Mapping]] = ...) -> None: ...
