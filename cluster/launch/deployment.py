"""Which processes a configuration means, and how each is configured. Pure: starts nothing.

What workers share is settled for all of them together: the device, the cores, the memory. Where
each of them runs is decided in `twinflow.cluster.launch.places`.
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from twinflow.cluster.config import ServeConfig
from twinflow.cluster.gateway.config import GatewayConfig
from twinflow.cluster.launch.base import ServiceSpec
from twinflow.cluster.launch.latents import NO_SHARING, LatentChoice
from twinflow.cluster.launch.machine import Node
from twinflow.cluster.launch.places import Floor, Place, place_workers
from twinflow.cluster.quantities import in_seconds
from twinflow.protos.errors import ConfigError
from twinflow.runtime.host_memory import MemoryShare
from twinflow.runtime.speculative.config import SpeculativeConfig
from twinflow.workers.config import WorkerConfig
from twinflow.workers.ranks.address import new_address
from twinflow.workers.role import Role


@dataclass(frozen=True, slots=True)
class WorkerPlan:
    """A worker to start.

    Attributes:
        place: where it runs, and for which pool it is started.
        ranks: a process for each, rank 0 first.
    """

    place: Place
    ranks: tuple[ServiceSpec, ...]

    @property
    def role(self) -> Role:
        """The pool that it is started for."""
        return self.place.role

    @property
    def name(self) -> str:
        """Its id."""
        return self.ranks[0].name


def new_token() -> str:
    """The secret of a new deployment."""
    return secrets.token_hex(32)


class WorkerPlanner:
    """Plans the workers of a deployment: those that it begins with, and those that come later.

    Args:
        config: what the operator asked for.
        nodes: each shared evenly among the ranks on it unless the configuration says otherwise.
        token: the deployment's secret.
        latents: how decode workers share them.

    Attributes:
        floor: where workers may run.

    Raises:
        NoRoom: the nodes have not got what the ranks need.
    """

    def __init__(
        self,
        config: ServeConfig,
        nodes: Sequence[Node],
        token: str,
        latents: LatentChoice = NO_SHARING,
    ) -> None:
        self._config = config
        self._token = token
        self._latents = latents
        self.floor = Floor(config, nodes, place_workers(config, nodes))
        # KV is cut alike everywhere, for the worker with the most ranks.
        self._kv_parts = max(config.ranks(role) for role in config.worker_roles)

    @property
    def no_flips(self) -> str:
        """Why a worker cannot change its role; empty if it can."""
        if self._latents.parallel == "replicated":
            return ""
        return (
            f"With --mla-parallel {self._latents.parallel} a prefill worker holds latents that the "
            "ranks of a decode worker share: start another worker instead."
        )

    def first(self) -> list[WorkerPlan]:
        """The workers that the deployment begins with; their lives count from 1."""
        roles = self._config.worker_roles
        plans = []
        for index, place in enumerate(self.floor.first):
            name = f"{place.role}-{index - roles.index(place.role)}"
            share = place.shares[0]
            memory = MemoryShare(share.machine.free_memory, share.num_ranks)
            plans.append(self._plan(place, name, index + 1, memory))
        return plans

    def later(self, place: Place, name: str, epoch: int) -> WorkerPlan:
        """A worker that comes while others serve; it looks itself how much memory is left.

        Args:
            place: where it runs.
            name: its id.
            epoch: its life.

        Raises:
            ConfigError: its ranks cannot hand KV over to the others.
        """
        size = len(place.shares)
        if size > self._kv_parts:
            raise ConfigError(
                f"a {place.role} worker of {size} ranks cannot join: KV is cut for "
                f"{self._kv_parts}, the ranks of the largest worker at start"
            )
        return self._plan(place, name, epoch, None)

    def _plan(self, place: Place, name: str, epoch: int, memory: MemoryShare | None) -> WorkerPlan:
        worker = msgspec.structs.replace(
            _plan_worker(self._config, place.role, name, self._token),
            epoch=epoch,
            host=place.node.host,
            kv_parts=self._kv_parts,
            mla_parallel=self._latents.parallel,
            mla_shards=self._latents.shards,
            tpla_transform=self._latents.transform,
            host_memory=memory,
        )
        ranks = (_plan_rank(self._config, worker, rank, place) for rank in range(len(place.shares)))
        return WorkerPlan(place, tuple(ranks))


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
    )
    return ServiceSpec(
        kind="worker",
        name=own.process_name,
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
        prefill_order=config.prefill_order_of(role),
        admission=config.admission_of(role),
        tbt_objective=in_seconds(config.tbt_objective_ms),
        ttft_objective=in_seconds(config.ttft_objective_ms),
        lanes=config.lanes,
        prefill_slack=config.prefill_slack,
        decode_slack=config.decode_slack,
        lane_decisions=Path(config.lane_decisions).resolve() if config.lane_decisions else None,
        fault_points=Path(config.fault_points).resolve() if config.fault_points else None,
        tensor_parallel_size=size,
        expert_parallel=config.enable_expert_parallel,
        leader_address=new_address(name) if size > 1 else "",
        token=token,
        tls=internal_tls(config),
        kv_transfer_timeout_s=config.kv_transfer_timeout,
        link_idle_s=config.kv_link_idle_timeout,
        speculative_config=_anywhere(config.speculative_config),
    )


def internal_tls(config: ServeConfig) -> Path | None:
    """Where each process finds its certificates, on every node alike.

    Links stay links: who renews certificates may point one elsewhere.
    """
    return Path(config.internal_tls).absolute() if config.internal_tls else None


def _anywhere(speculation: SpeculativeConfig | None) -> SpeculativeConfig | None:
    """A configuration that means the same in every directory."""
    if speculation is None or speculation.adaptive_decisions is None:
        return speculation
    decisions = Path(speculation.adaptive_decisions).resolve()
    return replace(speculation, adaptive_decisions=str(decisions))


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
        admin_tokens=tuple(token.get_secret_value() for token in config.admin_token),
        token=token,
        tls=internal_tls(config),
        max_model_len=config.max_model_len,
        max_queued_requests=config.max_num_queued_reqs,
        max_queued_tokens=config.max_num_queued_tokens,
        max_key_queued_requests=config.max_key_queued_reqs,
        max_key_queued_tokens=config.max_key_queued_tokens,
        fair_tokens=config.fair_tokens,
        longest_wait_s=in_seconds(config.max_ttft_ms),
        loss=latents.quality,
        seed=config.seed,
    )
    return ServiceSpec("gateway", "gateway-0", gateway.encode(), log_level=config.log_level)
