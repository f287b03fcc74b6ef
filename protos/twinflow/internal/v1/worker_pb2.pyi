from twinflow.protos.twinflow.v1 import inference_pb2 as _inference_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Role(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ROLE_UNSPECIFIED: _ClassVar[Role]
    ROLE_PREFILL: _ClassVar[Role]
    ROLE_DECODE: _ClassVar[Role]
    ROLE_MIXED: _ClassVar[Role]
ROLE_UNSPECIFIED: Role
ROLE_PREFILL: Role
ROLE_DECODE: Role
ROLE_MIXED: Role

class DescribeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DescribeResponse(_message.Message):
    __slots__ = ("protocol_version", "worker_id", "epoch", "role", "address", "model_fingerprint", "kv_layout", "block_size", "num_blocks", "max_model_len", "max_num_seqs", "vocab_size", "dtype", "pid", "ranks", "lanes")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    MODEL_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    KV_LAYOUT_FIELD_NUMBER: _ClassVar[int]
    BLOCK_SIZE_FIELD_NUMBER: _ClassVar[int]
    NUM_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    MAX_MODEL_LEN_FIELD_NUMBER: _ClassVar[int]
    MAX_NUM_SEQS_FIELD_NUMBER: _ClassVar[int]
    VOCAB_SIZE_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    RANKS_FIELD_NUMBER: _ClassVar[int]
    LANES_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    worker_id: str
    epoch: int
    role: Role
    address: str
    model_fingerprint: str
    kv_layout: str
    block_size: int
    num_blocks: int
    max_model_len: int
    max_num_seqs: int
    vocab_size: int
    dtype: str
    pid: int
    ranks: _containers.RepeatedCompositeFieldContainer[KVRank]
    lanes: LaneInfo
    def __init__(self, protocol_version: _Optional[int] = ..., worker_id: _Optional[str] = ..., epoch: _Optional[int] = ..., role: _Optional[_Union[Role, str]] = ..., address: _Optional[str] = ..., model_fingerprint: _Optional[str] = ..., kv_layout: _Optional[str] = ..., block_size: _Optional[int] = ..., num_blocks: _Optional[int] = ..., max_model_len: _Optional[int] = ..., max_num_seqs: _Optional[int] = ..., vocab_size: _Optional[int] = ..., dtype: _Optional[str] = ..., pid: _Optional[int] = ..., ranks: _Optional[_Iterable[_Union[KVRank, _Mapping]]] = ..., lanes: _Optional[_Union[LaneInfo, _Mapping]] = ...) -> None: ...

class LaneInfo(_message.Message):
    __slots__ = ("wanted", "backend", "description", "reason")
    WANTED_FIELD_NUMBER: _ClassVar[int]
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    wanted: str
    backend: str
    description: str
    reason: str
    def __init__(self, wanted: _Optional[str] = ..., backend: _Optional[str] = ..., description: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class KVRank(_message.Message):
    __slots__ = ("address", "parts")
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    address: str
    parts: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, address: _Optional[str] = ..., parts: _Optional[_Iterable[str]] = ...) -> None: ...

class Peer(_message.Message):
    __slots__ = ("worker_id", "epoch", "address", "ranks")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    RANKS_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    epoch: int
    address: str
    ranks: _containers.RepeatedCompositeFieldContainer[KVRank]
    def __init__(self, worker_id: _Optional[str] = ..., epoch: _Optional[int] = ..., address: _Optional[str] = ..., ranks: _Optional[_Iterable[_Union[KVRank, _Mapping]]] = ...) -> None: ...

class Submission(_message.Message):
    __slots__ = ("request_id", "attempt", "prompt_token_ids", "output_token_ids", "sampling", "max_tokens", "min_tokens", "stop_token_ids", "eos_token_ids", "logprobs", "priority", "cache_salt", "deadline_ms", "prefill", "probe")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MIN_TOKENS_FIELD_NUMBER: _ClassVar[int]
    STOP_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    EOS_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    CACHE_SALT_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_MS_FIELD_NUMBER: _ClassVar[int]
    PREFILL_FIELD_NUMBER: _ClassVar[int]
    PROBE_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    attempt: int
    prompt_token_ids: _containers.RepeatedScalarFieldContainer[int]
    output_token_ids: _containers.RepeatedScalarFieldContainer[int]
    sampling: _inference_pb2.SamplingParams
    max_tokens: int
    min_tokens: int
    stop_token_ids: _containers.RepeatedScalarFieldContainer[int]
    eos_token_ids: _containers.RepeatedScalarFieldContainer[int]
    logprobs: int
    priority: int
    cache_salt: str
    deadline_ms: int
    prefill: Peer
    probe: bool
    def __init__(self, request_id: _Optional[str] = ..., attempt: _Optional[int] = ..., prompt_token_ids: _Optional[_Iterable[int]] = ..., output_token_ids: _Optional[_Iterable[int]] = ..., sampling: _Optional[_Union[_inference_pb2.SamplingParams, _Mapping]] = ..., max_tokens: _Optional[int] = ..., min_tokens: _Optional[int] = ..., stop_token_ids: _Optional[_Iterable[int]] = ..., eos_token_ids: _Optional[_Iterable[int]] = ..., logprobs: _Optional[int] = ..., priority: _Optional[int] = ..., cache_salt: _Optional[str] = ..., deadline_ms: _Optional[int] = ..., prefill: _Optional[_Union[Peer, _Mapping]] = ..., probe: _Optional[bool] = ...) -> None: ...

class Abort(_message.Message):
    __slots__ = ("request_id", "attempt")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    attempt: int
    def __init__(self, request_id: _Optional[str] = ..., attempt: _Optional[int] = ...) -> None: ...

class AttachRequest(_message.Message):
    __slots__ = ("submit", "abort")
    SUBMIT_FIELD_NUMBER: _ClassVar[int]
    ABORT_FIELD_NUMBER: _ClassVar[int]
    submit: Submission
    abort: Abort
    def __init__(self, submit: _Optional[_Union[Submission, _Mapping]] = ..., abort: _Optional[_Union[Abort, _Mapping]] = ...) -> None: ...

class Logprob(_message.Message):
    __slots__ = ("token_id", "logprob")
    TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    token_id: int
    logprob: float
    def __init__(self, token_id: _Optional[int] = ..., logprob: _Optional[float] = ...) -> None: ...

class PositionLogprobs(_message.Message):
    __slots__ = ("sampled", "top")
    SAMPLED_FIELD_NUMBER: _ClassVar[int]
    TOP_FIELD_NUMBER: _ClassVar[int]
    sampled: Logprob
    top: _containers.RepeatedCompositeFieldContainer[Logprob]
    def __init__(self, sampled: _Optional[_Union[Logprob, _Mapping]] = ..., top: _Optional[_Iterable[_Union[Logprob, _Mapping]]] = ...) -> None: ...

class Failure(_message.Message):
    __slots__ = ("code", "message")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    code: str
    message: str
    def __init__(self, code: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...

class Phase(_message.Message):
    __slots__ = ("name", "seconds")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    name: str
    seconds: float
    def __init__(self, name: _Optional[str] = ..., seconds: _Optional[float] = ...) -> None: ...

class RequestOutput(_message.Message):
    __slots__ = ("request_id", "attempt", "token_ids", "logprobs", "finish_reason", "stop_token_id", "failure", "cached_tokens", "phases", "speculation")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    STOP_TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PHASES_FIELD_NUMBER: _ClassVar[int]
    SPECULATION_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    attempt: int
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    logprobs: _containers.RepeatedCompositeFieldContainer[PositionLogprobs]
    finish_reason: _inference_pb2.FinishReason
    stop_token_id: int
    failure: Failure
    cached_tokens: int
    phases: _containers.RepeatedCompositeFieldContainer[Phase]
    speculation: SpeculationStats
    def __init__(self, request_id: _Optional[str] = ..., attempt: _Optional[int] = ..., token_ids: _Optional[_Iterable[int]] = ..., logprobs: _Optional[_Iterable[_Union[PositionLogprobs, _Mapping]]] = ..., finish_reason: _Optional[_Union[_inference_pb2.FinishReason, str]] = ..., stop_token_id: _Optional[int] = ..., failure: _Optional[_Union[Failure, _Mapping]] = ..., cached_tokens: _Optional[int] = ..., phases: _Optional[_Iterable[_Union[Phase, _Mapping]]] = ..., speculation: _Optional[_Union[SpeculationStats, _Mapping]] = ...) -> None: ...

class WorkerStats(_message.Message):
    __slots__ = ("num_running", "num_waiting", "num_receiving", "waiting_tokens", "free_blocks", "total_blocks", "leased_blocks", "prompt_tokens", "generation_tokens", "preemptions", "prefix_queries", "prefix_hits", "handoff_bytes", "handoff_seconds", "handoffs_completed", "handoffs_failed", "digests_refused", "draining", "steps", "ranks", "expert_layers", "speculation", "lanes", "quarantined_blocks", "busy_seconds")
    NUM_RUNNING_FIELD_NUMBER: _ClassVar[int]
    NUM_WAITING_FIELD_NUMBER: _ClassVar[int]
    NUM_RECEIVING_FIELD_NUMBER: _ClassVar[int]
    WAITING_TOKENS_FIELD_NUMBER: _ClassVar[int]
    FREE_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    LEASED_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    GENERATION_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PREEMPTIONS_FIELD_NUMBER: _ClassVar[int]
    PREFIX_QUERIES_FIELD_NUMBER: _ClassVar[int]
    PREFIX_HITS_FIELD_NUMBER: _ClassVar[int]
    HANDOFF_BYTES_FIELD_NUMBER: _ClassVar[int]
    HANDOFF_SECONDS_FIELD_NUMBER: _ClassVar[int]
    HANDOFFS_COMPLETED_FIELD_NUMBER: _ClassVar[int]
    HANDOFFS_FAILED_FIELD_NUMBER: _ClassVar[int]
    DIGESTS_REFUSED_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    RANKS_FIELD_NUMBER: _ClassVar[int]
    EXPERT_LAYERS_FIELD_NUMBER: _ClassVar[int]
    SPECULATION_FIELD_NUMBER: _ClassVar[int]
    LANES_FIELD_NUMBER: _ClassVar[int]
    QUARANTINED_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    BUSY_SECONDS_FIELD_NUMBER: _ClassVar[int]
    num_running: int
    num_waiting: int
    num_receiving: int
    waiting_tokens: int
    free_blocks: int
    total_blocks: int
    leased_blocks: int
    prompt_tokens: int
    generation_tokens: int
    preemptions: int
    prefix_queries: int
    prefix_hits: int
    handoff_bytes: int
    handoff_seconds: float
    handoffs_completed: int
    handoffs_failed: int
    digests_refused: int
    draining: bool
    steps: int
    ranks: int
    expert_layers: _containers.RepeatedCompositeFieldContainer[ExpertLayerStats]
    speculation: SpeculationStats
    lanes: LaneStats
    quarantined_blocks: int
    busy_seconds: float
    def __init__(self, num_running: _Optional[int] = ..., num_waiting: _Optional[int] = ..., num_receiving: _Optional[int] = ..., waiting_tokens: _Optional[int] = ..., free_blocks: _Optional[int] = ..., total_blocks: _Optional[int] = ..., leased_blocks: _Optional[int] = ..., prompt_tokens: _Optional[int] = ..., generation_tokens: _Optional[int] = ..., preemptions: _Optional[int] = ..., prefix_queries: _Optional[int] = ..., prefix_hits: _Optional[int] = ..., handoff_bytes: _Optional[int] = ..., handoff_seconds: _Optional[float] = ..., handoffs_completed: _Optional[int] = ..., handoffs_failed: _Optional[int] = ..., digests_refused: _Optional[int] = ..., draining: _Optional[bool] = ..., steps: _Optional[int] = ..., ranks: _Optional[int] = ..., expert_layers: _Optional[_Iterable[_Union[ExpertLayerStats, _Mapping]]] = ..., speculation: _Optional[_Union[SpeculationStats, _Mapping]] = ..., lanes: _Optional[_Union[LaneStats, _Mapping]] = ..., quarantined_blocks: _Optional[int] = ..., busy_seconds: _Optional[float] = ...) -> None: ...

class LaneStats(_message.Message):
    __slots__ = ("backend", "prefill_processors", "decode_processors", "switches", "prefill_steps", "decode_steps", "prefill_seconds", "decode_seconds", "both_seconds", "failure")
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    PREFILL_PROCESSORS_FIELD_NUMBER: _ClassVar[int]
    DECODE_PROCESSORS_FIELD_NUMBER: _ClassVar[int]
    SWITCHES_FIELD_NUMBER: _ClassVar[int]
    PREFILL_STEPS_FIELD_NUMBER: _ClassVar[int]
    DECODE_STEPS_FIELD_NUMBER: _ClassVar[int]
    PREFILL_SECONDS_FIELD_NUMBER: _ClassVar[int]
    DECODE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    BOTH_SECONDS_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    backend: str
    prefill_processors: int
    decode_processors: int
    switches: int
    prefill_steps: int
    decode_steps: int
    prefill_seconds: float
    decode_seconds: float
    both_seconds: float
    failure: str
    def __init__(self, backend: _Optional[str] = ..., prefill_processors: _Optional[int] = ..., decode_processors: _Optional[int] = ..., switches: _Optional[int] = ..., prefill_steps: _Optional[int] = ..., decode_steps: _Optional[int] = ..., prefill_seconds: _Optional[float] = ..., decode_seconds: _Optional[float] = ..., both_seconds: _Optional[float] = ..., failure: _Optional[str] = ...) -> None: ...

class SpeculationStats(_message.Message):
    __slots__ = ("drafts", "draft_tokens", "accepted_tokens", "accepted_at", "goodput", "draft_kv", "drafter_failed")
    DRAFTS_FIELD_NUMBER: _ClassVar[int]
    DRAFT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_AT_FIELD_NUMBER: _ClassVar[int]
    GOODPUT_FIELD_NUMBER: _ClassVar[int]
    DRAFT_KV_FIELD_NUMBER: _ClassVar[int]
    DRAFTER_FAILED_FIELD_NUMBER: _ClassVar[int]
    drafts: int
    draft_tokens: int
    accepted_tokens: int
    accepted_at: _containers.RepeatedScalarFieldContainer[int]
    goodput: GoodputStats
    draft_kv: DraftKVStats
    drafter_failed: bool
    def __init__(self, drafts: _Optional[int] = ..., draft_tokens: _Optional[int] = ..., accepted_tokens: _Optional[int] = ..., accepted_at: _Optional[_Iterable[int]] = ..., goodput: _Optional[_Union[GoodputStats, _Mapping]] = ..., draft_kv: _Optional[_Union[DraftKVStats, _Mapping]] = ..., drafter_failed: _Optional[bool] = ...) -> None: ...

class DraftKVStats(_message.Message):
    __slots__ = ("handed_over", "failed", "rebuilt")
    HANDED_OVER_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    REBUILT_FIELD_NUMBER: _ClassVar[int]
    handed_over: int
    failed: int
    rebuilt: int
    def __init__(self, handed_over: _Optional[int] = ..., failed: _Optional[int] = ..., rebuilt: _Optional[int] = ...) -> None: ...

class GoodputStats(_message.Message):
    __slots__ = ("speculating_steps", "silent_steps", "probe_steps")
    SPECULATING_STEPS_FIELD_NUMBER: _ClassVar[int]
    SILENT_STEPS_FIELD_NUMBER: _ClassVar[int]
    PROBE_STEPS_FIELD_NUMBER: _ClassVar[int]
    speculating_steps: int
    silent_steps: int
    probe_steps: int
    def __init__(self, speculating_steps: _Optional[int] = ..., silent_steps: _Optional[int] = ..., probe_steps: _Optional[int] = ...) -> None: ...

class ExpertLayerStats(_message.Message):
    __slots__ = ("layer", "steps", "distinct", "loaded_bytes")
    LAYER_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    DISTINCT_FIELD_NUMBER: _ClassVar[int]
    LOADED_BYTES_FIELD_NUMBER: _ClassVar[int]
    layer: int
    steps: int
    distinct: int
    loaded_bytes: int
    def __init__(self, layer: _Optional[int] = ..., steps: _Optional[int] = ..., distinct: _Optional[int] = ..., loaded_bytes: _Optional[int] = ...) -> None: ...

class AttachResponse(_message.Message):
    __slots__ = ("outputs", "stats")
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    STATS_FIELD_NUMBER: _ClassVar[int]
    outputs: _containers.RepeatedCompositeFieldContainer[RequestOutput]
    stats: WorkerStats
    def __init__(self, outputs: _Optional[_Iterable[_Union[RequestOutput, _Mapping]]] = ..., stats: _Optional[_Union[WorkerStats, _Mapping]] = ...) -> None: ...

class TransferOpen(_message.Message):
    __slots__ = ("transfer_id", "submission", "receiver_id", "receiver_epoch", "sender_epoch", "model_fingerprint", "kv_layout", "first_block", "num_blocks", "layers_per_unit", "link_id", "new_link", "parts", "block_step", "draft")
    TRANSFER_ID_FIELD_NUMBER: _ClassVar[int]
    SUBMISSION_FIELD_NUMBER: _ClassVar[int]
    RECEIVER_ID_FIELD_NUMBER: _ClassVar[int]
    RECEIVER_EPOCH_FIELD_NUMBER: _ClassVar[int]
    SENDER_EPOCH_FIELD_NUMBER: _ClassVar[int]
    MODEL_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    KV_LAYOUT_FIELD_NUMBER: _ClassVar[int]
    FIRST_BLOCK_FIELD_NUMBER: _ClassVar[int]
    NUM_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    LAYERS_PER_UNIT_FIELD_NUMBER: _ClassVar[int]
    LINK_ID_FIELD_NUMBER: _ClassVar[int]
    NEW_LINK_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    BLOCK_STEP_FIELD_NUMBER: _ClassVar[int]
    DRAFT_FIELD_NUMBER: _ClassVar[int]
    transfer_id: str
    submission: Submission
    receiver_id: str
    receiver_epoch: int
    sender_epoch: int
    model_fingerprint: str
    kv_layout: str
    first_block: int
    num_blocks: int
    layers_per_unit: int
    link_id: str
    new_link: bool
    parts: _containers.RepeatedScalarFieldContainer[str]
    block_step: int
    draft: bool
    def __init__(self, transfer_id: _Optional[str] = ..., submission: _Optional[_Union[Submission, _Mapping]] = ..., receiver_id: _Optional[str] = ..., receiver_epoch: _Optional[int] = ..., sender_epoch: _Optional[int] = ..., model_fingerprint: _Optional[str] = ..., kv_layout: _Optional[str] = ..., first_block: _Optional[int] = ..., num_blocks: _Optional[int] = ..., layers_per_unit: _Optional[int] = ..., link_id: _Optional[str] = ..., new_link: _Optional[bool] = ..., parts: _Optional[_Iterable[str]] = ..., block_step: _Optional[int] = ..., draft: _Optional[bool] = ...) -> None: ...

class UnitPosted(_message.Message):
    __slots__ = ("unit",)
    UNIT_FIELD_NUMBER: _ClassVar[int]
    unit: int
    def __init__(self, unit: _Optional[int] = ...) -> None: ...

class TransferDone(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class TransferRequest(_message.Message):
    __slots__ = ("open", "posted", "done")
    OPEN_FIELD_NUMBER: _ClassVar[int]
    POSTED_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    open: TransferOpen
    posted: UnitPosted
    done: TransferDone
    def __init__(self, open: _Optional[_Union[TransferOpen, _Mapping]] = ..., posted: _Optional[_Union[UnitPosted, _Mapping]] = ..., done: _Optional[_Union[TransferDone, _Mapping]] = ...) -> None: ...

class UnitReady(_message.Message):
    __slots__ = ("unit", "first_block", "num_blocks", "first_layer", "num_layers", "bytes_per_block", "digests", "part")
    UNIT_FIELD_NUMBER: _ClassVar[int]
    FIRST_BLOCK_FIELD_NUMBER: _ClassVar[int]
    NUM_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    FIRST_LAYER_FIELD_NUMBER: _ClassVar[int]
    NUM_LAYERS_FIELD_NUMBER: _ClassVar[int]
    BYTES_PER_BLOCK_FIELD_NUMBER: _ClassVar[int]
    DIGESTS_FIELD_NUMBER: _ClassVar[int]
    PART_FIELD_NUMBER: _ClassVar[int]
    unit: int
    first_block: int
    num_blocks: int
    first_layer: int
    num_layers: int
    bytes_per_block: int
    digests: _containers.RepeatedScalarFieldContainer[int]
    part: int
    def __init__(self, unit: _Optional[int] = ..., first_block: _Optional[int] = ..., num_blocks: _Optional[int] = ..., first_layer: _Optional[int] = ..., num_layers: _Optional[int] = ..., bytes_per_block: _Optional[int] = ..., digests: _Optional[_Iterable[int]] = ..., part: _Optional[int] = ...) -> None: ...

class TransferResponse(_message.Message):
    __slots__ = ("ready", "prefilled")
    READY_FIELD_NUMBER: _ClassVar[int]
    PREFILLED_FIELD_NUMBER: _ClassVar[int]
    ready: UnitReady
    prefilled: RequestOutput
    def __init__(self, ready: _Optional[_Union[UnitReady, _Mapping]] = ..., prefilled: _Optional[_Union[RequestOutput, _Mapping]] = ...) -> None: ...

class LinkStoreRequest(_message.Message):
    __slots__ = ("link_id", "sender_id", "sender_epoch", "set", "get", "add", "compare_set", "check", "delete")
    class SetValue(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: bytes
        def __init__(self, key: _Optional[str] = ..., value: _Optional[bytes] = ...) -> None: ...
    class GetValue(_message.Message):
        __slots__ = ("key", "timeout_ms")
        KEY_FIELD_NUMBER: _ClassVar[int]
        TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
        key: str
        timeout_ms: int
        def __init__(self, key: _Optional[str] = ..., timeout_ms: _Optional[int] = ...) -> None: ...
    class AddValue(_message.Message):
        __slots__ = ("key", "amount")
        KEY_FIELD_NUMBER: _ClassVar[int]
        AMOUNT_FIELD_NUMBER: _ClassVar[int]
        key: str
        amount: int
        def __init__(self, key: _Optional[str] = ..., amount: _Optional[int] = ...) -> None: ...
    class CompareSet(_message.Message):
        __slots__ = ("key", "expected", "desired")
        KEY_FIELD_NUMBER: _ClassVar[int]
        EXPECTED_FIELD_NUMBER: _ClassVar[int]
        DESIRED_FIELD_NUMBER: _ClassVar[int]
        key: str
        expected: bytes
        desired: bytes
        def __init__(self, key: _Optional[str] = ..., expected: _Optional[bytes] = ..., desired: _Optional[bytes] = ...) -> None: ...
    class CheckKeys(_message.Message):
        __slots__ = ("keys",)
        KEYS_FIELD_NUMBER: _ClassVar[int]
        keys: _containers.RepeatedScalarFieldContainer[str]
        def __init__(self, keys: _Optional[_Iterable[str]] = ...) -> None: ...
    class DeleteKey(_message.Message):
        __slots__ = ("key",)
        KEY_FIELD_NUMBER: _ClassVar[int]
        key: str
        def __init__(self, key: _Optional[str] = ...) -> None: ...
    LINK_ID_FIELD_NUMBER: _ClassVar[int]
    SENDER_ID_FIELD_NUMBER: _ClassVar[int]
    SENDER_EPOCH_FIELD_NUMBER: _ClassVar[int]
    SET_FIELD_NUMBER: _ClassVar[int]
    GET_FIELD_NUMBER: _ClassVar[int]
    ADD_FIELD_NUMBER: _ClassVar[int]
    COMPARE_SET_FIELD_NUMBER: _ClassVar[int]
    CHECK_FIELD_NUMBER: _ClassVar[int]
    DELETE_FIELD_NUMBER: _ClassVar[int]
    link_id: str
    sender_id: str
    sender_epoch: int
    set: LinkStoreRequest.SetValue
    get: LinkStoreRequest.GetValue
    add: LinkStoreRequest.AddValue
    compare_set: LinkStoreRequest.CompareSet
    check: LinkStoreRequest.CheckKeys
    delete: LinkStoreRequest.DeleteKey
    def __init__(self, link_id: _Optional[str] = ..., sender_id: _Optional[str] = ..., sender_epoch: _Optional[int] = ..., set: _Optional[_Union[LinkStoreRequest.SetValue, _Mapping]] = ..., get: _Optional[_Union[LinkStoreRequest.GetValue, _Mapping]] = ..., add: _Optional[_Union[LinkStoreRequest.AddValue, _Mapping]] = ..., compare_set: _Optional[_Union[LinkStoreRequest.CompareSet, _Mapping]] = ..., check: _Optional[_Union[LinkStoreRequest.CheckKeys, _Mapping]] = ..., delete: _Optional[_Union[LinkStoreRequest.DeleteKey, _Mapping]] = ...) -> None: ...

class LinkStoreResponse(_message.Message):
    __slots__ = ("value", "number", "found")
    VALUE_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    FOUND_FIELD_NUMBER: _ClassVar[int]
    value: bytes
    number: int
    found: bool
    def __init__(self, value: _Optional[bytes] = ..., number: _Optional[int] = ..., found: _Optional[bool] = ...) -> None: ...

class DrainRequest(_message.Message):
    __slots__ = ("timeout_ms",)
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    timeout_ms: int
    def __init__(self, timeout_ms: _Optional[int] = ...) -> None: ...

class DrainResponse(_message.Message):
    __slots__ = ("aborted",)
    ABORTED_FIELD_NUMBER: _ClassVar[int]
    aborted: int
    def __init__(self, aborted: _Optional[int] = ...) -> None: ...
