"""What a worker's configuration asks of its engine."""

from twinflow.runtime.build import EngineOptions
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
    )
