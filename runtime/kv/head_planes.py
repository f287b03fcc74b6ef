"""A KV cache as keys and values of heads: what attention over heads reads and writes.

Each part of the layout holds some heads, their keys before their values (see `kv_layout`). All
planes have one width, so a plane of a block is one row of the memory, and a head of a layer is
found at a fixed distance from the block's first row, whatever part it is in.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from twinflow.runtime.kv.cache import KVCache


class HeadPlanes:
    """Keys and values in a cache.

    Args:
        cache: its parts have heads, as many in each.

    Attributes:
        layout: of the cache.
        kv_heads: KV heads in it.
        head_dim: elements of a head.
        head_rows_per_block: distance of two blocks in the rows of `keys` and `values`.
        head_rows: [kv_heads] row of each head of block 0 in `keys` and `values`.

    Raises:
        ValueError: the parts differ in shape.
    """

    def __init__(self, cache: KVCache) -> None:
        layout = cache.layout
        shapes = {(part.planes, part.width) for part in layout.parts}
        if len(shapes) > 1 or layout.parts[0].planes % 2:
            raise ValueError(f"the parts {layout.parts} are not of keys and values of heads")
        ((planes, self.head_dim),) = shapes
        heads_in_part = planes // 2
        self.layout = layout
        self.kv_heads = heads_in_part * len(layout.parts)
        self.head_rows_per_block = layout.num_layers * 2 * self.kv_heads
        parts, heads = np.divmod(np.arange(self.kv_heads), heads_in_part)
        self.head_rows: NDArray[np.int64] = parts * layout.num_layers * planes + heads
        self.device = cache.data.device

        rows = cache.data.view(-1, layout.block_size * self.head_dim)
        firsts = range(0, layout.num_layers * planes, planes)
        self._keys = [rows[first:] for first in firsts]
        self._values = [rows[first + heads_in_part :] for first in firsts]
        self._slots = [keys.view(-1, self.head_dim) for keys in self._keys]
        self._written_rows = np.concatenate((self.head_rows, self.head_rows + heads_in_part))

    def keys(self, layer: int) -> Tensor:
        """Keys of a layer, one row for each block and head.

        Returns:
            [rows, block_size * head_dim]: row `block * head_rows_per_block + head_rows[head]`.
        """
        return self._keys[layer]

    def values(self, layer: int) -> Tensor:
        """Values of a layer; rows as in `keys`."""
        return self._values[layer]

    def slot_index(self, blocks: NDArray[np.int64], offsets: NDArray[np.int64]) -> Tensor:
        """Where `write` puts tokens.

        Args:
            blocks: [tokens] block of each token.
            offsets: [tokens] slot in that block.

        Returns:
            int64 [tokens * 2 * kv_heads] on the device of the cache.
        """
        rows = blocks[:, None] * self.head_rows_per_block + self._written_rows
        slots = rows * self.layout.block_size + offsets[:, None]
        return torch.from_numpy(slots.reshape(-1)).to(self.device, non_blocking=True)

    def write(self, layer: int, slot_index: Tensor, keys_values: Tensor) -> None:
        """Store keys and values of tokens.

        Args:
            layer: of which layer.
            slot_index: from `slot_index`.
            keys_values: [tokens, 2 * kv_heads, head_dim], the keys first, in the dtype of the
                layout.
        """
        rows = keys_values.reshape(-1, self.head_dim)
        self._slots[layer].index_copy_(0, slot_index, rows)
