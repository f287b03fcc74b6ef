"""Which processes a configuration means, and how each is configured. Pure: starts nothing."""

import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from twinflow.cluster.config import ServeConfig
from twinflow.cluster.gateway.config import GatewayConfig
from twinflow.cluster.launch.base import ServiceSpec
from twinflow.workers.config import WorkerConfig
from twinflow.workers.role import Role

# Of the memory that is free at start, what all KV caches of a machine take together by default,
# and what is enough for one worker.
_KV_SHARE = 0.4
_KV_ENOUGH = 2 << 30


@dataclass(frozen=True, slots=True)
class Machine:
    """What a deployment may use.

    Attributes:
        cores: processor cores.
        free_memory: bytes.
    """

    cores: int
    free_memory: int


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
    """
    sizes = {role: getattr(config, role) for role in get_args(Role)}
    num_workers = sum(sizes.values())
    threads = config.threads_per_worker or max(1, machine.cores // num_workers)
    share = int(machine.free_memory * _KV_SHARE / num_workers)
    memory = config.kv_cache_memory or min(share, _KV_ENOUGH)
    plans: list[WorkerPlan] = []
    for role, size in sizes.items():
        for number in range(size):
            worker = WorkerConfig(
                worker_id=f"{role}-{number}",
                epoch=1,
                role=role,
                model=Path(config.model).resolve(),
                dtype=config.dtype,
                max_model_len=config.max_model_len,
                max_num_seqs=config.max_num_seqs,
                max_num_batched_tokens=config.max_num_batched_tokens,
                block_size=config.block_size,
                num_kv_blocks=config.num_kv_blocks,
                kv_cache_memory=memory,
                enable_prefix_caching=config.enable_prefix_caching,
                threads=threads,
                token=token,
                kv_transfer_timeout_s=config.kv_transfer_timeout,
            )
            spec = ServiceSpec(
                "worker", worker.worker_id, worker.encode(), threads, config.log_level
            )
            plans.append(WorkerPlan(role, spec))
    return plans


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
