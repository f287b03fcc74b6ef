"""Which processes a configuration means, and how each is configured. Pure: starts nothing.

What workers share is settled here for all of them together: the device, the cores, the memory.
Every rank of every worker gets an equal share.
"""

import itertools
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from twinflow.cluster.config import ServeConfig
from twinflow.cluster.gateway.config import GatewayConfig
from twinflow.cluster.launch.base import ServiceSpec
from twinflow.cluster.launch.latents import NO_SHARING, LatentChoice
from twinflow.cluster.launch.machine import Gpus, Machine
from twinflow.protos.errors import ConfigError
from twinflow.runtime.host_memory import MemoryShare
from twinflow.workers.config import WorkerConfig
from twinflow.workers.ranks.address import new_address
from twinflow.workers.role import Role

# Of the memory that is free at start, what all KV caches on a machine or GPU take together by
# default; and what is enough for a rank on a CPU, where every page of it is touched at start.
_KV_SHARE = 0.4
_KV_ENOUGH = 1 << 30


@dataclass(frozen=True, slots=True)
class WorkerPlan:
    """A worker to start.

    Attributes:
        role: which pool it is in.
        ranks: a process for each, rank 0 first.
    """

    role: Role
    ranks: tuple[ServiceSpec, ...]

    @property
    def name(self) -> str:
        """Its id."""
        return self.ranks[0].name


def new_token() -> str:
    """The secret of a new deployment."""
    return secrets.token_hex(32)


def plan_workers(
    config: ServeConfig, machine: Machine, token: str, latents: LatentChoice = NO_SHARING
) -> list[WorkerPlan]:
    """The workers of a configuration, on one machine.

    Args:
        config: what the operator asked for.
        machine: shared evenly among all ranks unless the configuration says otherwise.
        token: the deployment's secret.
        latents: how decode workers share them.

    Raises:
        ConfigError: it has not got the GPUs that the ranks need.
    """
    roles = config.worker_roles
    sizes = [config.ranks(role) for role in roles]
    on_gpus = uses_gpus(config.device, machine.gpus, sizes)
    numbers = itertools.count()
    plans: list[WorkerPlan] = []
    for index, (role, size) in enumerate(zip(roles, sizes, strict=True)):
        name = f"{role}-{index - roles.index(role)}"
        gpus = [next(numbers) if on_gpus else None for _ in range(size)]
        shares = [RankShare(machine, sum(sizes), gpu) for gpu in gpus]
        worker = msgspec.structs.replace(
            _plan_worker(config, role, name, token),
            # KV is cut alike everywhere, for the worker with the most ranks.
            kv_parts=max(sizes),
            mla_parallel=latents.parallel,
            mla_shards=latents.shards,
            tpla_transform=latents.transform,
        )
        ranks = (_plan_rank(config, worker, rank, share) for rank, share in enumerate(shares))
        plans.append(WorkerPlan(role, tuple(ranks)))
    return plans


def uses_gpus(device: str, gpus: Gpus, sizes: Sequence[int]) -> bool:
    """Whether the workers run on GPUs, each rank on its own.

    Args:
        device: `auto`, `cpu` or `cuda`.
        gpus: of the machine.
        sizes: ranks of each worker on the machine.

    Raises:
        ConfigError: they should, and there are not enough.
    """
    count = len(gpus.free_memory)
    if device == "cpu" or (device == "auto" and not count):
        return False
    if not count:
        raise ConfigError(f"--device cuda: {gpus.problem}; use --device cpu")
    if count < sum(sizes):
        who = f"{len(sizes)} workers"
        if max(sizes) > 1:
            who += f" of {sum(sizes)} ranks together"
        raise ConfigError(
            f"--device {device}: {who} need a GPU each and torch sees {count}; start fewer "
            "(--mixed 1 is a single worker, --tensor-parallel-size its ranks), or use --device cpu"
        )
    return True


@dataclass(frozen=True, slots=True)
class RankShare:
    """What one rank of a worker gets of a machine.

    Attributes:
        machine: as it was before any worker started.
        num_ranks: of all workers, which share it evenly.
        gpu: number of its own GPU, if workers run on GPUs.
    """

    machine: Machine
    num_ranks: int
    gpu: int | None

    @property
    def threads(self) -> int:
        """Its processor cores."""
        return max(1, self.machine.cores // self.num_ranks)

    @property
    def kv_memory(self) -> int:
        """Bytes for its KV cache."""
        if self.gpu is not None:
            return int(self.machine.gpus.free_memory[self.gpu] * _KV_SHARE)
        return min(int(self.machine.free_memory * _KV_SHARE / self.num_ranks), _KV_ENOUGH)


def _plan_rank(
    config: ServeConfig, worker: WorkerConfig, rank: int, share: RankShare
) -> ServiceSpec:
    """The process of a rank; `worker` is what the ranks have in common."""
    threads = config.threads_per_worker or share.threads
    own = msgspec.structs.replace(
        worker,
        rank=rank,
        # Of the GPUs, its process sees its own only.
        device="cpu" if share.gpu is None else "cuda:0",
        kv_cache_memory=config.kv_cache_memory or share.kv_memory,
        threads=threads,
        host_memory=MemoryShare(share.machine.free_memory, share.num_ranks),
    )
    return ServiceSpec(
        kind="worker",
        name=worker.worker_id if rank == 0 else f"{worker.worker_id}-rank{rank}",
        config=own.encode(),
        gpu=share.gpu,
        threads=threads,
        log_level=config.log_level,
    )


def _plan_worker(config: ServeConfig, role: Role, name: str, token: str) -> WorkerConfig:
    size = config.ranks(role)
    return WorkerConfig(
        worker_id=name,
        epoch=1,
        role=role,
        model=Path(config.model).resolve(),
        dtype=config.dtype,
        max_model_len=config.max_model_len,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        block_size=config.block_size,
        num_kv_blocks=config.num_kv_blocks,
        enable_prefix_caching=config.enable_prefix_caching,
        scheduler=config.scheduler_of(role),
        prefill_order=config.prefill_order,
        admission=config.admission,
        tbt_objective=_seconds(config.tbt_objective_ms),
        ttft_objective=_seconds(config.ttft_objective_ms),
        tensor_parallel_size=size,
        expert_parallel=config.enable_expert_parallel,
        leader_address=new_address(name) if size > 1 else "",
        token=token,
        kv_transfer_timeout_s=config.kv_transfer_timeout,
        link_idle_s=config.kv_link_idle_timeout,
        speculative_config=config.speculative_config,
    )


def _seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000


def plan_gateway(
    config: ServeConfig, token: str, latents: LatentChoice = NO_SHARING
) -> ServiceSpec:
    """The gateway of a configuration.

    Args:
        config: what the operator asked for.
        token: the deployment's secret.
        latents: how decode workers share them.
    """
    gateway = GatewayConfig(
        model=Path(config.model).resolve(),
        names=config.model_names,
        host=config.host,
        port=config.port,
        grpc_port=config.grpc_port,
        api_keys=config.api_keys,
        token=token,
        max_model_len=config.max_model_len,
        max_queued_requests=config.max_num_queued_reqs,
        max_queued_tokens=config.max_num_queued_tokens,
        loss=latents.quality,
        seed=config.seed,
    )
    return ServiceSpec("gateway", "gateway-0", gateway.encode(), log_level=config.log_level)
