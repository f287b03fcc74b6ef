"""What the bytes of a KV block mean.

A block holds `block_size` token slots of every layer and is one contiguous page:

    cache  [num_blocks, num_layers, 2, kv_heads, block_size, head_dim]
                        └ layer ──┘ └ 0: K, 1: V (K after rotary embedding)

so the slice of a block that belongs to a contiguous range of layers is contiguous too: it can be
sent and received in place, while other layers are still being computed. This module describes
layouts; it does not own memory.
"""

import hashlib
from dataclasses import asdict, dataclass

import torch

LAYOUT_VERSION = 1


@dataclass(frozen=True, slots=True)
class KVLayout:
    """Shape and meaning of the KV blocks of one model on one rank.

    Attributes:
        kind: family of the layout; `gqa` holds keys and values per KV head.
        num_layers: layers that have KV.
        kv_heads: KV heads of this rank.
        head_dim: elements of one head.
        block_size: token slots of a block, a power of two.
        dtype: name of the torch dtype of the elements, such as `float32`.
    """

    num_layers: int
    kv_heads: int
    head_dim: int
    block_size: int
    dtype: str
    kind: str = "gqa"

    @property
    def torch_dtype(self) -> torch.dtype:
        """The element type."""
        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype

    @property
    def page_shape(self) -> tuple[int, int, int, int, int]:
        """Shape of one block: [num_layers, 2, kv_heads, block_size, head_dim]."""
        return (self.num_layers, 2, self.kv_heads, self.block_size, self.head_dim)

    @property
    def layer_bytes(self) -> int:
        """Bytes of one layer of one block."""
        elements = 2 * self.kv_heads * self.block_size * self.head_dim
        return elements * self.torch_dtype.itemsize

    @property
    def block_bytes(self) -> int:
        """Bytes of one block."""
        return self.num_layers * self.layer_bytes

    def digest(self) -> str:
        """Hex digest that two workers compare before they exchange blocks."""
        fields = sorted({**asdict(self), "version": LAYOUT_VERSION}.items())
        return hashlib.sha256(repr(fields).encode()).hexdigest()[:32]
