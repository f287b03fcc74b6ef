"""Attention over key/value heads in C++; `cpp/attention.cpp` computes it.

Rows of a sequence are cut into items of a few rows, each with one KV head and all query heads that
share it; threads take items one after another. What is made once per step is made here.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from twinflow.parallel.latent.block_share import IntArray
from twinflow.runtime.attention.base import HeadKernel
from twinflow.runtime.attention.rows import FlatRows
from twinflow.runtime.kernels.library import (
    Attended,
    AttentionShape,
    AttentionStep,
    KernelLibrary,
    Slots,
    StackStep,
)
from twinflow.runtime.kv.cache import KVCache

# Rows for which keys and values are brought to the processor once.
_ITEM_ROWS = 16
# Elements of a cache line.
_ALIGNED = 16


class NativeAttention(HeadKernel):
    """See the module.

    Args:
        cache: where keys and values live.
        num_heads: query heads.
        library: the compiled kernels.
    """

    def __init__(self, cache: KVCache, num_heads: int, library: KernelLibrary) -> None:
        super().__init__(cache, num_heads)
        planes = self._planes
        self._library = library
        self._head_rows = planes.head_rows.astype(np.int64)
        self._shape = AttentionShape(
            head_rows=self._head_rows.ctypes.data,
            rows_per_block=planes.head_rows_per_block,
            block_size=cache.layout.block_size,
            head_dim=planes.head_dim,
            query_heads=num_heads,
            kv_heads=planes.kv_heads,
            element_size=cache.data.itemsize,
        )
        self._slots = Slots(
            stored_heads=2 * planes.kv_heads,
            head_dim=planes.head_dim,
            element_size=cache.data.itemsize,
        )
        layers = range(cache.layout.num_layers)
        self._key_planes = np.array([planes.keys(layer).data_ptr() for layer in layers])
        self._value_planes = np.array([planes.values(layer).data_ptr() for layer in layers])
        self._step: _Step | None = None
        self._memory = torch.empty(0)

    @property
    def batch_invariant(self) -> bool:
        """By construction: what a row's result is made of does not depend on other rows."""
        return True

    def write(self, layer: int, keys_values: Tensor) -> None:
        """See the base class."""
        index = self._prepared(self._slot_index)
        if keys_values.dtype is not torch.float32:
            super().write(layer, keys_values)
            return
        slots = self._slots
        stored = self._stored(keys_values)
        slots.rows = index.data_ptr()
        slots.num_rows = stored.shape[0]
        slots.row_stride = stored.stride(0)
        self._library.store(slots, stored.data_ptr(), int(self._key_planes[layer]))

    def attend(self, layer: int, queries: Tensor) -> Tensor:
        """See the base class; the queries of a row are contiguous, rows need not be."""
        step = self._prepared(self._step)
        out = torch.empty(queries.shape)
        if queries.shape[0] > self._num_rows:
            out[self._num_rows :].zero_()
        attended = Attended(
            keys=int(self._key_planes[layer]),
            values=int(self._value_planes[layer]),
            queries=queries.data_ptr(),
            query_stride=queries.stride(0),
            out=out.data_ptr(),
        )
        self._library.attend(step.struct, self._shape, attended)
        return out

    @property
    def num_rows(self) -> int:
        """Rows of the step that are not padding."""
        return self._num_rows

    @property
    def writes_once(self) -> bool:
        """Whether the keys and values of each row of the step go to one place."""
        return self._written is None

    def stack_step(self, first_layer: int) -> StackStep:
        """What a stack of layers is told about this step, but for its own part.

        Valid until the next `prepare`.
        """
        step, index = self._prepared(self._step), self._prepared(self._slot_index)
        heads = self.num_heads + self._slots.stored_heads
        self._slots.rows = index.data_ptr()
        self._slots.num_rows = self._num_rows
        self._slots.row_stride = heads * self._shape.head_dim
        return StackStep(
            slots=ctypes.pointer(self._slots),
            attention=ctypes.pointer(step.struct),
            shape=ctypes.pointer(self._shape),
            key_planes=self._key_planes[first_layer:].ctypes.data,
            value_planes=self._value_planes[first_layer:].ctypes.data,
        )

    def memory(self, sizes: Sequence[int]) -> list[int]:
        """Addresses of float32 memory of so many elements each, for what lies between operations.

        Taken anew only when a step needs more than any before.
        """
        ends = list(accumulate(-(-size // _ALIGNED) * _ALIGNED for size in sizes))
        if ends[-1] > len(self._memory):
            self._memory = torch.empty(ends[-1])
        begins, width = self._memory.data_ptr(), self._memory.itemsize
        return [begins + width * at for at in (0, *ends[:-1])]

    def _plan(self, rows: FlatRows) -> None:
        self._step = _Step.of(rows)


@dataclass(frozen=True, slots=True)
class _Step:
    """The rows of a step as the kernel sees them.

    Attributes:
        struct: with addresses of the arrays.
        arrays: what it points to.
    """

    struct: AttentionStep
    arrays: tuple[IntArray, ...]

    @classmethod
    def of(cls, rows: FlatRows) -> "_Step":
        """Cut the rows of each sequence into items."""
        sequences = np.arange(len(rows.counts))
        if rows.one_row_each:
            first_rows = np.zeros(len(sequences), dtype=np.int64)
        else:
            per_sequence = -(-rows.counts // _ITEM_ROWS)
            before = np.cumsum(per_sequence) - per_sequence
            sequences = np.repeat(sequences, per_sequence)
            first_rows = (np.arange(len(sequences)) - before[sequences]) * _ITEM_ROWS
        arrays = (
            rows.starts,
            rows.counts,
            rows.first_rows,
            rows.blocks,
            rows.first_blocks,
            sequences,
            first_rows,
        )
        whole = tuple(np.ascontiguousarray(array, dtype=np.int64) for array in arrays)
        addresses = (array.ctypes.data for array in whole)
        return cls(AttentionStep(*addresses, len(sequences), _ITEM_ROWS), whole)
