"""The operations in torch: every device and dtype."""

import math

import torch

from twinflow.runtime.kernels.base import Kernels
from twinflow.runtime.models.linear import LinearFactory, PackedLinear, has_bfloat16_arithmetic


class TorchKernels(Kernels):
    """See the module; the oracle of other kernels."""

    @property
    def identity(self) -> str:
        """See the base class."""
        return "torch"

    def linears(self) -> LinearFactory:
        """See the base class."""
        return LinearFactory()

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
