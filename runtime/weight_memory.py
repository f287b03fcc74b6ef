"""How much memory a model's weights take up once it is loaded. Computes; allocates nothing."""

import math

import torch

from twinflow.runtime.models.base import Placement
from twinflow.runtime.models.config import ModelConfig
from twinflow.runtime.models.linear import PackedLinear
from twinflow.runtime.models.registry import model_type

_EMBEDDING = "embedding"


def weight_bytes(config: ModelConfig, placement: Placement) -> int:
    """Bytes of a rank's parameters in the form in which they are kept.

    Packed matrices (`PackedLinear`) differ from a checkpoint's in two ways: the head of a model
    with tied embeddings is a copy of them, and on a CPU without bfloat16 arithmetic bfloat16
    matrices are kept in float32.
    """
    dtype = placement.dtype
    packed = PackedLinear.supports(dtype, placement.device)
    widened = packed and dtype is torch.bfloat16 and not _has_bfloat16_arithmetic()
    matrix_dtype = torch.float32 if widened else dtype
    total = 0
    for item in model_type(config).parameters(config, placement):
        is_matrix = len(item.shape) == 2 and item.key != _EMBEDDING
        kept = item.dtype or (matrix_dtype if is_matrix else dtype)
        copies = packed and config.tie_word_embeddings and item.key == _EMBEDDING
        each = kept.itemsize + (matrix_dtype.itemsize if copies else 0)
        total += math.prod(item.shape) * each
    return total


def _has_bfloat16_arithmetic() -> bool:
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
