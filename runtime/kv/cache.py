"""The memory of the KV blocks of one rank, and the views that others work on.

`KVLayout` says what the bytes mean; this module owns them. It does not know who holds a block:
that is `block_pool`. Block 0 belongs to nobody and is never read.

A block is handed to one sequence after another. `clear` zeroes a block whose first slots a
sequence is about to write, so that the slots behind its last token are zero and the bytes of a
block depend on nothing but the tokens in it.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from twinflow.parallel.kv_layout import KVLayout


class KVCache:
    """`num_blocks` blocks of one layout, the null block included.

    Attributes:
        layout: meaning of the bytes.
        num_blocks: blocks, the null block included.
        data: [num_blocks, *layout.page_shape], zero at the start. The pages are touched here, so
            that a machine without the memory fails at once and not under load.
    """

    def __init__(self, layout: KVLayout, num_blocks: int, device: torch.device) -> None:
        if num_blocks < 2:
            raise ValueError(f"a KV cache needs at least 2 blocks, not {num_blocks}")
        self.layout = layout
        self.num_blocks = num_blocks
        self.data = torch.zeros(
            (num_blocks, *layout.page_shape), dtype=layout.torch_dtype, device=device
        )
        self._pages = self.data.view(num_blocks, -1).view(torch.uint8)
        self._blocks = self.data.view(num_blocks, -1)
        head_rows = self.data.view(-1, layout.block_size * layout.head_dim)
        firsts = range(0, self.head_rows_per_block, layout.kv_heads)
        views = [head_rows[first:] for first in firsts]
        self._keys, self._values = views[::2], views[1::2]
        self._slots = [keys.view(-1, layout.head_dim) for keys in self._keys]

    @property
    def head_rows_per_block(self) -> int:
        """Distance of two blocks in the rows of `keys` and `values`."""
        return self.layout.num_layers * 2 * self.layout.kv_heads

    def page(self, block_id: int, first_layer: int, num_layers: int) -> Tensor:
        """The bytes of some layers of a block, to be sent or received in place.

        Returns:
            uint8 [num_layers * layout.layer_bytes], contiguous, sharing memory with `data`.

        Raises:
            ValueError: the block or the layers do not exist, or it is the null block.
        """
        if not 0 < block_id < self.num_blocks:
            raise ValueError(f"block {block_id} is not in 1..{self.num_blocks - 1}")
        end_layer = first_layer + num_layers
        if not 0 <= first_layer < end_layer <= self.layout.num_layers:
            raise ValueError(
                f"layers [{first_layer}, {end_layer}) are not in [0, {self.layout.num_layers})"
            )
        size = self.layout.layer_bytes
        return self._pages[block_id, first_layer * size : end_layer * size]

    def keys(self, layer: int) -> Tensor:
        """Keys of a layer, one row for each block and head.

        Returns:
            [rows, block_size * head_dim]: row `block * head_rows_per_block + head`.
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
        layout = self.layout
        heads = np.arange(2 * layout.kv_heads)
        head_rows = blocks[:, None] * self.head_rows_per_block + heads
        index = torch.from_numpy((head_rows * layout.block_size + offsets[:, None]).reshape(-1))
        return index.to(self.data.device, non_blocking=True)

    def write(self, layer: int, slot_index: Tensor, keys_values: Tensor) -> None:
        """Store keys and values of tokens.

        Args:
            layer: of which layer.
            slot_index: from `slot_index`.
            keys_values: [tokens, 2 * kv_heads, head_dim], the keys first, in the dtype of the
                layout.
        """
        rows = keys_values.reshape(-1, self.layout.head_dim)
        self._slots[layer].index_copy_(0, slot_index, rows)

    def clear(self, blocks: NDArray[np.int64]) -> None:
        """Zero whole blocks."""
        if blocks.size:
            index = torch.from_numpy(blocks).to(self.data.device, non_blocking=True)
            self._blocks.index_fill_(0, index, 0)
