"""What a model asks of an attention kernel.

A kernel is prepared once per step, with the rows of the step, and then called once per layer: it
writes the keys and values of the rows and lets each row attend to its own sequence up to itself.
It knows neither requests nor weights.
"""

from abc import ABC, abstractmethod

from torch import Tensor

from twinflow.runtime.attention.rows import FlatRows
from twinflow.runtime.kv.cache import KVCache


class Attention(ABC):
    """Causal attention over the paged KV of one cache.

    Args:
        cache: where keys and values live.
        num_heads: query heads; a multiple of the KV heads of the cache.

    Raises:
        ValueError: the heads do not divide.
    """

    def __init__(self, cache: KVCache, num_heads: int) -> None:
        if num_heads % cache.layout.kv_heads:
            raise ValueError(
                f"{num_heads} query heads cannot share {cache.layout.kv_heads} KV heads"
            )
        self.cache = cache
        self.num_heads = num_heads
        self._num_rows = 0
        self._slot_index: Tensor | None = None

    @property
    @abstractmethod
    def batch_invariant(self) -> bool:
        """Whether a row's result is the same, bit by bit, whatever else is in the step."""

    def prepare(self, rows: FlatRows) -> None:
        """Take over the rows of a step; valid until the next call."""
        self._num_rows = rows.num_rows
        self._slot_index = self.cache.slot_index(
            rows.row_blocks(), rows.positions % rows.block_size
        )
        self._plan(rows)

    def write(self, layer: int, keys_values: Tensor) -> None:
        """Store the keys and values of the rows.

        Args:
            layer: of which layer.
            keys_values: [rows or more, 2 * kv_heads, head_dim], keys after rotary embedding
                first; rows behind those of the step are padding and not stored.
        """
        if self._slot_index is None:
            raise RuntimeError("write() before prepare()")
        self.cache.write(layer, self._slot_index, keys_values[: self._num_rows])

    @abstractmethod
    def attend(self, layer: int, queries: Tensor) -> Tensor:
        """Attention of every row to its sequence, the row itself included.

        Args:
            layer: of which layer; its keys and values are written.
            queries: float32 [rows or more, num_heads, head_dim], contiguous, scaled.

        Returns:
            float32, shaped as `queries`, zero for padding rows; valid until the next call.
        """

    @abstractmethod
    def _plan(self, rows: FlatRows) -> None:
        """Derive what all layers of the step share."""
