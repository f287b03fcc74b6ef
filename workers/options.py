"""What a worker's configuration asks of its engine."""

import os

from twinflow.runtime.engine_plan import EngineOptions
from twinflow.runtime.lanes.options import LaneOptions
from twinflow.runtime.latent_setup import LatentOptions
from twinflow.workers.config import WorkerConfig


def engine_options(config: WorkerConfig) -> EngineOptions:
    """The options of a worker's engine, or of one rank of it."""
    return EngineOptions(
        model=config.model,
        dtype=config.dtype,
        device=config.device,
        cpu_kernels=config.cpu_kernels,
        max_model_len=config.max_model_len,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        block_size=config.block_size,
        num_kv_blocks=config.num_kv_blocks,
        kv_cache_memory=config.kv_cache_memory,
        enable_prefix_caching=config.enable_prefix_caching,
        scheduler=config.scheduler,
        prefill_order=config.prefill_order,
        admission=config.admission,
        tbt_objective=config.tbt_objective,
        ttft_objective=config.ttft_objective,
        expert_parallel=config.expert_parallel,
        kv_parts=config.kv_parts,
        latents=LatentOptions(
            parallel=config.mla_parallel,
            shards=config.mla_shards,
            transform=config.tpla_transform,
            hold_all=config.role == "prefill",
        ),
        host_memory=config.host_memory,
        speculative_config=config.speculative_config,
        lanes=lane_options(config),
        name=f"{config.worker_id}-{config.epoch}",
    )


def lane_options(config: WorkerConfig) -> LaneOptions:
    """The lanes of a worker: workers of the other roles have nothing to divide.

    Cores are counted in this process, from the worker's first one on, as many as it has threads.
    """
    if config.role != "mixed":
        return LaneOptions()
    allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    threads = config.threads or len(allowed)
    decisions = config.lane_decisions
    if decisions is not None:
        decisions /= f"{config.worker_id}-{config.epoch}.jsonl"
    return LaneOptions(
        backend=config.lanes,
        prefill_slack=config.prefill_slack,
        decode_slack=config.decode_slack,
        cores=tuple(allowed[config.first_core : config.first_core + threads]),
        decisions=decisions,
    )
