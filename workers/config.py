"""Configuration of one worker process, and how it travels to it.

A launcher builds it, sends it as JSON and the worker reads it back: nothing is inherited from the
environment, nothing is unpickled.
"""

from pathlib import Path

import msgspec

from twinflow.parallel.latent.kind import LatentKind
from twinflow.parallel.partition.backends.names import NONE
from twinflow.parallel.partition.control import DECODE_SLACK, PREFILL_SLACK
from twinflow.runtime.host_memory import MemoryShare
from twinflow.runtime.speculative.config import SpeculativeConfig
from twinflow.workers.role import Role


class WorkerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything a worker needs to know before it starts.

    Attributes:
        worker_id: unique within the deployment.
        epoch: grows with every start of this worker id; messages of older lives are refused.
        role: which flow requests are sent here for; every worker can do both.
        model: directory of the checkpoint.
        dtype: `auto` or a torch dtype name.
        device: `cpu` or `cuda:N`, N counting the devices that the process sees.
        cpu_kernels: what computes on a CPU: `auto`, `native` or `torch`.
        max_model_len: longest sequence; None for the model's own limit.
        max_num_seqs: requests that hold blocks at the same time.
        max_num_batched_tokens: rows of a step; None for what suits the scheduler.
        block_size: token slots of a KV block.
        num_kv_blocks: KV blocks; None derives them from `kv_cache_memory`.
        kv_cache_memory: bytes for KV blocks.
        enable_prefix_caching: reuse the KV of prompts that begin alike.
        scheduler: scheduling policy; `auto` takes the one that suits the model.
        prefill_order: order in which prompts are computed.
        admission: policy that says when memory lasts for one more request.
        tbt_objective: longest wanted time between two tokens, in seconds; None for none.
        ttft_objective: longest wanted time to a first token, in seconds; None for none.
        tensor_parallel_size: ranks that compute the model together, each in a process.
        expert_parallel: each rank holds whole experts, not a part of every expert.
        rank: which of them this is; rank 0 serves, the others follow it.
        kv_parts: parts that the deployment cuts the KV of a token into, so that its workers can
            hand it over: the ranks of its largest worker.
        mla_parallel: how the ranks of the deployment's decode workers share latents.
        mla_shards: ranks that share one cache of latents.
        tpla_transform: basis of the latents: `none`, `hadamard` or the file of a transform.
        leader_address: Unix socket on which rank 0 meets the others, new in every life of the
            worker; unused where there is one rank.
        threads: torch threads; None leaves torch's choice.
        host: address that the worker's gRPC server and its links bind to.
        token: shared secret that every internal call carries.
        tls: directory of the certificates of internal calls, see
            `twinflow.workers.certificates`; None for clear text.
        kv_transfer_timeout_s: longest wait for the next sign of life in a hand-off.
        link_idle_s: how long a connection to another worker is kept without a hand-off.
        lease_s: how long blocks are kept for a decode worker that says nothing.
        max_session_backlog: messages a gateway may leave unread before its session is cut.
        host_memory: of the host's memory, what a worker on the CPU may take; None for all that is
            free.
        speculative_config: how next tokens are guessed; None for not at all.
        lanes: what divides the device between prompts and decoding; mixed workers only.
        first_core: of the cores that the process may use, the first one for its lanes; it counts
            as many as it has threads.
        prefill_slack: what a prefill step may take beside decoding, in times of what it takes
            alone.
        decode_slack: what a decode step may take beside prefill, likewise.
        lane_decisions: directory in which the worker writes how it divides its device.
        fault_points: directory of orders to fail; see `twinflow.workers.fault_points`.
    """

    worker_id: str
    epoch: int
    role: Role
    model: Path
    dtype: str = "auto"
    device: str = "cpu"
    cpu_kernels: str = "auto"
    max_model_len: int | None = None
    max_num_seqs: int = 64
    max_num_batched_tokens: int | None = None
    block_size: int = 16
    num_kv_blocks: int | None = None
    kv_cache_memory: int = 1 << 30
    enable_prefix_caching: bool = True
    scheduler: str = "auto"
    prefill_order: str = "fcfs"
    admission: str = "aggressive"
    tbt_objective: float | None = None
    ttft_objective: float | None = None
    tensor_parallel_size: int = 1
    expert_parallel: bool = False
    rank: int = 0
    kv_parts: int = 1
    mla_parallel: LatentKind = "replicated"
    mla_shards: int = 1
    tpla_transform: str = "none"
    leader_address: str = ""
    threads: int | None = None
    host: str = "127.0.0.1"
    token: str = ""
    tls: Path | None = None
    kv_transfer_timeout_s: float = 10.0
    link_idle_s: float = 60.0
    lease_s: float = 30.0
    max_session_backlog: int = 4096
    host_memory: MemoryShare | None = None
    speculative_config: SpeculativeConfig | None = None
    lanes: str = NONE
    first_core: int = 0
    prefill_slack: float = PREFILL_SLACK
    decode_slack: float = DECODE_SLACK
    lane_decisions: Path | None = None
    fault_points: Path | None = None

    @property
    def process_name(self) -> str:
        """Of this rank of the worker, unique within the deployment."""
        return self.worker_id if self.rank == 0 else f"{self.worker_id}-rank{self.rank}"

    def encode(self) -> bytes:
        """As JSON, on one line."""
        return msgspec.json.encode(self, enc_hook=str)

    @classmethod
    def decode(cls, data: bytes) -> "WorkerConfig":
        """From JSON; unknown or ill-typed fields raise msgspec.ValidationError."""
        return msgspec.json.decode(data, type=cls, dec_hook=lambda kind, value: kind(value))
