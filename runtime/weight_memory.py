"""How much memory a model's weights take up once it is loaded. Computes; allocates nothing."""

import math

import torch

from twinflow.runtime.attention.gather import padded_width
from twinflow.runtime.models.base import Placement
from twinflow.runtime.models.config import LatentConfig, ModelConfig
from twinflow.runtime.models.head_products import HeadProducts
from twinflow.runtime.models.linear import PackedLinear
from twinflow.runtime.models.registry import model_type

_EMBEDDING = "embedding"


def weight_bytes(config: ModelConfig, placement: Placement) -> int:
    """Bytes of a rank's parameters in the form in which they are kept.

    Packed matrices (`PackedLinear`) differ from a checkpoint's in two ways: the head of a model
    with tied embeddings is a copy of them, and on a CPU without bfloat16 arithmetic bfloat16
    matrices are kept in float32. Latent attention keeps two forms of one matrix.
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
    if config.latent is not None:
        total += config.num_layers * _absorbed_bytes(config.num_heads, config.latent, placement)
    return total


def _absorbed_bytes(num_heads: int, latent: LatentConfig, placement: Placement) -> int:
    """Bytes of what a layer keeps for generated tokens, beside what it keeps for prompts."""
    plan = placement.latent_plan
    heads = len(plan.sharing.output_heads(num_heads))
    held = sum(map(len, plan.sharing.columns(latent.kv_rank)))
    dtype = HeadProducts.dtype(placement.dtype, placement.device)
    each = latent.nope_dim * padded_width(held) + held * padded_width(latent.value_dim)
    basis = 0
    if plan.transform is not None and not plan.transform.basis(0).orthogonal:
        basis = latent.kv_rank**2 * placement.dtype.itemsize
    return heads * each * dtype.itemsize + basis


def _has_bfloat16_arithmetic() -> bool:
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
