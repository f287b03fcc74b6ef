"""The operations in torch: every device and dtype."""

import math

import torch
from torch import Tensor

from twinflow.runtime.attention.base import HeadKernel
from twinflow.runtime.attention.registry import create_attention
from twinflow.runtime.kernels.base import HeadRotation, Kernels
from twinflow.runtime.kv.cache import KVCache
from twinflow.runtime.models.functions import gated_silu, rms_norm
from twinflow.runtime.models.linear import LinearFactory, PackedLinear, has_bfloat16_arithmetic
from twinflow.runtime.models.rope import rotate


class TorchKernels(Kernels):
    """See the module; the oracle of other kernels."""

    @property
    def identity(self) -> str:
        """See the base class."""
        return "torch"

    def linears(self) -> LinearFactory:
        """See the base class."""
        return LinearFactory()

    def head_attention(self, cache: KVCache, num_heads: int) -> HeadKernel:
        """See the base class."""
        return create_attention("tiled", cache, num_heads)

    def add_norm(self, hidden: Tensor, delta: Tensor | None, weight: Tensor, eps: float) -> Tensor:
        """See the base class."""
        if delta is not None:
            hidden += delta
        return rms_norm(hidden, weight, eps)

    def gated_silu(self, gate_up: Tensor) -> Tensor:
        """See the base class."""
        return gated_silu(gate_up)

    def rotate_heads(self, heads: Tensor, rotation: HeadRotation) -> Tensor:
        """See the base class."""
        rotated_heads = heads.shape[1] - rotation.kv_heads
        query_heads = rotated_heads - rotation.kv_heads
        query_key = heads[:, :rotated_heads]
        if rotation.norm is not None:
            query_key = rms_norm(query_key, rotation.norm, rotation.eps)
        rotated = rotate(query_key, rotation.cos, rotation.sin)
        heads[:, query_heads:rotated_heads] = rotated[:, query_heads:]
        return rotated[:, :query_heads] * rotation.query_factor

    def loads_bfloat16(self, dtype: torch.dtype) -> bool:
        """Products are of one dtype."""
        return dtype is torch.bfloat16

    def matrix_bytes(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> int:
        """On a CPU without bfloat16 arithmetic bfloat16 is kept in float32."""
        packed = self.copies_matrices(dtype, device)
        widened = packed and dtype is torch.bfloat16 and not has_bfloat16_arithmetic()
        kept = torch.float32 if widened else dtype
        return math.prod(shape) * kept.itemsize

    def copies_matrices(self, dtype: torch.dtype, device: torch.device) -> bool:
        """See the base class."""
        return PackedLinear.supports(dtype, device)
