"""The operations in C++ kernels, for CPUs with AVX2 or AVX-512."""

import torch

from twinflow.runtime.kernels.base import Kernels
from twinflow.runtime.kernels.library import KernelLibrary
from twinflow.runtime.kernels.native_linear import NativeForm, panel_bytes
from twinflow.runtime.models.linear import LinearFactory


class NativeKernels(Kernels):
    """See the module.

    Args:
        library: the compiled kernels.
    """

    def __init__(self, library: KernelLibrary) -> None:
        self._library = library

    @property
    def identity(self) -> str:
        """See the base class."""
        return f"native-{self._library.digest}"

    def linears(self) -> LinearFactory:
        """See the base class."""
        return LinearFactory([NativeForm(self._library)])

    def loads_bfloat16(self, dtype: torch.dtype) -> bool:
        """Weights are widened in registers."""
        return True

    def matrix_bytes(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> int:
        """See the base class."""
        out_features, in_features = shape
        return panel_bytes(out_features, in_features, dtype)

    def copies_matrices(self, dtype: torch.dtype, device: torch.device) -> bool:
        """Panels."""
        return True
