"""The memory of the KV blocks of one rank.

`KVLayout` says what the bytes mean; this module owns them. It does not know who holds a block:
that is `block_pool`. Block 0 belongs to nobody and is never read. How attention reads and writes
them is for `head_planes` and `latent_planes`.

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
        data: [num_blocks, layout.page_elements], zero at the start. The pages are touched here,
            so that a machine without the memory fails at once and not under load.
    """

    def __init__(self, layout: KVLayout, num_blocks: int, device: torch.device) -> None:
        if num_blocks < 2:
            raise ValueError(f"a KV cache needs at least 2 blocks, not {num_blocks}")
        self.layout = layout
        self.num_blocks = num_blocks
        self.data = torch.zeros(
            (num_blocks, layout.page_elements), dtype=layout.torch_dtype, device=device
        )
        self._pages = self.data.view(torch.uint8)
        self._first_bytes = [offset * self.data.itemsize for offset in layout.part_offsets]

    def page(self, block_id: int, first_layer: int, num_layers: int, part: int) -> Tensor:
        """The bytes of some layers of a part of a block, to be sent or received in place.

        Returns:
            uint8 [num_layers * layout.layer_bytes(part)], contiguous, sharing memory with `data`.

        Raises:
            ValueError: the block, the layers or the part do not exist, or it is the null block.
        """
        if not 0 < block_id < self.num_blocks:
            raise ValueError(f"block {block_id} is not in 1..{self.num_blocks - 1}")
        end_layer = first_layer + num_layers
        if not 0 <= first_layer < end_layer <= self.layout.num_layers:
            raise ValueError(
                f"layers [{first_layer}, {end_layer}) are not in [0, {self.layout.num_layers})"
            )
        if not 0 <= part < len(self.layout.parts):
            raise ValueError(f"part {part} is not in 0..{len(self.layout.parts) - 1}")
        first, size = self._first_bytes[part], self.layout.layer_bytes(part)
        return self._pages[block_id, first + first_layer * size : first + end_layer * size]

    def part(self, part: int) -> Tensor:
        """A part of all blocks: [num_blocks, num_layers, planes, block_size, width], a view."""
        layout = self.layout
        first = layout.part_offsets[part]
        columns = self.data[:, first : first + layout.num_layers * layout.layer_elements(part)]
        planes, width = layout.parts[part].planes, layout.parts[part].width
        return columns.view(-1, layout.num_layers, planes, layout.block_size, width)

    def copy(self, pairs: NDArray[np.int64]) -> None:
        """Copy whole blocks: from the first to the second of each pair, [pairs, 2]."""
        if pairs.size:
            index = torch.from_numpy(pairs).to(self.data.device, non_blocking=True)
            self.data.index_copy_(0, index[:, 1], self.data.index_select(0, index[:, 0]))

    def clear(self, blocks: NDArray[np.int64]) -> None:
        """Zero whole blocks."""
        if blocks.size:
            index = torch.from_numpy(blocks).to(self.data.device, non_blocking=True)
            self.data.index_fill_(0, index, 0)
