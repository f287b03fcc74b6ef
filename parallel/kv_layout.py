"""What the bytes of a KV block mean.

A block holds the token slots of every layer and is one contiguous page. A page is a sequence of
parts; a part is planes that stay together, and is contiguous over the layers:

    page   = part 0 | part 1 | ...
    part i = [num_layers, planes, block_size, width]

so the slice of a part that belongs to a contiguous range of layers is contiguous too: it can be
sent and received in place, while other layers are still being computed. Parts are what ranks
share a model's KV by: a deployment agrees on them, and each rank holds some. Workers that are cut
into different numbers of ranks then exchange whole parts, and copy nothing together first.

    key/value heads    part `heads 2-3`: the keys of heads 2 and 3, then their values
    latents            part `latent 0/2`: the first half of the columns; part `rope`: rotary keys

This module describes layouts; it does not own memory.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import torch

from twinflow.parallel.kv_part import KVPart

LAYOUT_VERSION = 2

_HEADS = "heads"


@dataclass(frozen=True, slots=True)
class KVLayout:
    """Shape and meaning of the KV blocks of a worker, or of one of its ranks.

    Attributes:
        num_layers: layers that have KV.
        block_size: token slots of a block, a power of two.
        dtype: name of the torch dtype of the elements, such as `float32`.
        parts: what a page consists of, in this order.
        meaning: in words without spaces, whatever else decides what the bytes say.
    """

    num_layers: int
    block_size: int
    dtype: str
    parts: tuple[KVPart, ...]
    meaning: str

    def __post_init__(self) -> None:
        names = [part.name for part in self.parts]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"a layout has parts, each once, not {names}")

    @classmethod
    def of_heads(
        cls,
        *,
        num_layers: int,
        kv_heads: int,
        head_dim: int,
        block_size: int,
        dtype: str,
        parts: int = 1,
    ) -> "KVLayout":
        """The layout of a model with key/value heads, cut into parts of neighbouring heads.

        Keys are those after rotary embedding.

        Raises:
            ValueError: the heads cannot be cut into so many parts.
        """
        if parts < 1 or kv_heads % parts:
            raise ValueError(f"{kv_heads} KV heads cannot be cut into {parts} parts")
        each = kv_heads // parts
        heads = tuple(
            KVPart(f"{_HEADS} {first}-{first + each - 1}", 2 * each, head_dim)
            for first in range(0, kv_heads, each)
        )
        return cls(num_layers, block_size, dtype, heads, _HEADS)

    @property
    def torch_dtype(self) -> torch.dtype:
        """The element type."""
        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype

    @property
    def part_offsets(self) -> tuple[int, ...]:
        """Element of a page at which each part begins."""
        sizes = [self.num_layers * self.layer_elements(part) for part in range(len(self.parts))]
        return tuple(sum(sizes[:part]) for part in range(len(sizes)))

    @property
    def page_elements(self) -> int:
        """Elements of one block."""
        return self.num_layers * sum(map(self.layer_elements, range(len(self.parts))))

    @property
    def block_bytes(self) -> int:
        """Bytes of one block."""
        return self.page_elements * self.torch_dtype.itemsize

    def layer_elements(self, part: int) -> int:
        """Elements of one layer of a part of one block."""
        return self.parts[part].planes * self.block_size * self.parts[part].width

    def layer_bytes(self, part: int) -> int:
        """Bytes of one layer of a part of one block."""
        return self.layer_elements(part) * self.torch_dtype.itemsize

    def index_of(self, name: str) -> int:
        """Which part has a name.

        Raises:
            ValueError: none has.
        """
        names = [part.name for part in self.parts]
        if name not in names:
            raise ValueError(f"no part is named {name!r}; there are {names}")
        return names.index(name)

    def only(self, names: Sequence[str]) -> "KVLayout":
        """The layout of blocks that hold some of the parts, in the order of `names`.

        Raises:
            ValueError: there is no such part.
        """
        return replace(self, parts=tuple(self.parts[self.index_of(name)] for name in names))

    def digest(self) -> str:
        """What two workers compare before they exchange these parts of blocks: the meaning, and a
        hash over everything."""
        fields = sorted({**asdict(self), "version": LAYOUT_VERSION}.items())
        return f"{self.meaning}:{hashlib.sha256(repr(fields).encode()).hexdigest()[:32]}"
