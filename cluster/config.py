"""What `twinflow serve` can be told: one field per flag, one sentence per field.

The sentence under a field is its help text, and its value is its default or says where that is
written. Fields are checked one by one and against each other here, all complaints at once; where
the values come from (flags, environment, file) is `twinflow.cluster.cli.sources`, and what an
unset memory or thread count comes down to on a machine is the launcher's. Nothing here reads a
file, opens a socket or looks at the machine.
"""

import math
import os
from enum import Enum
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from twinflow.cluster.dispatch.admission import AdmissionLimits
from twinflow.cluster.flag_values import (
    LOCAL,
    AdmissionName,
    Count,
    Keys,
    Memory,
    Milliseconds,
    Names,
    OrderName,
    PoolSize,
    Port,
    Ranks,
    SchedulerName,
    Seconds,
    Slack,
    Whole,
    default_of,
    host_name,
    is_wildcard,
    lower,
    power_of_two,
    ray_address,
    speculation,
    transform_name,
)
from twinflow.parallel.latent.kind import LatentKind
from twinflow.parallel.partition.backends.names import NONE
from twinflow.parallel.partition.control import DECODE_SLACK, PREFILL_SLACK
from twinflow.runtime.config import EngineConfig
from twinflow.runtime.speculative.config import SpeculativeConfig
from twinflow.workers.role import Role


class Group(Enum):
    """The headings of `twinflow serve --help`."""

    MODEL = "Model"
    POOLS = "Pools"
    DOORS = "Front doors"
    ENGINE = "Engine"
    SCHEDULING = "Scheduling"
    SPECULATION = "Speculative decoding"
    LATENTS = "Latent attention (MLA)"
    MEMORY = "KV cache"
    LIMITS = "Queues and deadlines"
    PROCESS = "Processes"


class ServeConfig(BaseModel):
    """The configuration of one `twinflow serve`, checked and complete."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        validate_default=True,
        use_attribute_docstrings=True,
        hide_input_in_errors=True,
    )

    model: Annotated[str, Group.MODEL, Field(min_length=1)]
    """Directory of the model: config.json, safetensors and tokenizer.json, as Hugging Face lays
    them out."""

    served_model_name: Annotated[Names, Group.MODEL] = ()
    """Names that requests may use for the model, the first being the one answers carry; by default
    the directory's name."""

    dtype: Annotated[Literal["auto", "float32", "bfloat16"], Group.MODEL] = "auto"
    """Number format of weights, activations and KV cache; auto takes bfloat16 if the checkpoint has
    it and the processor can compute with it, else float32."""

    device: Annotated[Literal["auto", "cpu", "cuda"], Group.MODEL] = "auto"
    """What the workers compute on, cuda giving each rank a GPU of its own; auto takes cuda if torch
    sees a GPU."""

    cpu_kernels: Annotated[Literal["auto", "native", "torch"], Group.MODEL] = "auto"
    """What computes on a CPU: native kernels, compiled on the first start, or torch; auto takes
    native ones where they work, except for bfloat16 on processors that multiply bfloat16."""

    max_model_len: Annotated[Count | None, Group.MODEL] = None
    """Longest sequence in tokens, prompt and output together, such as 4096 or 32k; by default what
    the model was made for."""

    prefill: Annotated[PoolSize, Group.POOLS] = 1
    """Workers that only compute prompts and hand their KV cache on."""

    decode: Annotated[PoolSize, Group.POOLS] = 1
    """Workers that only continue prompts computed elsewhere."""

    mixed: Annotated[PoolSize, Group.POOLS] = 0
    """Workers that do both; when given, the two other pools are empty unless given too."""

    tensor_parallel_size: Annotated[Ranks, Group.POOLS] = 1
    """Ranks that compute the model of a worker together, each in a process, and on a GPU, of its
    own."""

    prefill_tensor_parallel_size: Annotated[Ranks | None, Group.POOLS] = None
    """Ranks of a prefill worker; by default --tensor-parallel-size."""

    decode_tensor_parallel_size: Annotated[Ranks | None, Group.POOLS] = None
    """Ranks of a decode worker; by default --tensor-parallel-size."""

    enable_expert_parallel: Annotated[bool, Group.POOLS] = False
    """Give each rank whole experts of a mixture, instead of a part of every expert."""

    api_key: Annotated[Keys, Group.DOORS] = ()
    """Keys of which HTTP and gRPC requests must carry one; better given as TWINFLOW_API_KEY
    (comma-separated), because other users of the machine can read command lines."""

    admin_token: Annotated[Keys, Group.DOORS] = ()
    """Tokens of which operators' calls (twinflow admin) must carry one, and without which they are
    refused; better given as TWINFLOW_ADMIN_TOKEN (comma-separated) or in the config file."""

    insecure: Annotated[bool, Group.DOORS] = False
    """Allow listening on every interface without an API key, and joining a Ray cluster without
    tokens."""

    internal_tls: Annotated[str | None, Group.PROCESS] = None
    """Directory of ca.crt, tls.crt and tls.key, the same on every node, with which gateway and
    workers prove themselves to each other and encrypt their calls, KV blocks excepted; renewed
    files are used without a restart."""

    host: Annotated[str, AfterValidator(host_name), Group.DOORS] = "127.0.0.1"
    """Address that HTTP and gRPC listen on; 0.0.0.0 needs an API key."""

    port: Annotated[Port, Group.DOORS] = 8000
    """HTTP port; 0 takes a free one."""

    grpc_port: Annotated[Port, Group.DOORS] = 50051
    """gRPC port; 0 takes a free one."""

    speculative_config: Annotated[
        SpeculativeConfig | None, BeforeValidator(speculation), Group.SPECULATION
    ] = None
    """How next tokens are guessed, as JSON with vLLM's names, such as {"method": "ngram",
    "num_speculative_tokens": 4}; methods are ngram, suffix, token_recycling, and draft_model and
    easyspec, which need the directory of a small "model"; tokens stay what they are."""

    max_num_seqs: Annotated[Count, Group.ENGINE] = default_of(EngineConfig, "max_num_seqs")
    """Requests that one worker runs at the same time."""

    max_num_batched_tokens: Annotated[Count | None, Group.ENGINE] = None
    """Tokens that one worker computes in a step (longer prompts are computed in chunks); by default
    1024, or a whole prompt of up to 8192 with layered prefill."""

    enable_prefix_caching: Annotated[bool, Group.ENGINE] = True
    """Reuse the KV cache of prompts that begin alike."""

    scheduler: Annotated[SchedulerName, Group.SCHEDULING] = "auto"
    """How prompts share steps with decoding requests: chunked, in chunks; layered, one group of
    layers per step; laps, short and long ones apart; auto takes layered for models with experts and
    chunked for others."""

    prefill_scheduler: Annotated[SchedulerName | None, Group.SCHEDULING] = None
    """Scheduler of prefill workers; by default --scheduler."""

    decode_scheduler: Annotated[SchedulerName | None, Group.SCHEDULING] = None
    """Scheduler of decode workers; by default --scheduler."""

    prefill_order: Annotated[OrderName, Group.SCHEDULING] = "fcfs"
    """Who is prefilled first within a priority: fcfs, whoever came first; spf, the shortest prompt,
    which may overtake those that came up to the TTFT objective (5 s if there is none) before it."""

    prefill_prefill_order: Annotated[OrderName | None, Group.SCHEDULING] = None
    """Prefill order of prefill workers; by default --prefill-order."""

    decode_prefill_order: Annotated[OrderName | None, Group.SCHEDULING] = None
    """Prefill order of decode workers, for prompts that they compute themselves; by default
    --prefill-order."""

    admission: Annotated[AdmissionName, Group.SCHEDULING] = "aggressive"
    """When a request may come in: aggressive, if its prompt fits; conservative, if all outputs fit
    at their longest; past-future, if outputs as long as the latest ones fit."""

    prefill_admission: Annotated[AdmissionName | None, Group.SCHEDULING] = None
    """Admission policy of prefill workers; by default --admission."""

    decode_admission: Annotated[AdmissionName | None, Group.SCHEDULING] = None
    """Admission policy of decode workers; by default --admission."""

    tbt_objective_ms: Annotated[Milliseconds | None, Group.SCHEDULING] = None
    """Longest wanted time between two tokens of a request; sizes chunks and layer groups once step
    times are known (twinflow profile)."""

    ttft_objective_ms: Annotated[Milliseconds | None, Group.SCHEDULING] = None
    """Longest wanted time to a first token; bounds how long spf and laps put a prompt off."""

    lanes: Annotated[Literal["none", "cores", "greenctx", "auto"], Group.SCHEDULING] = NONE
    """Whether mixed workers compute prompts and decode at the same time, each on its own part of
    the device: cores, on processor cores; greenctx, on multiprocessors of an NVIDIA GPU; auto, on
    what suits the device; where that is not possible there is one lane, and the log says why."""

    prefill_slack: Annotated[Slack, Group.SCHEDULING] = PREFILL_SLACK
    """How long a prefill step may take beside decoding, in times of what it takes alone; divides
    the device of two lanes once step times are known (twinflow profile)."""

    decode_slack: Annotated[Slack, Group.SCHEDULING] = DECODE_SLACK
    """How long a decode step may take beside prefill, in times of what it takes alone."""

    lane_decisions: Annotated[str | None, Group.SCHEDULING] = None
    """Directory in which each worker with two lanes writes every decision about its device, one a
    line."""

    seed: Annotated[Annotated[Whole, Field(ge=0, le=2**64 - 1)] | None, Group.ENGINE] = None
    """Number from which the seeds of requests without one are drawn; by default they differ from
    run to run."""

    mla_parallel: Annotated[LatentKind, Group.LATENTS] = "replicated"
    """How the ranks of a decode worker share latents: replicated, every rank caches all; dcp, each
    caches some blocks, exactly; tpla, each caches some columns, which approximates attention."""

    mla_shards: Annotated[Annotated[Whole, Field(ge=1, le=1024)] | None, Group.LATENTS] = None
    """Ranks that share one cache with dcp and tpla, a divisor of the ranks of a worker; by default
    all ranks of a decode or mixed worker."""

    tpla_transform: Annotated[
        Annotated[str, AfterValidator(transform_name)] | None, Group.LATENTS
    ] = None
    """Basis in which tpla slices latents: what twinflow calibrate tpla has measured, such as none,
    hadamard, pca, joint, joint+64 or joint-exact1, or the file of a transform; by default
    joint-exact1, and unused by a single shard, which slices nothing."""

    force: Annotated[bool, Group.LATENTS] = False
    """Serve with tpla although nobody has measured what it costs on this model: with none or
    hadamard, which need no calibration, or with a transform whose file is there."""

    block_size: Annotated[
        Whole, Field(ge=1, le=1024), AfterValidator(power_of_two), Group.MEMORY
    ] = default_of(EngineConfig, "block_size")
    """Token slots of a KV block, a power of two; the same in all pools."""

    num_kv_blocks: Annotated[Count | None, Group.MEMORY] = None
    """KV blocks of each worker, of which every rank holds its part, instead of an amount of
    memory."""

    kv_cache_memory: Annotated[Memory | None, Group.MEMORY] = None
    """Memory for the KV cache of each rank of a worker, such as 4GiB; by default 40 % of the memory
    that is free, shared among all ranks and at most 1GiB each on a CPU."""

    max_num_queued_reqs: Annotated[Count, Group.LIMITS] = default_of(
        AdmissionLimits, "max_requests"
    )
    """Requests that may wait for their first token; one more is answered with 429."""

    max_num_queued_tokens: Annotated[Count, Group.LIMITS] = default_of(
        AdmissionLimits, "max_tokens"
    )
    """Prompt tokens that may wait for their first token; beyond that the answer is 429."""

    max_key_queued_reqs: Annotated[Count | None, Group.LIMITS] = None
    """Requests of one API key that may wait for their first token; one more is answered with
    429."""

    max_key_queued_tokens: Annotated[Count | None, Group.LIMITS] = None
    """Prompt tokens of one API key that may wait for their first token; beyond that, 429."""

    fair_tokens: Annotated[Count | None, Group.LIMITS] = None
    """Prompt tokens that workers have without a first token, while the rest waits and API keys take
    turns that are fair in tokens; without it, every request is sent on at once."""

    max_ttft_ms: Annotated[Milliseconds | None, Group.LIMITS] = None
    """Longest time to a first token that is promised: a request that would wait longer, at the pace
    of the latest ones, is answered with 429 at once; by default only its own deadline counts."""

    kv_transfer_timeout: Annotated[Seconds, Field(gt=0), Group.LIMITS] = 10.0
    """Seconds that each wait of a KV hand-off may take before the prompt is computed where it is
    needed."""

    kv_link_idle_timeout: Annotated[Seconds, Field(ge=1), Group.LIMITS] = 60.0
    """Seconds for which a connection between two workers is kept without a KV hand-off."""

    shutdown_timeout: Annotated[Seconds, Group.LIMITS] = 30.0
    """Seconds that running requests get to finish after Ctrl-C or SIGTERM, before they end with
    an error."""

    launcher: Annotated[Literal["ray", "local"], Group.PROCESS] = "ray"
    """What starts and watches the workers: Ray actors, or plain processes of this machine."""

    address: Annotated[str, AfterValidator(ray_address), Group.PROCESS] = LOCAL
    """Ray cluster that runs the workers: local starts one on this machine, auto joins the one that
    this machine is a node of, HOST:PORT the one with its head there."""

    threads_per_worker: Annotated[Annotated[Whole, Field(ge=1, le=1024)] | None, Group.PROCESS] = (
        None
    )
    """CPU threads of each rank of a worker; by default the cores are shared out evenly."""

    standby: Annotated[Annotated[Whole, Field(ge=0, le=64)], Group.PROCESS] = 0
    """Processes that wait with their code loaded, so that a worker that replaces another one serves
    seconds sooner; only with --launcher local, on CPUs, and each takes some 250 MiB."""

    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], BeforeValidator(lower), Group.PROCESS
    ] = "info"
    """Least severe log lines that are written."""

    fault_points: Annotated[str | None, Group.PROCESS] = None
    """Directory in which workers look for orders to fail, for tests of faults; twinflow chaos puts
    them there."""

    @property
    def model_names(self) -> tuple[str, ...]:
        """The names requests may use, the one that answers carry first; at least one."""
        return self.served_model_name or (Path(os.path.abspath(self.model)).name,)

    @property
    def worker_roles(self) -> list[Role]:
        """The role of each worker, pool by pool."""
        return [role for role in get_args(Role) for _ in range(getattr(self, role))]

    def ranks(self, role: Role) -> int:
        """How many ranks a worker of a pool has."""
        own = {
            "prefill": self.prefill_tensor_parallel_size,
            "decode": self.decode_tensor_parallel_size,
        }
        return own.get(role) or self.tensor_parallel_size

    @property
    def latent_shards(self) -> int:
        """How many ranks share one cache of latents; 1 if each has its own."""
        if self.mla_parallel == "replicated":
            return 1
        sharing: tuple[Role, ...] = ("decode", "mixed")
        sizes = (self.ranks(role) for role in sharing if getattr(self, role))
        # Pools may differ: what all of them can be divided by.
        return self.mla_shards or math.gcd(*sizes)

    def scheduler_of(self, role: Role) -> str:
        """The scheduler of the workers of a pool."""
        own = {"prefill": self.prefill_scheduler, "decode": self.decode_scheduler}
        return own.get(role) or self.scheduler

    def prefill_order_of(self, role: Role) -> str:
        """In which order the workers of a pool compute prompts."""
        own = {"prefill": self.prefill_prefill_order, "decode": self.decode_prefill_order}
        return own.get(role) or self.prefill_order

    def admission_of(self, role: Role) -> str:
        """The admission policy of the workers of a pool."""
        own = {"prefill": self.prefill_admission, "decode": self.decode_admission}
        return own.get(role) or self.admission

    @property
    def api_keys(self) -> tuple[str, ...]:
        """The keys in clear, for the two front doors only; empty when no key is needed."""
        return tuple(key.get_secret_value() for key in self.api_key)

    @model_validator(mode="before")
    @classmethod
    def _mixed_replaces_the_other_pools(cls, given: dict[str, object]) -> dict[str, object]:
        if given.get("mixed", 0) in (0, "0"):
            return given
        return {"prefill": 0, "decode": 0, **given}

    @field_validator("mixed")
    @classmethod
    def _someone_does_each_phase(cls, mixed: int, info: ValidationInfo) -> int:
        prefill, decode = info.data.get("prefill"), info.data.get("decode")
        if mixed == 0 and 0 in (prefill, decode):
            raise PydanticCustomError(
                "empty_pool",
                "{prefill} prefill and {decode} decode workers cannot serve without a mixed one: "
                "give both pools a worker, or --mixed 1",
                {"prefill": prefill, "decode": decode, "field": "prefill" if decode else "decode"},
            )
        return mixed

    @field_validator(
        "prefill_tensor_parallel_size",
        "decode_tensor_parallel_size",
        "prefill_scheduler",
        "decode_scheduler",
        "prefill_prefill_order",
        "decode_prefill_order",
        "prefill_admission",
        "decode_admission",
    )
    @classmethod
    def _settings_of_a_pool_that_is_there(cls, value: object, info: ValidationInfo) -> object:
        pool = str(info.field_name).partition("_")[0]
        if value is not None and info.data.get(pool) == 0:
            raise ValueError(f"there is no {pool} worker: give --{pool} N too, or leave it out")
        return value

    @field_validator("lanes")
    @classmethod
    def _lanes_are_for_mixed_workers(cls, lanes: str, info: ValidationInfo) -> str:
        if lanes != NONE and info.data.get("mixed") == 0:
            raise ValueError("there is no mixed worker: give --mixed N too, or leave it out")
        return lanes

    @field_validator("served_model_name")
    @classmethod
    def _names_differ(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(names)) < len(names):
            raise ValueError("names a model twice")
        return names

    @field_validator("mla_shards")
    @classmethod
    def _only_caches_that_are_shared_have_shards(
        cls, shards: int | None, info: ValidationInfo
    ) -> int | None:
        if info.data.get("mla_parallel") == "replicated" and (shards or 1) > 1:
            raise ValueError("only --mla-parallel dcp and tpla have shards")
        return shards

    @field_validator("tpla_transform", "force")
    @classmethod
    def _only_tpla_approximates(cls, given: object, info: ValidationInfo) -> object:
        if given and info.data.get("mla_parallel", "tpla") != "tpla":
            raise ValueError(
                "only --mla-parallel tpla slices latents: give it too, or leave this out"
            )
        return given

    @field_validator("host")
    @classmethod
    def _wildcard_needs_a_key(cls, host: str, info: ValidationInfo) -> str:
        guarded = info.data.get("api_key", True) or info.data.get("insecure", True)
        if is_wildcard(host) and not guarded:
            raise ValueError(
                "listens on every interface without a key: set TWINFLOW_API_KEY, or --insecure "
                "if everyone who can reach the machine may use it"
            )
        return host

    @field_validator("address")
    @classmethod
    def _only_ray_has_clusters(cls, address: str, info: ValidationInfo) -> str:
        if address != LOCAL and info.data.get("launcher") == "local":
            raise ValueError("--launcher local starts processes of this machine only")
        return address

    @field_validator("standby")
    @classmethod
    def _only_processes_stand_by(cls, standby: int, info: ValidationInfo) -> int:
        if standby and info.data.get("launcher") == "ray":
            raise ValueError("Ray starts processes by itself: give --launcher local too")
        return standby

    @field_validator("grpc_port")
    @classmethod
    def _ports_differ(cls, grpc_port: int, info: ValidationInfo) -> int:
        if grpc_port and grpc_port == info.data.get("port"):
            raise ValueError("HTTP and gRPC need a port each, and --port is the same")
        return grpc_port

    @field_validator("max_num_batched_tokens")
    @classmethod
    def _every_sequence_decodes(cls, tokens: int | None, info: ValidationInfo) -> int | None:
        sequences = info.data.get("max_num_seqs", 0)
        speculation = info.data.get("speculative_config")
        proposed = speculation.num_speculative_tokens if speculation else 0
        if tokens is not None and tokens < sequences * (1 + proposed):
            times = f" times 1 + num_speculative_tokens ({proposed})" if proposed else ""
            raise ValueError(
                f"must be at least --max-num-seqs ({sequences}){times}: every running request "
                "decodes in every step"
            )
        return tokens

    @field_validator("kv_cache_memory")
    @classmethod
    def _memory_or_blocks(cls, size: int | None, info: ValidationInfo) -> int | None:
        if size is not None and info.data.get("num_kv_blocks") is not None:
            raise ValueError("says the same as --num-kv-blocks: give one of the two")
        return size
