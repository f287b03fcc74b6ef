"""How much memory a model's weights take up once it is loaded. Computes; allocates nothing."""

import math

from twinflow.runtime.attention.gather import padded_width
from twinflow.runtime.models.base import Placement
from twinflow.runtime.models.config import LatentConfig, ModelConfig
from twinflow.runtime.models.head_products import HeadProducts
from twinflow.runtime.models.registry import model_type

_EMBEDDING = "embedding"


def weight_bytes(config: ModelConfig, placement: Placement) -> int:
    """Bytes of a rank's parameters in the form in which they are kept.

    Linear layers may keep matrices in a form of their own (see `Kernels`); the head of a model with
    tied embeddings is then a copy of them. Latent attention keeps two forms of one matrix.
    """
    kernels, dtype, device = placement.kernels, placement.dtype, placement.device
    total = 0
    for item in model_type(config).parameters(config, placement):
        loaded = item.dtype_in(dtype, placement.matrix_dtype)
        is_embedding = item.key == _EMBEDDING
        is_tied = is_embedding and config.tie_word_embeddings
        if is_embedding or len(item.shape) == 1:
            total += math.prod(item.shape) * loaded.itemsize
        if not is_embedding and len(item.shape) == 2:
            total += kernels.matrix_bytes(item.shape, loaded, device)
        if is_tied and kernels.copies_matrices(loaded, device):
            total += kernels.matrix_bytes(item.shape, loaded, device)
    if config.latent is not None:
        total += placement.num_kv_layers(config.num_layers) * _absorbed_bytes(
            config.num_heads, config.latent, placement.of_attention
        )
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
