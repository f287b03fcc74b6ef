"""A KV cache as latents and rotary keys: what latent attention reads and writes.

The parts of the layout are pieces of the columns of the latents, one plane each, and the rotary
keys as the last part. A piece is read and written where it lies; together, in the order of the
parts, they are the columns that this rank holds.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from twinflow.parallel.kv_part import ROPE_PART
from twinflow.runtime.kv.cache import KVCache

# Block and slot of each token.
Slots = tuple[Tensor, Tensor]


class LatentPlanes:
    """Latents and rotary keys in a cache.

    Args:
        cache: its parts are pieces of latents and, last, rotary keys.

    Attributes:
        widths: columns of each piece of the latents.
        width: columns of the latents that are held, all pieces together.
        rope_width: elements of a rotary key.

    Raises:
        ValueError: the cache has other parts.
    """

    def __init__(self, cache: KVCache) -> None:
        *pieces, rope = cache.layout.parts
        if rope.name != ROPE_PART or not pieces or any(part.planes != 1 for part in pieces):
            raise ValueError(f"the parts {cache.layout.parts} are not of latents and rotary keys")
        self.widths = [piece.width for piece in pieces]
        self.width = sum(self.widths)
        self.rope_width = rope.width
        self._device = cache.data.device
        parts = [cache.part(part)[:, :, 0] for part in range(len(cache.layout.parts))]
        self._layers = [
            tuple(part[:, layer] for part in parts) for layer in range(cache.layout.num_layers)
        ]

    def planes(self, layer: int) -> tuple[Tensor, ...]:
        """Pieces of the latents of a layer, then rotary keys: [num_blocks, block_size, width]."""
        return self._layers[layer]

    def slots(self, blocks: NDArray[np.int64], offsets: NDArray[np.int64]) -> Slots:
        """Where `write` puts tokens: the block of each, and the slot in it."""
        return (
            torch.from_numpy(blocks).to(self._device, non_blocking=True),
            torch.from_numpy(offsets).to(self._device, non_blocking=True),
        )

    def write(self, layer: int, slots: Slots, latents: Tensor, rope: Tensor) -> None:
        """Store tokens.

        Args:
            layer: of which layer.
            slots: from `slots`, no slot twice.
            latents: [tokens, width], in the dtype of the layout.
            rope: [tokens, rope_width], likewise.
        """
        *pieces, keys = self._layers[layer]
        for plane, piece in zip(pieces, torch.split(latents, self.widths, dim=1), strict=True):
            plane.index_put_(slots, piece)
        keys.index_put_(slots, rope)

    def read(self, layer: int, blocks: Tensor) -> tuple[Tensor, Tensor]:
        """Copies of whole blocks.

        Args:
            layer: of which layer.
            blocks: int64 [n].

        Returns:
            [n, block_size, width] and [n, block_size, rope_width].
        """
        *pieces, keys = (plane.index_select(0, blocks) for plane in self._layers[layer])
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=2), keys
