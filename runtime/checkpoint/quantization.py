"""Which quantised weights can be read: float8 with one scale for each block of a matrix.

DeepSeek-V3 and Kimi-K2 publish their linear layers so. `quantization_config` of their config.json
states it; every other kind is refused. Reading and multiplying is in `weights` and `fp8`.
"""

from twinflow.runtime.checkpoint.json_file import JsonObject

_MAX_BLOCK = 1 << 16

BlockSize = tuple[int, int]
"""Rows and columns of a matrix that share a scale."""


def read_block_size(config: JsonObject) -> BlockSize | None:
    """The blocks of float8 weights; None if weights are not quantised.

    Args:
        config: the top level of `config.json`.

    Raises:
        CheckpointError: another quantisation.
    """
    section = config.section("quantization_config")
    if section is None:
        return None
    if section.text("quant_method") != "fp8":
        raise section.error("quant_method", "'fp8': other quantised weights are not supported")
    if section.text("fmt") not in (None, "e4m3"):
        raise section.error("fmt", "'e4m3'")
    size = section.get("weight_block_size")
    if not isinstance(size, list) or len(size) != 2:
        raise section.error("weight_block_size", "the rows and columns of a block")
    for item in size:
        if isinstance(item, bool) or not isinstance(item, int) or not 0 < item <= _MAX_BLOCK:
            raise section.error("weight_block_size", f"two integers from 1 to {_MAX_BLOCK}")
    return size[0], size[1]
