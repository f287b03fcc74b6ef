"""How much memory a model's weights take up once it is loaded. Computes; allocates nothing."""

import math

import torch

from twinflow.runtime.checkpoint.shapes import expected_shapes
from twinflow.runtime.models.config import ModelConfig
from twinflow.runtime.models.linear import PackedLinear

_EMBEDDING = "model.embed_tokens.weight"


def weight_bytes(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> int:
    """Bytes of all parameters of a decoder in the form in which they are kept.

    Packed matrices (`PackedLinear`) differ from a checkpoint's in two ways: the head of a model
    with tied embeddings is a copy of them, and on a CPU without bfloat16 arithmetic bfloat16
    matrices are kept in float32.
    """
    packed = PackedLinear.supports(dtype, device)
    widened = packed and dtype is torch.bfloat16 and not _has_bfloat16_arithmetic()
    matrix_dtype = torch.float32 if widened else dtype
    total = 0
    for name, shape in expected_shapes(config).items():
        is_matrix = len(shape) == 2 and name != _EMBEDDING
        total += math.prod(shape) * (matrix_dtype if is_matrix else dtype).itemsize
    if packed and config.tie_word_embeddings:
        total += config.vocab_size * config.hidden_size * matrix_dtype.itemsize
    return total


def _has_bfloat16_arithmetic() -> bool:
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
