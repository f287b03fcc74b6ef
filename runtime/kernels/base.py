"""What computes the operations of a model's layers, and what it is called.

All kernels compute the same functions; they differ in speed, in how they round, and in the form in
which they keep weights. Which ones a model is computed with is decided once, when it is planned.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from twinflow.runtime.attention.base import Attention, HeadKernel
from twinflow.runtime.kv.cache import KVCache
from twinflow.runtime.models.linear import Linear, LinearFactory


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


@dataclass(frozen=True, slots=True)
class StackedLayer:
    """A layer that one rank has whole: attention over heads, and an MLP without experts.

    Attributes:
        attention_norm: [hidden] before attention.
        query_key_value: from hidden to the heads.
        head_norm: see `HeadRotation.norm`.
        output: from the query heads to hidden.
        mlp_norm: [hidden] before the MLP.
        gate_up: from hidden to both.
        down: back to hidden.
    """

    attention_norm: Tensor
    query_key_value: Linear
    head_norm: Tensor | None
    output: Linear
    mlp_norm: Tensor
    gate_up: Linear
    down: Linear


class LayerStack(ABC):
    """Consecutive layers that are computed at once, to the same bits as one operation at a time."""

    @abstractmethod
    def takes(self, hidden: Tensor, attention: Attention) -> bool:
        """Whether rows like these can pass it in a step that attention is prepared for."""

    @abstractmethod
    def run(self, hidden: Tensor, cos: Tensor, attention: Attention, layers: range) -> None:
        """Let rows pass some of the layers, keys and values included.

        Args:
            hidden: [rows, hidden], changed in place; `takes` said yes.
            cos: of the rows' positions, see `RotaryTable.lookup`.
            attention: prepared for the rows.
            layers: consecutive ones.
        """


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

    def stack(self, layers: Sequence[StackedLayer], eps: float) -> LayerStack | None:
        """All layers of a model as one, or None where each operation is a call of its own.

        Args:
            layers: from the first to the last.
            eps: of all norms.
        """
        return None

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
