"""Tiled attention in plain torch operations, for any device; the oracle of faster kernels.

For each item of `work_items` (a query tile Q and a KV tile K, V of one KV head):

    S = Q Kᵀ,  P = exp(S - m),  l = Σ P,  O = P V          m: maximum of the row over its span

Items of a span add up in the order of their KV tiles, l and O alike; spans are joined by the
recurrence of FlashAttention (arXiv 2205.14135, algorithm 1), and O / l is the result. All of it
is float32, whatever the KV cache holds. Each of these operations treats a row as if it were alone:
matrix products because their row counts are multiples of a measured row tile and their columns
of 16, the others by nature. So a row's bits do not depend on the other rows of the step.
"""

from functools import partial

import torch
from torch import Tensor

from twinflow.parallel.kv_layout import KVLayout
from twinflow.runtime.attention.base import Attention
from twinflow.runtime.attention.rows import FlatRows
from twinflow.runtime.attention.slab import SlabRun, SoftmaxState, value_width
from twinflow.runtime.attention.work_items import TileShape, kv_tile_tokens, plan_work
from twinflow.runtime.attention.workspace import Workspace
from twinflow.runtime.kv.cache import KVCache
from twinflow.runtime.row_tile import RowKernel, RowTile, find_row_tile

# Elements that a slab keeps in memory: small enough to stay in the cache of a core complex, large
# enough that the overhead of an operation does not matter.
_SLAB_ELEMENTS = 1 << 20


class TiledAttention(Attention):
    """See the module."""

    def __init__(self, cache: KVCache, num_heads: int) -> None:
        super().__init__(cache, num_heads)
        layout = cache.layout
        device = cache.data.device
        self._tile = _probe(layout, device)
        self._shape = TileShape(
            num_heads=num_heads,
            kv_heads=layout.kv_heads,
            head_dim=layout.head_dim,
            block_size=layout.block_size,
            head_rows_per_block=cache.head_rows_per_block,
            row_tile=self._tile.rows,
            slab_elements=_SLAB_ELEMENTS,
        )
        self._workspace = Workspace(device)
        self._slabs: list[SlabRun] = []
        self._state = SoftmaxState.take(self._workspace, 0, layout.head_dim)
        self._output_rows = torch.empty(0, dtype=torch.int64, device=device)

    @property
    def batch_invariant(self) -> bool:
        """Whether the probe of this machine's batched matrix product succeeded."""
        return self._tile.batch_invariant

    def attend(self, layer: int, queries: Tensor) -> Tensor:
        """See the base class."""
        flat_queries = queries.view(-1, self.cache.layout.head_dim)
        keys, values = self.cache.keys(layer), self.cache.values(layer)
        for slab in self._slabs:
            slab.compute(flat_queries, keys, values)
            slab.merge()
        result = self._state.normalised()
        out = self._workspace.take("out", flat_queries.shape)
        used = len(self._output_rows)
        columns = result[:, : out.shape[1]]
        torch.index_select(columns, 0, self._output_rows, out=out[:used])
        if used < len(out):
            out[used:].zero_()
        return out.view(queries.shape)

    def _plan(self, rows: FlatRows) -> None:
        work = plan_work(rows, self._shape)
        layout = self.cache.layout
        self._output_rows = torch.from_numpy(work.output_rows).to(self.cache.data.device)
        self._state = SoftmaxState.take(self._workspace, work.num_state_rows, layout.head_dim)
        self._slabs = [SlabRun(slab, layout, self._workspace, self._state) for slab in work.slabs]


def _probe(layout: KVLayout, device: torch.device) -> RowTile:
    """Measure the two batched products; the number of matrices varies with that of rows."""
    tokens, dim = kv_tile_tokens(layout.block_size), layout.head_dim
    generator = torch.Generator().manual_seed(0)
    keys = torch.randn(5, tokens, dim, generator=generator).to(device)
    values = torch.randn(5, tokens, value_width(dim), generator=generator).to(device)

    def product(matrices: Tensor, rows: Tensor) -> Tensor:
        count = 1 + rows.shape[0] % len(matrices)
        return torch.bmm(rows.expand(count, -1, -1).contiguous(), matrices[:count])[0]

    return find_row_tile(
        RowKernel(
            in_features=matrices.shape[1],
            flop_per_row=2 * matrices.numel(),
            dtype=torch.float32,
            device=device,
            run=partial(product, matrices),
        )
        for matrices in (keys.mT, values)
    )
