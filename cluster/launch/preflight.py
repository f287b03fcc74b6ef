"""Refuses, before any process exists, a model or limits that no worker would take.

A worker finds out too, but only after Ray and torch were loaded, tens of seconds later. Here the
model's files are checked as far as that costs little: everything but the values of the weights.
Memory is estimated from below, because torch alone knows in which form it keeps a matrix: what is
refused here cannot fit, what is not may still be refused by a worker.
"""

import math
from pathlib import Path

from twinflow.cluster.config import ServeConfig
from twinflow.cluster.launch.deployment import WorkerShare, uses_gpus
from twinflow.cluster.launch.machine import Machine
from twinflow.protos.errors import ConfigError
from twinflow.runtime.checkpoint.config import load_model_config
from twinflow.runtime.checkpoint.directory import ModelDirectory
from twinflow.runtime.checkpoint.limits import check_memory, resolve_max_model_len
from twinflow.runtime.checkpoint.shapes import check_shapes, expected_shapes
from twinflow.runtime.checkpoint.shards import find_shards
from twinflow.runtime.checkpoint.tokenizer_check import check_tokenizer
from twinflow.runtime.config import EngineConfig
from twinflow.runtime.host_memory import MemoryShare
from twinflow.runtime.models.config import ModelConfig
from twinflow.runtime.text.chat_template import ChatTemplate


def check_model(config: ServeConfig) -> ModelConfig:
    """Check the directory of the model and the context that is asked for; returns its shape.

    Raises:
        CheckpointError: the directory cannot be served.
        ConfigError: the model was not made for `--max-model-len`.
    """
    directory = Path(config.model)
    model = load_model_config(directory)
    check_tokenizer(directory, model)
    ChatTemplate.load(directory)
    folder = ModelDirectory.open(directory)
    entries = [entry for shard in find_shards(folder) for entry in shard.entries]
    shapes = {entry.name: entry.shape for entry in entries}
    check_shapes(folder.path, shapes, expected_shapes(model))
    resolve_max_model_len(config.max_model_len, model)
    return model


def check_fit(config: ServeConfig, model: ModelConfig, machine: Machine) -> None:
    """Check that weights and KV cache may fit into a worker's part of the machine.

    Raises:
        CheckpointError: they cannot.
        ConfigError: there are too few GPUs, or the KV cache cannot hold `--max-model-len`.
    """
    num_workers = config.prefill + config.decode + config.mixed
    on_gpus = uses_gpus(config.device, machine.gpus, num_workers)
    item_bytes = _item_bytes(config, model)
    weights = item_bytes * sum(math.prod(shape) for shape in expected_shapes(model).values())
    slot_bytes = item_bytes * 2 * model.num_layers * model.num_kv_heads * model.head_dim
    for index in range(num_workers):
        share = WorkerShare(machine, num_workers, index if on_gpus else None)
        kv_memory = config.kv_cache_memory or share.kv_memory
        blocks = config.num_kv_blocks or kv_memory // (slot_bytes * config.block_size)
        _check_context(config, blocks)
        part = MemoryShare(machine.free_memory, num_workers)
        available = machine.gpus.free_memory[index] if on_gpus else part.size
        where = f"on GPU {index}" if on_gpus else f"in {part}"
        needed = weights + blocks * slot_bytes * config.block_size
        check_memory(needed, available, f"weights and KV cache {where}")


def _item_bytes(config: ServeConfig, model: ModelConfig) -> int:
    """Bytes of a number in memory, at the least."""
    dtype = model.dtype if config.dtype == "auto" else config.dtype
    return 2 if dtype == "bfloat16" else 4


def _check_context(config: ServeConfig, num_blocks: int) -> None:
    try:
        EngineConfig(
            max_model_len=config.max_model_len or 1,
            num_blocks=num_blocks,
            block_size=config.block_size,
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=config.max_num_batched_tokens,
        )
    except ValueError as error:
        raise ConfigError(str(error)) from error
