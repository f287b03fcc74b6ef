"""Refuses, before any process exists, a model or limits that no worker would take.

A worker finds out too, but only after Ray and torch were loaded, tens of seconds later. Here the
model's files are checked as far as that costs little: all but the values of the weights, and
whether they are the tensors that the architecture needs. Memory is estimated from below, because
torch alone knows in which form it keeps a matrix: what is refused here cannot fit, what is not may
still be refused by a worker.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from twinflow.cluster.cli.flags import flag_name
from twinflow.cluster.config import ServeConfig
from twinflow.cluster.launch.machine import Node
from twinflow.cluster.launch.places import RankShare, place_workers
from twinflow.parallel.latent.scheme import LatentScheme
from twinflow.protos.errors import ConfigError
from twinflow.runtime.checkpoint.config import load_model_config
from twinflow.runtime.checkpoint.directory import ModelDirectory
from twinflow.runtime.checkpoint.limits import check_memory, resolve_max_model_len
from twinflow.runtime.checkpoint.shards import find_shards
from twinflow.runtime.checkpoint.tokenizer_check import check_tokenizer
from twinflow.runtime.config import EngineConfig
from twinflow.runtime.host_memory import MemoryShare
from twinflow.runtime.models.config import ModelConfig
from twinflow.runtime.models.rank_count import check_model_heads
from twinflow.runtime.text.chat_template import ChatTemplate
from twinflow.workers.role import Role

# Of what checkpoints hold; some have layers that are not served.
_SURELY_LOADED = 0.9


@dataclass(frozen=True, slots=True)
class CheckedModel:
    """A model whose files are in order.

    Attributes:
        config: its shape.
        num_elements: numbers in all its tensors.
    """

    config: ModelConfig
    num_elements: int


def check_model(config: ServeConfig) -> CheckedModel:
    """Check the directory of the model and the context that is asked for.

    Raises:
        CheckpointError: the directory cannot be served.
        ConfigError: the model was not made for `--max-model-len`, or cannot be cut for the ranks of
            a worker.
    """
    directory = Path(config.model)
    model = load_model_config(directory)
    _check_ranks(config, model)
    check_tokenizer(directory, model)
    ChatTemplate.load(directory)
    shards = find_shards(ModelDirectory.open(directory))
    resolve_max_model_len(config.max_model_len, model)
    sizes = [math.prod(entry.shape) for shard in shards for entry in shard.entries]
    return CheckedModel(model, sum(sizes))


def _check_ranks(config: ServeConfig, model: ModelConfig) -> None:
    for role in config.worker_roles:
        count = config.ranks(role)
        own = f"{role}_tensor_parallel_size"
        flag = own if getattr(config, own, None) else "tensor_parallel_size"
        try:
            check_model_heads(model, count)
        except ConfigError as error:
            raise ConfigError(f"{flag_name(flag)} {count}: {error.message}") from error
        _held_latents(config, role).check_ranks(count)


def _held_latents(config: ServeConfig, role: Role) -> LatentScheme:
    """How the ranks of a worker share latents, common columns aside; prefill workers do not."""
    if role == "prefill":
        return LatentScheme()
    return LatentScheme(kind=config.mla_parallel, shards=config.latent_shards)


def check_fit(config: ServeConfig, checked: CheckedModel, nodes: Sequence[Node]) -> None:
    """Check that weights and KV cache may fit into each rank's part of its machine.

    Raises:
        CheckpointError: they cannot.
        ConfigError: there are too few GPUs, or the KV cache cannot hold `--max-model-len`.
    """
    for place in place_workers(config, nodes):
        for share in place.shares:
            _check_share(config, checked, place.role, share)


def _check_share(config: ServeConfig, checked: CheckedModel, role: Role, share: RankShare) -> None:
    item_bytes = _item_bytes(config, checked.config)
    size, scheme = config.ranks(role), _held_latents(config, role)
    slot_bytes = item_bytes * _slot_elements(checked.config, size, scheme)
    kv_memory = config.kv_cache_memory or share.kv_memory
    blocks = config.num_kv_blocks or kv_memory // (slot_bytes * config.block_size)
    _check_context(config, blocks, scheme.block_shards)
    if share.gpu is None:
        part = MemoryShare(share.machine.free_memory, share.num_ranks)
        available, where = part.size, f"in {part}"
    else:
        available, where = share.machine.gpus.free_memory[share.gpu], f"on GPU {share.gpu}"
    weights = int(_SURELY_LOADED * item_bytes * checked.num_elements / size)
    needed = weights + blocks * slot_bytes * config.block_size
    check_memory(needed, available, f"weights and KV cache {where}")


def _slot_elements(model: ModelConfig, ranks: int, scheme: LatentScheme) -> int:
    """What a rank keeps of a token, at the least."""
    if model.latent is not None:
        return model.num_layers * (model.latent.kv_rank // scheme.slices + model.latent.rope_dim)
    heads = max(1, model.num_kv_heads // ranks)
    return model.num_layers * 2 * heads * model.head_dim


def _item_bytes(config: ServeConfig, model: ModelConfig) -> int:
    """Bytes of a number in memory, at the least."""
    dtype = model.dtype if config.dtype == "auto" else config.dtype
    return 2 if dtype == "bfloat16" else 4


def _check_context(config: ServeConfig, num_blocks: int, block_shards: int) -> None:
    try:
        EngineConfig(
            max_model_len=config.max_model_len or 1,
            num_blocks=num_blocks,
            block_size=config.block_size,
            block_shards=block_shards,
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=config.max_num_batched_tokens or config.max_num_seqs,
        )
    except ValueError as error:
        raise ConfigError(str(error)) from error
