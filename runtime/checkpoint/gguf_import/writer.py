"""Safetensors files, one tensor in memory at a time beyond the shard being filled.

Writes `model.safetensors`, or shards and their index where one file would grow too large.
"""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from twinflow.protos.errors import CheckpointError
from twinflow.runtime.checkpoint.gguf_import.tensors import Conversion
from twinflow.runtime.checkpoint.shards import INDEX, WEIGHTS
from twinflow.runtime.checkpoint.weights import Meter

MAX_SHARD_BYTES = 5_000_000_000


def write_weights(
    directory: Path,
    plan: list[Conversion],
    dtype: torch.dtype,
    meter: Meter,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Convert and write every tensor of `plan`.

    Args:
        directory: where the files go.
        plan: the tensors in their order.
        dtype: of the files.
        meter: told the bytes of each tensor once it is converted.
        max_shard_bytes: size from which a new shard begins.

    Raises:
        CheckpointError: a tensor cannot be converted, or the disk cannot take the files.
    """
    shards = plan_shards(plan, dtype, max_shard_bytes)
    names = _names(len(shards))
    for name, shard in zip(names, shards, strict=True):
        _save(directory / name, _convert(shard, dtype, meter))
    if len(shards) > 1:
        homes = {
            conversion.name: name
            for name, shard in zip(names, shards, strict=True)
            for conversion in shard
        }
        total = sum(conversion.size(dtype) for conversion in plan)
        index = {"metadata": {"total_size": total}, "weight_map": homes}
        (directory / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def plan_shards(
    plan: list[Conversion], dtype: torch.dtype, max_shard_bytes: int
) -> list[list[Conversion]]:
    """Cut `plan` into shards of at most `max_shard_bytes`, a larger tensor in one of its own."""
    shards: list[list[Conversion]] = [[]]
    filled = 0
    for conversion in plan:
        size = conversion.size(dtype)
        if shards[-1] and filled + size > max_shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(conversion)
        filled += size
    return shards


def _names(count: int) -> list[str]:
    if count == 1:
        return [WEIGHTS]
    return [f"model-{index:05}-of-{count:05}.safetensors" for index in range(1, count + 1)]


def _convert(shard: list[Conversion], dtype: torch.dtype, meter: Meter) -> dict[str, Tensor]:
    tensors = {}
    for conversion in shard:
        tensors[conversion.name] = conversion.run(dtype)
        meter.add(conversion.size(dtype))
    return tensors


def _save(path: Path, tensors: dict[str, Tensor]) -> None:
    try:
        # `format` is what transformers looks for.
        save_file(tensors, path, metadata={"format": "pt"})
        # The library keeps its files to their owner; here they are as readable as the directory.
        path.chmod(path.parent.stat().st_mode & 0o666)
    except SafetensorError as error:
        raise CheckpointError(f"{path}: cannot be written: {error}") from error
