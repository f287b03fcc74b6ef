"""What a model asks of an attention kernel.

A kernel is prepared once per step, with the rows of the step, and then called once per layer: it
writes the keys and values of the rows and lets each row attend to its own sequence up to itself.
It knows neither requests nor weights. What it is called with depends on what the model caches:
keys and values of heads (`HeadKernel`) or latents (`latent.base`).
"""

from abc import ABC, abstractmethod
from typing import Self, TypeVar

import torch
from torch import Tensor

from twinflow.parallel.latent.block_share import BlockShare
from twinflow.runtime.attention.rows import FlatRows
from twinflow.runtime.kv.cache import KVCache
from twinflow.runtime.kv.head_planes import HeadPlanes

T = TypeVar("T")


class Attention(ABC):
    """Causal attention over the paged KV of one cache.

    Attributes:
        cache: where keys and values live.
        share: the blocks of each sequence that are in it.
    """

    def __init__(self, cache: KVCache, share: BlockShare) -> None:
        self.cache = cache
        self.share = share

    @classmethod
    def of(cls, attention: "Attention") -> Self:
        """A kernel as one of this kind.

        Raises:
            TypeError: it is of another kind.
        """
        if not isinstance(attention, cls):
            raise TypeError(f"a {type(attention).__name__} is no {cls.__name__}")
        return attention

    @property
    @abstractmethod
    def batch_invariant(self) -> bool:
        """Whether a row's result is the same, bit by bit, whatever else is in the step."""

    @abstractmethod
    def prepare(self, rows: FlatRows) -> None:
        """Take over the rows of a step; valid until the next call."""

    @staticmethod
    def _prepared(value: T | None) -> T:
        if value is None:
            raise RuntimeError("a kernel is used before prepare()")
        return value


class HeadKernel(Attention):
    """Attention over key/value heads.

    Args:
        cache: where keys and values live.
        num_heads: query heads; a multiple of the KV heads of the cache.

    Raises:
        ValueError: the heads do not divide, or the cache has no heads.
    """

    def __init__(self, cache: KVCache, num_heads: int) -> None:
        super().__init__(cache, BlockShare(cache.layout.block_size))
        self._planes = HeadPlanes(cache)
        if num_heads % self._planes.kv_heads:
            raise ValueError(
                f"{num_heads} query heads cannot share {self._planes.kv_heads} KV heads"
            )
        self.num_heads = num_heads
        self._num_rows = 0
        self._slot_index: Tensor | None = None
        self._written: Tensor | None = None
        self._device = cache.data.device

    def prepare(self, rows: FlatRows) -> None:
        """See the base class."""
        self._num_rows = rows.num_rows
        written, blocks, positions = rows.written()
        self._written = None if written is None else torch.from_numpy(written).to(self._device)
        self._slot_index = self._planes.slot_index(blocks, positions % rows.block_size)
        self._plan(rows)

    def write(self, layer: int, keys_values: Tensor) -> None:
        """Store the keys and values of the rows.

        Args:
            layer: of which layer.
            keys_values: [rows or more, 2 * kv_heads, head_dim], keys after rotary embedding
                first; rows behind those of the step are padding and not stored.
        """
        index = self._prepared(self._slot_index)
        self._planes.write(layer, index, self._stored(keys_values))

    def _stored(self, keys_values: Tensor) -> Tensor:
        """What is written, in the order of the slots."""
        if self._written is None:
            return keys_values[: self._num_rows]
        return keys_values.index_select(0, self._written)

    @abstractmethod
    def attend(self, layer: int, queries: Tensor) -> Tensor:
        """Attention of every row to its sequence, the row itself included.

        Args:
            layer: of which layer; its keys and values are written.
            queries: float32 [rows or more, num_heads, head_dim], scaled; each row contiguous.

        Returns:
            float32, shaped as `queries`, zero for padding rows; valid until the next call.
        """

    @abstractmethod
    def _plan(self, rows: FlatRows) -> None:
        """Derive what all layers of the step share."""
