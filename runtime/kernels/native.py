"""The operations in C++ kernels, for CPUs with AVX2 or AVX-512.

Hidden states in bfloat16 are left to torch, but for linear layers and attention, which compute in
float32 whatever comes in.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from twinflow.runtime.attention.base import HeadKernel
from twinflow.runtime.kernels.base import HeadRotation, Kernels, LayerStack, StackedLayer
from twinflow.runtime.kernels.library import Heads, KernelLibrary, NormedRows
from twinflow.runtime.kernels.native_attention import NativeAttention
from twinflow.runtime.kernels.native_linear import NativeForm, panel_bytes
from twinflow.runtime.kernels.native_stack import NativeStack
from twinflow.runtime.kernels.plain import TorchKernels
from twinflow.runtime.kv.cache import KVCache
from twinflow.runtime.models.linear import LinearFactory


class NativeKernels(Kernels):
    """See the module.

    Args:
        library: the compiled kernels.
    """

    def __init__(self, library: KernelLibrary) -> None:
        self._library = library
        self._plain = TorchKernels()

    @property
    def identity(self) -> str:
        """See the base class."""
        return f"native-{self._library.digest}"

    def linears(self) -> LinearFactory:
        """See the base class."""
        return LinearFactory([NativeForm(self._library)])

    def head_attention(self, cache: KVCache, num_heads: int) -> HeadKernel:
        """See the base class."""
        return NativeAttention(cache, num_heads, self._library)

    def add_norm(self, hidden: Tensor, delta: Tensor | None, weight: Tensor, eps: float) -> Tensor:
        """See the base class."""
        if hidden.dtype is not torch.float32:
            return self._plain.add_norm(hidden, delta, weight, eps)
        out = torch.empty_like(hidden)
        self._library.add_norm(
            NormedRows(
                hidden=hidden.data_ptr(),
                delta=None if delta is None else delta.data_ptr(),
                weight=weight.data_ptr(),
                out=out.data_ptr(),
                num_rows=hidden.shape[0],
                width=hidden.shape[1],
                eps=eps,
            )
        )
        return out

    def gated_silu(self, gate_up: Tensor) -> Tensor:
        """See the base class."""
        if gate_up.dtype is not torch.float32:
            return self._plain.gated_silu(gate_up)
        count, width = gate_up.shape[0], gate_up.shape[1] // 2
        out = torch.empty((count, width))
        self._library.gated_silu(gate_up.data_ptr(), out.data_ptr(), count, width)
        return out

    def rotate_heads(self, heads: Tensor, rotation: HeadRotation) -> Tensor:
        """See the base class; queries are made in place too."""
        if heads.dtype is not torch.float32:
            return self._plain.rotate_heads(heads, rotation)
        count, num_heads, head_dim = heads.shape
        query_heads = num_heads - 2 * rotation.kv_heads
        self._library.rotate(
            Heads(
                rows=heads.data_ptr(),
                num_rows=count,
                query_heads=query_heads,
                kv_heads=rotation.kv_heads,
                head_dim=head_dim,
                table=rotation.cos.data_ptr(),  # the sines are behind them
                norm=None if rotation.norm is None else rotation.norm.data_ptr(),
                eps=rotation.eps,
                query_factor=rotation.query_factor,
            )
        )
        return heads[:, :query_heads]

    def stack(self, layers: Sequence[StackedLayer], eps: float) -> LayerStack | None:
        """See the base class."""
        return NativeStack.of(layers, eps, self._library)

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
