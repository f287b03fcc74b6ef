"""Tiled attention over key/value heads in plain torch operations, for any device; the oracle of
faster kernels. What is computed, and in which order, is described in `tile_sums`.
"""

import torch
from torch import Tensor

from twinflow.parallel.latent.block_share import BlockShare
from twinflow.runtime.attention.base import HeadKernel
from twinflow.runtime.attention.gather import HeadGather, padded_width
from twinflow.runtime.attention.rows import FlatRows
from twinflow.runtime.attention.tile_sums import (
    SLAB_ELEMENTS,
    TileSums,
    probe_products,
    random_matrices,
)
from twinflow.runtime.attention.work_items import Slab, TileShape, kv_tile_tokens
from twinflow.runtime.attention.workspace import Workspace
from twinflow.runtime.kv.cache import KVCache
from twinflow.runtime.row_tile import RowTile


class TiledAttention(HeadKernel):
    """See the module."""

    def __init__(self, cache: KVCache, num_heads: int) -> None:
        super().__init__(cache, num_heads)
        planes, block_size = self._planes, cache.layout.block_size
        self._tile = _probe(planes.head_dim, block_size, cache.data.device)
        self._shape = TileShape(
            num_heads=num_heads,
            key_width=planes.head_dim,
            value_width=padded_width(planes.head_dim),
            share=BlockShare(block_size),
            head_rows=tuple(planes.head_rows.tolist()),
            head_rows_per_block=planes.head_rows_per_block,
            row_tile=self._tile.rows,
            slab_elements=SLAB_ELEMENTS,
        )
        self._workspace = Workspace(cache.data.device)
        self._sums: TileSums | None = None

    @property
    def batch_invariant(self) -> bool:
        """Whether the probe of this machine's batched matrix product succeeded."""
        return self._tile.batch_invariant

    def attend(self, layer: int, queries: Tensor) -> Tensor:
        """See the base class."""
        sums = self._prepared(self._sums)
        flat_queries = queries.reshape(-1, self._planes.head_dim)
        planes = (self._planes.keys(layer), self._planes.values(layer))
        state = sums.new_state()
        for slab in sums.slabs:
            slab.compute(flat_queries, planes)
            slab.merge(state)
        out = self._workspace.take("out", flat_queries.shape)
        sums.finish(state, out)
        return out.view(queries.shape)

    def _plan(self, rows: FlatRows) -> None:
        self._sums = TileSums(rows, self._shape, self._gather, self._workspace)

    def _gather(self, slab: Slab) -> HeadGather:
        layout, dim = self.cache.layout, self._planes.head_dim
        dtype = layout.torch_dtype
        return HeadGather(slab, (dim, dim), layout.block_size, dtype, self._workspace)


def _probe(head_dim: int, block_size: int, device: torch.device) -> RowTile:
    tokens = kv_tile_tokens(block_size)
    keys = random_matrices((5, tokens, head_dim), 0, device)
    return probe_products(keys, random_matrices((5, tokens, padded_width(head_dim)), 1, device))
