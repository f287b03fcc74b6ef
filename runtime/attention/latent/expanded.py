"""Expanded latent attention by tiles: keys and values of every head are made from the latents.

Sequences are taken in batches, and a batch span after span. What the rows of a span of context
need is brought together and expanded, some heads at a time, into a workspace of bounded size;
all query tiles of the batch attend to it before the next span overwrites it:

    one long sequence         span 0 | span 1 | span 2 ...
    several short sequences   one span, each sequence a piece of it

Tiles and spans lie at absolute positions, as always (see `work_items`), so that neither chunks of a
prompt nor company change a bit. At most `EXPANDED_TOKENS` tokens of as many heads as
`LatentHeads.expanded_heads` says are expanded at a time.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise

import numpy as np
import torch
from torch import Tensor

from twinflow.parallel.latent.block_share import BlockShare, IntArray
from twinflow.parallel.latent.sharing.base import LatentSharing
from twinflow.runtime.attention.gather import Gather, HeadGather, padded_width
from twinflow.runtime.attention.latent.base import Expansion, LatentHeads
from twinflow.runtime.attention.rows import FlatRows
from twinflow.runtime.attention.tile_sums import (
    SLAB_ELEMENTS,
    TileSums,
    probe_products,
    random_matrices,
)
from twinflow.runtime.attention.work_items import SPAN_TILES, Slab, TileShape, kv_tile_tokens
from twinflow.runtime.attention.workspace import Workspace
from twinflow.runtime.kv.latent_planes import LatentPlanes
from twinflow.runtime.row_tile import CANDIDATES, RowTile

# Expansions get whole multiples of so many tokens, which suits any row tile.
_TOKEN_TILE = max(CANDIDATES)


class ExpandedTiles:
    """Expanded attention of the heads of a rank.

    Args:
        planes: latents and rotary keys that the rank holds.
        heads: sizes of the model.
        sharing: brings whole latents together.
        share: the blocks that the rank holds.
        device: of the planes.

    Attributes:
        row_tile: what the machine needs for rows not to influence each other.
    """

    def __init__(
        self,
        planes: LatentPlanes,
        heads: LatentHeads,
        sharing: LatentSharing,
        share: BlockShare,
        device: torch.device,
    ) -> None:
        self._planes = planes
        self._heads = heads
        self._sharing = sharing
        self._share = share
        # In the workspace, an entry of a block table is a block of its own.
        self._entry = share.tokens_per_entry
        self._entries_per_span = SPAN_TILES * kv_tile_tokens(self._entry) // self._entry
        self.row_tile = self._probe(device)
        group = heads.expanded_heads(len(sharing.prompt_heads(heads.num_heads)))
        self._shape = TileShape(
            num_heads=group,
            key_width=heads.key_dim,
            value_width=padded_width(heads.value_dim),
            share=BlockShare(self._entry),
            head_rows=tuple(range(group)),
            head_rows_per_block=group,
            row_tile=self.row_tile.rows,
            slab_elements=SLAB_ELEMENTS,
        )
        self._workspace = Workspace(device)
        self._batches: list[_Batch] = []
        self._num_rows = 0

    def plan(self, rows: FlatRows) -> None:
        """Take over the rows of a step."""
        self._num_rows = rows.num_rows
        cuts = [*_cuts(rows.block_counts, self._entries_per_span), len(rows.counts)]
        self._batches = [self._batch(rows, first, end) for first, end in pairwise(cuts)]

    def attend(self, layer: int, queries: Tensor, expansions: Sequence[Expansion]) -> Tensor:
        """See `LatentKernel.attend_prompt`."""
        rows, groups, group = len(queries), len(expansions), self._shape.num_heads
        dim = self._heads.value_dim
        by_group = self._workspace.take("by_group", (groups, rows, group, self._shape.key_width))
        by_group.copy_(queries.view(rows, groups, group, -1).transpose(0, 1))
        out = self._workspace.take("out", (groups, rows, group, dim))
        out[:, self._num_rows :].zero_()
        for batch in self._batches:
            self._attend_batch(batch, layer, expansions, by_group, out)
        result = self._workspace.take("result", (rows, groups, group, dim))
        result.copy_(out.transpose(0, 1))
        return result.view(rows, groups * group, dim)

    def _attend_batch(
        self,
        batch: "_Batch",
        layer: int,
        expansions: Sequence[Expansion],
        queries: Tensor,
        out: Tensor,
    ) -> None:
        states = [batch.sums.new_state(f"state{group}") for group in range(len(expansions))]
        for span, slabs in groupby(batch.sums.slabs, key=lambda slab: slab.span):
            window, runs = batch.windows[span], list(slabs)
            latents, rope = self._bring(layer, window)
            for group, (expand, state) in enumerate(zip(expansions, states, strict=True)):
                planes = self._expand(expand, latents, rope)
                own_queries = queries[group, batch.rows].view(-1, self._shape.key_width)
                for slab in runs:
                    slab.compute(own_queries, planes)
                    slab.merge(state)
        for group, state in enumerate(states):
            batch.sums.finish(state, out[group, batch.rows].view(-1, out.shape[-1]))

    def _bring(self, layer: int, window: "_Window") -> tuple[Tensor, Tensor]:
        """Whole latents of a window, padded to whole token tiles, and its rotary keys."""
        held, rope = self._sharing.gather_tokens(*self._planes.read(layer, window.entries))
        if window.unwritten is not None:
            held.index_fill_(0, window.unwritten, 0)
            rope.index_fill_(0, window.unwritten, 0)
        padded = -(-len(held) // _TOKEN_TILE) * _TOKEN_TILE
        latents = self._workspace.take("latents", (padded, held.shape[1]), held.dtype)
        latents[: len(held)] = held
        latents[len(held) :].zero_()
        return latents, rope

    def _expand(self, expand: Expansion, latents: Tensor, rope: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of some heads, as the planes of a `HeadGather`."""
        group, entry, heads = self._shape.num_heads, self._entry, self._heads
        entries = len(rope) // entry
        expanded = expand(latents)[: len(rope)].view(entries, entry, group, -1).transpose(1, 2)
        keys = self._workspace.take("expanded_keys", (entries, group, entry, heads.key_dim))
        keys[..., : heads.nope_dim] = expanded[..., : heads.nope_dim]
        keys[..., heads.nope_dim :] = rope.view(entries, 1, entry, -1)
        values = self._workspace.take("expanded_values", (entries, group, entry, heads.value_dim))
        values.copy_(expanded[..., heads.nope_dim :])
        return keys.view(entries * group, -1), values.view(entries * group, -1)

    def _batch(self, rows: FlatRows, first: int, end: int) -> "_Batch":
        some = rows.sequences(first, end)
        first_row = int(rows.first_rows[first])
        return _Batch(
            rows=slice(first_row, first_row + some.num_rows),
            windows=list(self._windows(some)),
            sums=TileSums(self._in_window(some), self._shape, self._gather, self._workspace),
        )

    def _in_window(self, rows: FlatRows) -> FlatRows:
        """The rows with block tables that say where entries are in the window of their span."""
        counts = rows.block_counts
        firsts = np.cumsum(counts) - counts
        within = np.arange(int(counts.sum())) - np.repeat(firsts, counts)
        # A batch of several sequences fits into one span.
        bases = np.repeat(firsts, counts) if len(counts) > 1 else 0
        return replace(rows, blocks=bases + within % self._entries_per_span, first_blocks=firsts)

    def _windows(self, rows: FlatRows) -> "Iterator[_Window]":
        """The entries of each span of a batch."""
        device, size = self._workspace.device, self._entries_per_span
        for start in range(0, int(rows.block_counts.max()), size):
            entries: list[IntArray] = []
            unwritten: list[IntArray] = []
            base = 0
            for sequence, count in enumerate(rows.block_counts):
                table = rows.first_blocks[sequence] + np.arange(start, min(start + size, count))
                entries.append(rows.blocks[table])
                written = rows.starts[sequence] + rows.counts[sequence] - start * self._entry
                end = base + len(table) * self._entry
                unwritten.append(np.arange(min(base + int(written), end), end))
                base = end
            index = torch.from_numpy(np.concatenate(unwritten)).to(device)
            yield _Window(
                entries=torch.from_numpy(np.concatenate(entries)).to(device),
                unwritten=index if self._share.size > 1 and len(index) else None,
            )

    def _gather(self, slab: Slab) -> Gather:
        widths = (self._heads.key_dim, self._heads.value_dim)
        return HeadGather(slab, widths, self._entry, torch.float32, self._workspace)

    def _probe(self, device: torch.device) -> RowTile:
        tokens = kv_tile_tokens(self._entry)
        keys = random_matrices((5, tokens, self._heads.key_dim), 0, device)
        values = random_matrices((5, tokens, padded_width(self._heads.value_dim)), 1, device)
        return probe_products(keys, values)


@dataclass(frozen=True, slots=True)
class _Window:
    """What is brought together for one span of a batch.

    Attributes:
        entries: int64 [n] entries of block tables.
        unwritten: tokens of these that this step's sequences have not reached, if they are to be
            cleared: a block of another rank may still hold anything.
    """

    entries: Tensor
    unwritten: Tensor | None


@dataclass(frozen=True, slots=True)
class _Batch:
    """Sequences that are computed together.

    Attributes:
        rows: their rows among all rows.
        windows: of each span.
        sums: the work, on windows in place of blocks.
    """

    rows: slice
    windows: list[_Window]
    sums: TileSums


def _cuts(entries: IntArray, capacity: int) -> Iterator[int]:
    """First sequence of each batch: as many in order as have no more than `capacity` entries."""
    used = capacity
    for sequence, count in enumerate(entries):
        if used + count > capacity:
            yield sequence
            used = 0
        used += int(count)
