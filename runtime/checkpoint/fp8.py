"""Float8 weights with a scale for each block of a matrix, as DeepSeek-V3 publishes them.

    weight            F8_E4M3 [rows, columns]
    weight_scale_inv  [rows / block rows, columns / block columns], rounded up
    value             weight * weight_scale_inv of its block

The name is misleading: the scale multiplies. Weights are dequantised when they are read; nothing
is computed in float8. Which blocks a checkpoint has is in `quantization`.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from twinflow.protos.errors import CheckpointError
from twinflow.runtime.checkpoint.json_file import shown
from twinflow.runtime.checkpoint.quantization import BlockSize
from twinflow.runtime.checkpoint.safetensors_header import TensorEntry

FLOAT8 = "F8_E4M3"
_SCALE_SUFFIX = "_scale_inv"


def pair_scales(
    directory: Path, entries: Mapping[str, TensorEntry], block: BlockSize | None
) -> dict[str, str]:
    """The scales of each float8 tensor, by the names of both.

    Args:
        directory: of the checkpoint, for errors.
        entries: all its tensors.
        block: rows and columns that share a scale; None if config.json states no quantisation.

    Raises:
        CheckpointError: a float8 tensor that cannot be dequantised.
    """
    pairs: dict[str, str] = {}
    for name, entry in entries.items():
        if entry.dtype != FLOAT8:
            continue
        where = f"{directory}: tensor {shown(name)}"
        if block is None:
            raise CheckpointError(
                f"{where}: is {FLOAT8}, but config.json has no quantization_config"
            )
        if len(entry.shape) != 2:
            raise CheckpointError(f"{where}: is {FLOAT8}, expected a matrix as its shape")
        scales = entries.get(name + _SCALE_SUFFIX)
        if scales is None:
            raise CheckpointError(f"{where}: its scales {shown(name + _SCALE_SUFFIX)} are missing")
        expected = [-(-size // step) for size, step in zip(entry.shape, block, strict=True)]
        if list(scales.shape) != expected or scales.dtype == FLOAT8:
            raise CheckpointError(
                f"{directory}: tensor {shown(scales.name)}: found {scales.dtype} of the shape "
                f"{list(scales.shape)}, expected F32 of the shape {expected} for blocks of "
                f"{block[0]} x {block[1]}"
            )
        pairs[name] = scales.name
    return pairs


def dequantise(weight: Tensor, scales: Tensor, block: BlockSize) -> Tensor:
    """A new float32 [rows, columns] from float8 [rows, columns] and the scales of its blocks."""
    rows, columns = block
    out = torch.empty(weight.shape, dtype=torch.float32)
    for index, row_scales in enumerate(scales.float()):
        # One row of blocks at a time: all scales at full size would take as much memory again.
        piece = slice(index * rows, (index + 1) * rows)
        wide = row_scales.repeat_interleave(columns)[: weight.shape[1]]
        torch.mul(weight[piece].float(), wide, out=out[piece])
    return out
