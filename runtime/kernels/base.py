"""What computes the operations of a model's layers, and what it is called.

All kernels compute the same functions; they differ in speed, in how they round, and in the form in
which they keep weights. Which ones a model is computed with is decided once, when it is planned.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from twinflow.runtime.attention.base import HeadKernel
from twinflow.runtime.kv.cache import KVCache
from twinflow.runtime.models.linear import LinearFactory


@dataclass(frozen=True, slots=True)
class HeadRotation:
    """What is done to queries and keys before they meet.

    Attributes:
        cos: of the rows' positions, see `RotaryTable.lookup`.
        sin: likewise.
        kv_heads: heads of keys.
        norm: [query heads + kv_heads, head_dim] gain of a norm on each head; None for none.
        eps: of that norm.
        query_factor: for queries, after all else.
    """

    cos: Tensor
    sin: Tensor
    kv_heads: int
    norm: Tensor | None
    eps: float
    query_factor: float


class Kernels(ABC):
    """The operations of one model."""

    @property
    @abstractmethod
    def identity(self) -> str:
        """Tells apart kernels that round differently; workers with different ones do not go on
        with each other's requests."""

    @abstractmethod
    def linears(self) -> LinearFactory:
        """A new factory of linear layers."""

    @abstractmethod
    def head_attention(self, cache: KVCache, num_heads: int) -> HeadKernel:
        """Attention over key/value heads.

        Args:
            cache: where keys and values live.
            num_heads: query heads.
        """

    @abstractmethod
    def add_norm(self, hidden: Tensor, delta: Tensor | None, weight: Tensor, eps: float) -> Tensor:
        """Add to hidden states and normalise the sums (see `rms_norm`).

        Args:
            hidden: [rows, width], changed in place.
            delta: likewise, what to add; None for nothing.
            weight: [width].
            eps: added to the mean.

        Returns:
            A new [rows, width].
        """

    @abstractmethod
    def gated_silu(self, gate_up: Tensor) -> Tensor:
        """See `functions.gated_silu`."""

    @abstractmethod
    def rotate_heads(self, heads: Tensor, rotation: HeadRotation) -> Tensor:
        """Normalise and rotate keys in place, and make queries.

        Args:
            heads: [rows, query heads + 2 * kv_heads, head_dim]: queries, keys, values; changed.
            rotation: what to do.

        Returns:
            float32 [rows, query heads, head_dim], scaled; may be a part of `heads`.
        """

    @abstractmethod
    def loads_bfloat16(self, dtype: torch.dtype) -> bool:
        """Whether matrices that a checkpoint has in bfloat16 are to be loaded so, although the
        model is computed in `dtype`."""

    @abstractmethod
    def matrix_bytes(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> int:
        """What a linear layer keeps of a weight.

        Args:
            shape: [out_features, in_features].
            dtype: in which it was loaded.
            device: where it is.
        """

    @abstractmethod
    def copies_matrices(self, dtype: torch.dtype, device: torch.device) -> bool:
        """Whether a linear layer keeps its weight in a form of its own, not the one loaded."""
