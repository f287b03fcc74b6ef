"""What an engine is going to be: options of an operator, checked against model and machine.

Everything that can be refused is refused here, before memory is taken. Loads nothing, and starts
nothing.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import structlog
import torch

from twinflow.parallel.kv_layout import KVLayout
from twinflow.parallel.latent.block_share import BlockShare
from twinflow.parallel.latent.sharing.base import LatentSharing
from twinflow.parallel.partition.backends.registry import check_backend
from twinflow.parallel.ranks.base import OneRank, RankGroup
from twinflow.protos.errors import ConfigError
from twinflow.runtime.checkpoint.config import load_model_config
from twinflow.runtime.checkpoint.limits import check_memory, resolve_max_model_len
from twinflow.runtime.checkpoint.tokenizer_check import check_tokenizer
from twinflow.runtime.checkpoint.weights import Checkpoint
from twinflow.runtime.config import EngineConfig, check_block_size
from twinflow.runtime.device_choice import check_device, resolve_dtype
from twinflow.runtime.host_memory import MemoryShare, available_memory, taken_memory
from twinflow.runtime.kernels.base import Kernels
from twinflow.runtime.kernels.registry import AUTO as AUTO_KERNELS
from twinflow.runtime.kernels.registry import choose_kernels
from twinflow.runtime.kv.layouts import model_layout, rank_layout
from twinflow.runtime.lanes.options import LaneOptions
from twinflow.runtime.latent_setup import LatentOptions, LatentSetup, settle_latents
from twinflow.runtime.models.base import Placement
from twinflow.runtime.models.config import ModelConfig
from twinflow.runtime.models.decoder import unused_tensors
from twinflow.runtime.models.owners import LayerOwners
from twinflow.runtime.models.registry import checkpoint_shapes
from twinflow.runtime.schedulers import (
    AUTO,
    check_policies,
    default_batched_tokens,
    resolve_scheduler,
)
from twinflow.runtime.speculative.config import SpeculativeConfig
from twinflow.runtime.weight_memory import weight_bytes

# Of MLPs and vocabulary, where whole attention sub-layers belong to single ranks.
MLPPlacement = Literal["tp", "replicated"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """What an operator may choose about one engine.

    Attributes:
        model: directory of the checkpoint.
        dtype: `auto` or a torch dtype name.
        device: `cpu` or `cuda`.
        cpu_kernels: what computes on a CPU: `auto`, `native` or `torch`.
        max_model_len: longest sequence; None for all that model and KV memory allow.
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
        expert_parallel: each rank holds whole experts, not a part of every expert.
        kv_parts: parts that the deployment cuts the KV of a token into; this engine makes no fewer
            than it has ranks, and no model more than it has KV heads.
        latents: how latent attention is shared by ranks.
        host_memory: of the host's memory, what a CPU engine may take; None for all that is free.
        speculative_config: how next tokens are guessed; None for not at all.
        lanes: whether prompts and decoding have a lane each, and how the device is divided.
        name: in the names of files that the engine writes.
    """

    model: Path
    dtype: str = "auto"
    device: str = "cpu"
    cpu_kernels: str = AUTO_KERNELS
    max_model_len: int | None = None
    max_num_seqs: int = 64
    max_num_batched_tokens: int | None = None
    block_size: int = 16
    num_kv_blocks: int | None = None
    kv_cache_memory: int = 1 << 30
    enable_prefix_caching: bool = True
    scheduler: str = AUTO
    prefill_order: str = "fcfs"
    admission: str = "aggressive"
    tbt_objective: float | None = None
    ttft_objective: float | None = None
    expert_parallel: bool = False
    kv_parts: int = 1
    latents: LatentOptions = field(default_factory=LatentOptions)
    host_memory: MemoryShare | None = None
    speculative_config: SpeculativeConfig | None = None
    lanes: LaneOptions = field(default_factory=LaneOptions)
    name: str = "engine"

    @property
    def num_speculative_tokens(self) -> int:
        """Most tokens proposed to a request at a time."""
        config = self.speculative_config
        return 0 if config is None else config.num_speculative_tokens


@dataclass(frozen=True, slots=True)
class EnginePlan:
    """What an engine, or one rank of it, is going to be.

    Attributes:
        options: what was asked for.
        checkpoint: where the weights come from.
        model: shape of the whole model.
        layout: of the KV blocks of all ranks together.
        rank_layout: of those of this rank.
        share: which blocks of a sequence this rank holds.
        latents: the worker's part in latent attention; None if the model has none.
        config: limits of the engine.
        kernels: what computes the model.
        owners: see `Placement.owners`.
    """

    options: EngineOptions
    checkpoint: Checkpoint
    model: ModelConfig
    layout: KVLayout
    rank_layout: KVLayout
    share: BlockShare
    latents: LatentSetup | None
    config: EngineConfig
    kernels: Kernels
    owners: LayerOwners | None = None

    @property
    def fingerprint(self) -> str:
        """Digest of configuration and weights, and what else decides about bits: the dtype they
        are served in and the kernels. Reads the weights unless they were loaded."""
        return f"{self.checkpoint.fingerprint}-{self.layout.dtype}-{self.kernels.identity}"

    def with_blocks(self, num_blocks: int) -> "EnginePlan":
        """The plan for so many KV blocks, on which the ranks have agreed.

        Raises:
            ConfigError: they are too few for the context length that was asked for.
        """
        options = replace(self.options, num_kv_blocks=num_blocks)
        config = _engine_config(options, self.model, self.rank_layout, self.share)
        return replace(self, options=options, config=config)

    def placement(self, ranks: RankGroup) -> Placement:
        """Where the model is computed.

        Args:
            ranks: who computes it together.
        """
        dtype = self.layout.torch_dtype
        narrow = self.checkpoint.has_bfloat16_matrices and self.kernels.loads_bfloat16(dtype)
        of_attention = ranks if self.owners is None else OneRank()
        return Placement(
            dtype=dtype,
            device=torch.device(self.options.device),
            ranks=ranks,
            expert_parallel=self.options.expert_parallel,
            latents=None if self.latents is None else self.latents.plan(of_attention),
            kernels=self.kernels,
            matrix_dtype=torch.bfloat16 if narrow else None,
            owners=self.owners,
        )


def plan_engine(
    options: EngineOptions, ranks: RankGroup, owned: MLPPlacement | None = None
) -> EnginePlan:
    """Read everything but the weights, and refuse what cannot be served.

    Args:
        options: what to load and how much memory this rank may take.
        ranks: who computes the model together; need not be connected yet.
        owned: single ranks have whole attention sub-layers, and MLPs are placed so; None for heads
            that all ranks share.

    Raises:
        CheckpointError: the directory cannot be served.
        ConfigError: an option does not fit the model, the machine, or so many ranks.
    """
    check_device(options.device)
    model = load_model_config(options.model)
    check_tokenizer(options.model, model)
    owners = None
    if owned is not None:
        owners = LayerOwners.of(ranks, model.num_layers, replicated=owned == "replicated")
    kv_ranks = ranks if owners is None else OneRank()
    dtype = resolve_dtype(options.dtype, model.dtype, options.device)
    parts = min(max(options.kv_parts, kv_ranks.size), model.num_kv_heads)
    latents = settle_latents(options.latents, model)
    sharing = None if latents is None else latents.plan(kv_ranks).sharing
    scheme = None if latents is None else latents.scheme
    share = _block_share(options.block_size, sharing)
    layout = model_layout(model, options.block_size, dtype, parts, scheme)
    held = rank_layout(layout, kv_ranks, sharing)
    if owners is not None:
        held = replace(held, num_layers=owners.count(model.num_layers))
    config = _engine_config(options, model, held, share)
    checkpoint = Checkpoint.open(options.model)
    others = checkpoint.check_shapes(checkpoint_shapes(model))
    for name in unused_tensors(model, others):
        structlog.get_logger().warning("the model does not use a tensor", tensor=name)
    kernels = choose_kernels(options.cpu_kernels, options.device, layout.torch_dtype)
    plan = EnginePlan(
        options, checkpoint, model, layout, held, share, latents, config, kernels, owners
    )
    check_policies(config)
    check_backend(options.lanes.backend)
    name, reason = resolve_scheduler(options.scheduler, has_experts=model.moe is not None)
    if reason:
        structlog.get_logger().info("scheduler chosen", scheduler=name, reason=reason)
    weights = weight_bytes(model, plan.placement(ranks))
    _check_memory(options, weights + config.num_blocks * held.block_bytes)
    return plan


def _block_share(block_size: int, sharing: LatentSharing | None) -> BlockShare:
    """Which blocks of a sequence a rank holds: all, unless latents are shared in another way."""
    try:
        check_block_size(block_size)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return BlockShare(block_size) if sharing is None else sharing.block_share(block_size)


def _engine_config(
    options: EngineOptions, model_config: ModelConfig, layout: KVLayout, share: BlockShare
) -> EngineConfig:
    """Settle block count and context length; a wanted context length must fit the KV memory."""
    max_model_len = resolve_max_model_len(options.max_model_len, model_config)
    has_experts = model_config.moe is not None
    scheduler, _ = resolve_scheduler(options.scheduler, has_experts=has_experts)
    try:
        num_blocks = options.num_kv_blocks
        if num_blocks is None:
            num_blocks = options.kv_cache_memory // layout.block_bytes
        capacity = (num_blocks - 1) * share.tokens_per_entry
        if options.max_model_len is None and max_model_len > capacity > 0:
            structlog.get_logger().warning(
                "KV memory bounds the context", max_model_len=capacity, model=max_model_len
            )
            max_model_len = capacity
        rows = options.max_num_batched_tokens
        if rows is None:
            decoding = options.max_num_seqs * (1 + options.num_speculative_tokens)
            rows = default_batched_tokens(scheduler, max_model_len, decoding)
        return EngineConfig(
            max_model_len=max_model_len,
            num_blocks=num_blocks,
            block_size=options.block_size,
            block_shards=share.size,
            max_num_seqs=options.max_num_seqs,
            max_num_batched_tokens=rows,
            enable_prefix_caching=options.enable_prefix_caching,
            scheduler=scheduler,
            prefill_order=options.prefill_order,
            admission=options.admission,
            tbt_objective=options.tbt_objective,
            ttft_objective=options.ttft_objective,
            num_speculative_tokens=options.num_speculative_tokens,
        )
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _check_memory(options: EngineOptions, needed: int) -> None:
    """Refuse what does not fit into the device, or into the engine's share of the host."""
    what, share = "weights and KV cache", options.host_memory
    if options.device.startswith("cuda"):
        available = int(torch.cuda.mem_get_info(options.device)[0])
    elif share is None:
        available = available_memory()
    else:
        available = min(max(0, share.size - taken_memory()), available_memory())
        what += f" in {share}"
    check_memory(needed, available, what)
