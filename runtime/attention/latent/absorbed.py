"""Absorbed latent attention by tiles: all heads of a row share keys and values.

A query tile has one matrix with a row for each of its rows and heads; keys are [latent | rotary
key], and the values are the first columns of the keys. See `tile_sums` for what is computed.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from twinflow.parallel.latent.block_share import BlockShare
from twinflow.runtime.attention.gather import Gather, padded_width
from twinflow.runtime.attention.rows import FlatRows
from twinflow.runtime.attention.slab import SlabRun, SoftmaxState
from twinflow.runtime.attention.tile_sums import (
    SLAB_ELEMENTS,
    TileSums,
    probe_products,
    random_matrices,
)
from twinflow.runtime.attention.work_items import QUERY_TILES, Slab, TileShape, kv_tile_tokens
from twinflow.runtime.attention.workspace import Workspace
from twinflow.runtime.kv.cache import KVCache
from twinflow.runtime.kv.latent_planes import LatentPlanes
from twinflow.runtime.row_tile import RowTile

# Rows of a query matrix, if one row of the step has not more heads.
_MATRIX_ROWS = 256
# Scores that are joined at a time, unless those of one slab exceed it: 16 MiB.
_JOINED_SCORES = 1 << 22

Join = Callable[[Tensor], None]
"""Adds to scores [1, n] what other ranks have found, in place."""


class AbsorbedTiles:
    """Absorbed attention over what a rank holds.

    Args:
        cache: the latents and rotary keys.
        planes: of the cache.
        num_heads: attended heads.
        share: the blocks that the rank holds.

    Attributes:
        row_tile: what the machine needs for rows not to influence each other.
    """

    def __init__(
        self, cache: KVCache, planes: LatentPlanes, num_heads: int, share: BlockShare
    ) -> None:
        self._planes = planes
        self._dtype = cache.layout.torch_dtype
        self._value_width = padded_width(planes.width)
        key_width = self._value_width + planes.rope_width
        self.row_tile = self._probe(key_width, share.block_size, cache.data.device)
        tiles = tuple(n for n in QUERY_TILES if n == 1 or n * num_heads <= _MATRIX_ROWS)
        self._shape = TileShape(
            num_heads=num_heads,
            key_width=key_width,
            value_width=self._value_width,
            share=share,
            head_rows=(0,),
            head_rows_per_block=1,
            row_tile=self.row_tile.rows,
            slab_elements=SLAB_ELEMENTS,
            query_tiles=tiles,
        )
        self._workspace = Workspace(cache.data.device)
        self._sums: TileSums | None = None

    def plan(self, rows: FlatRows) -> None:
        """Take over the rows of a step."""
        self._sums = TileSums(rows, self._shape, self._gather, self._workspace)

    def attend(
        self,
        layer: int,
        queries: Tensor,
        *,
        with_lse: bool,
        join: Join | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """See `LatentKernel.attend_generated`; ranks with a `join` all see the same rows."""
        rows, heads, _ = queries.shape
        if self._sums is None:
            raise RuntimeError("attention is asked for before there was a plan")
        padded = self._padded(queries)
        planes = self._planes.planes(layer)
        if join is None:
            state = self._compute(self._sums, padded, planes)
        else:
            state = self._compute_joined(self._sums, padded, planes, join)
        lse = None
        if with_lse:
            found = self._sums.log_sum_exp(state)
            lse = found.new_full((rows * heads,), -torch.inf)
            lse[: len(found)] = found
            lse = lse.view(rows, heads)
        out = self._workspace.take("out", (rows * heads, self._planes.width))
        self._sums.finish(state, out)
        return out.view(rows, heads, -1), lse

    def _compute(self, sums: TileSums, queries: Tensor, planes: Sequence[Tensor]) -> SoftmaxState:
        """All slabs, one after the other."""
        state = sums.new_state()
        for slab in sums.slabs:
            slab.compute(queries, planes)
            slab.merge(state)
        return state

    def _compute_joined(
        self, sums: TileSums, queries: Tensor, planes: Sequence[Tensor], join: Join
    ) -> SoftmaxState:
        """All slabs with as few joins as fit into memory.

        An exchange between ranks costs more than to gather keys and values twice.
        """
        state = sums.new_state()
        for slabs in _batches(sums.slabs):
            sizes = [slab.num_scores for slab in slabs]
            scores = self._workspace.take("joined", (1, sum(sizes)))
            parts = torch.split(scores[0], sizes)
            for slab, part in zip(slabs, parts, strict=True):
                slab.score(queries, planes, part)
            join(scores)
            for slab, part in zip(slabs, parts, strict=True):
                slab.weigh(part, planes)
                slab.merge(state)
        return state

    def _padded(self, queries: Tensor) -> Tensor:
        """[rows * heads, key_width], with zeros where the keys are padded."""
        rows, heads, _ = queries.shape
        width, pad = self._planes.width, self._value_width
        if width == pad:
            return queries.view(rows * heads, -1)
        padded = self._workspace.take("padded", (rows, heads, self._shape.key_width))
        padded[..., :width] = queries[..., :width]
        padded[..., width:pad].zero_()
        padded[..., pad:] = queries[..., width:]
        return padded.view(rows * heads, -1)

    def _gather(self, slab: Slab) -> Gather:
        return _LatentGather(slab, self._planes, self._shape, self._dtype, self._workspace)

    def _probe(self, key_width: int, block_size: int, device: torch.device) -> RowTile:
        keys = random_matrices((5, kv_tile_tokens(block_size), key_width), 0, device)
        return probe_products(keys, keys[..., : self._value_width])


def _batches(slabs: Sequence[SlabRun]) -> Iterator[Sequence[SlabRun]]:
    """Slabs in their order, as many at a time as `_JOINED_SCORES` allow."""
    first, held = 0, 0
    for at, slab in enumerate(slabs):
        if at > first and held + slab.num_scores > _JOINED_SCORES:
            yield slabs[first:at]
            first, held = at, 0
        held += slab.num_scores
    if first < len(slabs):
        yield slabs[first:]


class _LatentGather(Gather):
    """From the planes of latents and of rotary keys: one matrix, of which the values are a view.

    Args:
        slab: its `key_rows` are blocks.
        planes: of the cache.
        shape: of the kernel.
        dtype: of the planes.
        workspace: for the result.
    """

    def __init__(
        self,
        slab: Slab,
        planes: LatentPlanes,
        shape: TileShape,
        dtype: torch.dtype,
        workspace: Workspace,
    ) -> None:
        items, _, blocks = slab.key_rows.shape
        block_size = shape.share.block_size
        super().__init__(blocks * block_size, shape.key_width, shape.value_width)
        self._index = torch.from_numpy(slab.key_rows.reshape(-1)).to(workspace.device)
        self._keys = workspace.take("keys", (items, self.num_tokens, shape.key_width))
        self._keys[..., planes.width : shape.value_width].zero_()
        tokens = self._keys.view(items * blocks, block_size, shape.key_width)
        starts = [sum(planes.widths[:piece]) for piece in range(len(planes.widths))]
        columns = [*zip(starts, planes.widths, strict=True)]
        columns.append((shape.value_width, planes.rope_width))
        self._targets = [tokens[..., start : start + width] for start, width in columns]
        self._stored: list[Tensor] = []
        if dtype is torch.float32:
            return
        for piece, target in enumerate(self._targets):
            self._stored.append(workspace.take(f"stored_{piece}", target.shape, dtype))

    def __call__(self, planes: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """See the base class; `planes` are those of `LatentPlanes`."""
        for plane, target in zip(planes, self._stored or self._targets, strict=True):
            torch.index_select(plane, 0, self._index, out=target)
        if self._stored:
            for stored, target in zip(self._stored, self._targets, strict=True):
                target.copy_(stored)
        return self._keys, self._keys[..., : self.value_width]
