"""What a model asks of a kernel of latent attention (MLA; DeepSeek-V2, arXiv 2405.04434).

A latent of C columns is cached for each token, and a rotary key of R elements for all heads. Two
forms compute the same attention:

    expanded    keys [k_nope | rotary key] and values of every head are made from the latents,
                k_nope = W_UK c and v = W_UV c; for tokens of the prompt
    absorbed    queries are taken to the latents instead, q W_UK; all heads share the keys
                [c | rotary key] and the values c; for generated tokens

Expanding costs arithmetic for each token of context and is shared by all rows of a prompt;
absorbing reads little memory. Their results differ in rounding, so which form a row takes depends
on its token alone and never on the step.
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from twinflow.parallel.latent.block_share import IntArray
from twinflow.parallel.latent.sharing.base import LatentSharing
from twinflow.runtime.attention.base import Attention
from twinflow.runtime.attention.rows import FlatRows
from twinflow.runtime.attention.work_items import KV_TILE_TOKENS, SPAN_TILES
from twinflow.runtime.kv.cache import KVCache
from twinflow.runtime.kv.latent_planes import LatentPlanes, Slots

# Elements of the keys and values that are expanded at a time, unless those of one head exceed it.
_EXPANDED_ELEMENTS = 1 << 21
# Tokens that are expanded at a time, unless a KV tile has more than is usual: a span.
EXPANDED_TOKENS = SPAN_TILES * KV_TILE_TOKENS

# The keys and values of some heads: [tokens, kv_rank] to [tokens, heads * (nope_dim + value_dim)].
Expansion = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class LatentHeads:
    """Sizes of latent attention of a model.

    Attributes:
        num_heads: of all ranks together.
        kv_rank: columns of a latent.
        nope_dim: elements of a query and key head without position.
        rope_dim: elements with rotary position.
        value_dim: elements of a value head.
    """

    num_heads: int
    kv_rank: int
    nope_dim: int
    rope_dim: int
    value_dim: int

    @property
    def key_dim(self) -> int:
        """Elements of a query and of an expanded key."""
        return self.nope_dim + self.rope_dim

    def expanded_heads(self, prompt_heads: int) -> int:
        """How many heads are expanded at a time; divides `prompt_heads`."""
        affordable = _EXPANDED_ELEMENTS // (EXPANDED_TOKENS * (self.key_dim + self.value_dim))
        fits = (n for n in range(min(affordable, prompt_heads), 1, -1) if prompt_heads % n == 0)
        return next(fits, 1)


@dataclass(frozen=True, slots=True)
class RowPart:
    """Some rows of a step that take one form.

    Attributes:
        rows: those rows alone.
        index: int64 [rows] which rows of the step they are; None if they are all.
    """

    rows: FlatRows
    index: Tensor | None

    @classmethod
    def of(cls, step: FlatRows, rows: FlatRows, index: IntArray, device: torch.device) -> "RowPart":
        """The part of a step that consists of some rows of it."""
        if rows.num_rows == step.num_rows:
            return cls(rows, None)
        return cls(rows, torch.from_numpy(index).to(device))

    @property
    def is_empty(self) -> bool:
        """Whether there are none."""
        return self.rows.num_rows == 0

    def take(self, tensor: Tensor) -> Tensor:
        """These rows of a tensor of the step's rows, and all its padding if they are all."""
        return tensor if self.index is None else tensor.index_select(0, self.index)

    def put(self, tensor: Tensor, values: Tensor) -> None:
        """Write what was computed from `take` where it belongs."""
        if self.index is None:
            tensor.copy_(values)
        else:
            tensor.index_copy_(0, self.index, values)


class LatentKernel(Attention):
    """Latent attention of one rank.

    Args:
        cache: the latents and rotary keys that this rank holds.
        heads: sizes of the model.
        sharing: this rank's part of it.

    Attributes:
        prompt: rows of the step whose tokens are their prompt's.
        generated: the other rows.

    Raises:
        ValueError: the cache holds other columns than the rank is to hold.
    """

    prompt: RowPart
    generated: RowPart

    def __init__(self, cache: KVCache, heads: LatentHeads, sharing: LatentSharing) -> None:
        super().__init__(cache, sharing.block_share(cache.layout.block_size))
        self._planes = LatentPlanes(cache)
        self._heads = heads
        self._sharing = sharing
        expected = [len(columns) for columns in sharing.columns(heads.kv_rank)]
        if self._planes.widths != expected or self._planes.rope_width != heads.rope_dim:
            raise ValueError(
                f"the cache holds latents of {self._planes.widths} columns and rotary keys of "
                f"{self._planes.rope_width}, the rank is to hold {expected} and {heads.rope_dim}"
            )
        self._written: tuple[Tensor | None, Slots] | None = None
        self._num_rows = 0

    def prepare(self, rows: FlatRows) -> None:
        """See the base class."""
        device = self.cache.data.device
        self.prompt = RowPart.of(rows, *rows.prompt_rows(), device)
        self.generated = RowPart.of(rows, *rows.generated_rows(), device)
        self._num_rows = rows.num_rows
        self._written = self._slots(rows)
        self._plan()

    def write(self, layer: int, latents: Tensor, rope: Tensor) -> None:
        """Store the latents and rotary keys of those rows that this rank is to hold.

        Args:
            layer: of which layer.
            latents: [rows or more, held columns]; rows behind those of the step are padding.
            rope: [rows or more, rope_dim], rotated.
        """
        held, slots = self._prepared(self._written)
        latents, rope = latents[: self._num_rows], rope[: self._num_rows]
        if held is not None:
            latents, rope = latents.index_select(0, held), rope.index_select(0, held)
        self._planes.write(layer, slots, latents, rope)

    @abstractmethod
    def attend_prompt(self, layer: int, queries: Tensor, expansions: Sequence[Expansion]) -> Tensor:
        """Expanded attention of the rows of `prompt`.

        Args:
            layer: of which layer; its latents are written.
            queries: float32 [rows or more, prompt heads, nope_dim + rope_dim], scaled.
            expansions: of `LatentHeads.expanded_heads` heads each, all prompt heads in order.
                They are called with whole multiples of 32 tokens.

        Returns:
            float32 [rows or more, prompt heads, value_dim], zero for padding rows; valid until
            the next call.
        """

    @abstractmethod
    def attend_generated(self, layer: int, queries: Tensor) -> tuple[Tensor, Tensor | None]:
        """Absorbed attention of the rows of `generated` to what this rank holds.

        Args:
            layer: of which layer; its latents are written.
            queries: float32 [rows or more, attended heads, held columns + rope_dim], contiguous,
                absorbed, scaled; consumed.

        Returns:
            float32 [rows or more, attended heads, held columns], the weighted mean of the
            latents, zero for padding rows and where nothing is held; valid until the next call.
            And, if the sharing merges, [rows or more, attended heads], the natural logarithm of
            the sum of the exponentiated scores, -inf in such cases.
        """

    @abstractmethod
    def _plan(self) -> None:
        """Derive what all layers of the step share, from `prompt` and `generated`."""

    def _slots(self, rows: FlatRows) -> tuple[Tensor | None, Slots]:
        """Which rows are stored here, None for all, and where."""
        share = self.share
        written, blocks, positions = rows.written()
        held = share.holds(positions)
        index = None
        if share.size > 1 or written is not None:
            stored = held.nonzero()[0] if written is None else written[held]
            index = torch.from_numpy(stored).to(self.cache.data.device)
        return index, self._planes.slots(blocks[held], positions[held] % share.block_size)
