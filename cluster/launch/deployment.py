"""Which processes a configuration means, and how each is configured. Pure: starts nothing.

What workers share is settled here for all of them together: the device, the cores, the memory.
"""

import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from twinflow.cluster.config import ServeConfig
from twinflow.cluster.gateway.config import GatewayConfig
from twinflow.cluster.launch.base import ServiceSpec
from twinflow.cluster.launch.machine import Gpus, Machine
from twinflow.protos.errors import ConfigError
from twinflow.runtime.host_memory import MemoryShare
from twinflow.workers.config import WorkerConfig
from twinflow.workers.role import Role

# Of the memory that is free at start, what all KV caches on a machine or GPU take together by
# default; and what is enough for a worker on a CPU, where every page of it is touched at start.
_KV_SHARE = 0.4
_KV_ENOUGH = 1 << 30


@dataclass(frozen=True, slots=True)
class WorkerPlan:
    """A worker to start.

    Attributes:
        role: which pool it is in.
        spec: its process.
    """

    role: Role
    spec: ServiceSpec


def new_token() -> str:
    """The secret of a new deployment."""
    return secrets.token_hex(32)


def plan_workers(config: ServeConfig, machine: Machine, token: str) -> list[WorkerPlan]:
    """The workers of a configuration, on one machine.

    Args:
        config: what the operator asked for.
        machine: shared evenly among the workers unless the configuration says otherwise.
        token: the deployment's secret.

    Raises:
        ConfigError: it has not got the GPUs that the workers need.
    """
    roles = [role for role in get_args(Role) for _ in range(getattr(config, role))]
    on_gpus = uses_gpus(config.device, machine.gpus, len(roles))
    plans: list[WorkerPlan] = []
    for index, role in enumerate(roles):
        gpu = index if on_gpus else None
        name = f"{role}-{index - roles.index(role)}"
        worker = _plan_worker(config, WorkerShare(machine, len(roles), gpu), role, name, token)
        spec = ServiceSpec(
            kind="worker",
            name=name,
            config=worker.encode(),
            gpu=gpu,
            threads=worker.threads or 1,
            log_level=config.log_level,
        )
        plans.append(WorkerPlan(role, spec))
    return plans


def uses_gpus(device: str, gpus: Gpus, num_workers: int) -> bool:
    """Whether the workers run on GPUs, each on its own.

    Args:
        device: `auto`, `cpu` or `cuda`.
        gpus: of the machine.
        num_workers: on the machine.

    Raises:
        ConfigError: they should, and there are not enough.
    """
    count = len(gpus.free_memory)
    if device == "cpu" or (device == "auto" and not count):
        return False
    if not count:
        raise ConfigError(f"--device cuda: {gpus.problem}; use --device cpu")
    if count < num_workers:
        raise ConfigError(
            f"--device {device}: {num_workers} workers need a GPU each and torch sees {count}; "
            "start fewer (--mixed 1 is a single one), or use --device cpu"
        )
    return True


@dataclass(frozen=True, slots=True)
class WorkerShare:
    """What one worker gets of a machine.

    Attributes:
        machine: as it was before any worker started.
        num_workers: that share it evenly.
        gpu: number of its own GPU, if workers run on GPUs.
    """

    machine: Machine
    num_workers: int
    gpu: int | None

    @property
    def threads(self) -> int:
        """Its processor cores."""
        return max(1, self.machine.cores // self.num_workers)

    @property
    def kv_memory(self) -> int:
        """Bytes for its KV cache."""
        if self.gpu is not None:
            return int(self.machine.gpus.free_memory[self.gpu] * _KV_SHARE)
        return min(int(self.machine.free_memory * _KV_SHARE / self.num_workers), _KV_ENOUGH)


def _plan_worker(
    config: ServeConfig, share: WorkerShare, role: Role, name: str, token: str
) -> WorkerConfig:
    return WorkerConfig(
        worker_id=name,
        epoch=1,
        role=role,
        model=Path(config.model).resolve(),
        dtype=config.dtype,
        # Of the GPUs, its process sees its own only.
        device="cpu" if share.gpu is None else "cuda:0",
        max_model_len=config.max_model_len,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        block_size=config.block_size,
        num_kv_blocks=config.num_kv_blocks,
        kv_cache_memory=config.kv_cache_memory or share.kv_memory,
        enable_prefix_caching=config.enable_prefix_caching,
        scheduler=config.scheduler_of(role),
        prefill_order=config.prefill_order,
        admission=config.admission,
        tbt_objective=_seconds(config.tbt_objective_ms),
        ttft_objective=_seconds(config.ttft_objective_ms),
        threads=config.threads_per_worker or share.threads,
        token=token,
        kv_transfer_timeout_s=config.kv_transfer_timeout,
        host_memory=MemoryShare(share.machine.free_memory, share.num_workers),
    )


def _seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000


def plan_gateway(config: ServeConfig, workers: dict[str, str], token: str) -> ServiceSpec:
    """The gateway of a configuration.

    Args:
        config: what the operator asked for.
        workers: address of each worker by id.
        token: the deployment's secret.
    """
    gateway = GatewayConfig(
        model=Path(config.model).resolve(),
        names=config.model_names,
        host=config.host,
        port=config.port,
        grpc_port=config.grpc_port,
        api_keys=config.api_keys,
        token=token,
        workers=workers,
        max_queued_requests=config.max_num_queued_reqs,
        max_queued_tokens=config.max_num_queued_tokens,
        seed=config.seed,
    )
    return ServiceSpec("gateway", "gateway-0", gateway.encode(), log_level=config.log_level)
