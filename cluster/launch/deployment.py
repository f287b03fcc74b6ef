"""Which processes a configuration means, and how each is configured. Pure: starts nothing.

What workers share is settled for all of them together: the device, the cores, the memory. Where
each of them runs is decided in `twinflow.cluster.launch.places`.
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from twinflow.cluster.config import ServeConfig
from twinflow.cluster.gateway.config import GatewayConfig
from twinflow.cluster.launch.base import ServiceSpec
from twinflow.cluster.launch.latents import NO_SHARING, LatentChoice
from twinflow.cluster.launch.places import Node, Place, place_workers
from twinflow.runtime.host_memory import MemoryShare
from twinflow.workers.config import WorkerConfig
from twinflow.workers.ranks.address import new_address
from twinflow.workers.role import Role


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
    config: ServeConfig, nodes: Sequence[Node], token: str, latents: LatentChoice = NO_SHARING
) -> list[WorkerPlan]:
    """The workers of a configuration, each on one of the nodes.

    Args:
        config: what the operator asked for.
        nodes: each shared evenly among the ranks on it unless the configuration says otherwise.
        token: the deployment's secret.
        latents: how decode workers share them.

    Raises:
        NoRoom: the nodes have not got what the ranks need.
    """
    roles = config.worker_roles
    plans: list[WorkerPlan] = []
    for index, place in enumerate(place_workers(config, nodes)):
        role = place.role
        name = f"{role}-{index - roles.index(role)}"
        worker = msgspec.structs.replace(
            _plan_worker(config, role, name, token),
            host=place.node.host,
            # KV is cut alike everywhere, for the worker with the most ranks.
            kv_parts=max(config.ranks(other) for other in roles),
            mla_parallel=latents.parallel,
            mla_shards=latents.shards,
            tpla_transform=latents.transform,
        )
        ranks = (_plan_rank(config, worker, rank, place) for rank in range(len(place.shares)))
        plans.append(WorkerPlan(role, tuple(ranks)))
    return plans


def _plan_rank(config: ServeConfig, worker: WorkerConfig, rank: int, place: Place) -> ServiceSpec:
    """The process of a rank; `worker` is what the ranks have in common."""
    share = place.shares[rank]
    threads = config.threads_per_worker or share.threads
    own = msgspec.structs.replace(
        worker,
        rank=rank,
        # Of the GPUs, its process sees its own only.
        device="cpu" if share.gpu is None else "cuda:0",
        kv_cache_memory=config.kv_cache_memory or share.kv_memory,
        threads=threads,
        first_core=share.seat * threads,
        host_memory=MemoryShare(share.machine.free_memory, share.num_ranks),
    )
    return ServiceSpec(
        kind="worker",
        name=worker.worker_id if rank == 0 else f"{worker.worker_id}-rank{rank}",
        config=own.encode(),
        gpu=share.gpu,
        threads=threads,
        log_level=config.log_level,
        node=place.node.host,
        pool=place.role if place.node.room is not None else "",
    )


def _plan_worker(config: ServeConfig, role: Role, name: str, token: str) -> WorkerConfig:
    size = config.ranks(role)
    return WorkerConfig(
        worker_id=name,
        epoch=1,
        role=role,
        model=Path(config.model).resolve(),
        dtype=config.dtype,
        cpu_kernels=config.cpu_kernels,
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
        lanes=config.lanes,
        prefill_slack=config.prefill_slack,
        decode_slack=config.decode_slack,
        lane_decisions=Path(config.lane_decisions).resolve() if config.lane_decisions else None,
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
