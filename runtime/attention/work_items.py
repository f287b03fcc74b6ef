"""The work of tiled attention for one step: which query tile meets which KV tile.

    keys      0 ......... 127 | 128 ....... 255 | 256 ...       KV tiles, from position 0
    queries   row  row  row  row  row  row  row  row  row       of one sequence
              └─ 4 rows ───────┘ └─ 4 rows ───────┘ └ 1 ┘       query tiles

A query tile and a KV tile are an item: one small matrix product per KV head. Items of the same
shape are computed together, a slab at a time, so that the memory in use is bounded. Tiles lie at
absolute positions and every sum follows their order, so that a row's result does not depend on how
the rows were cut into steps.

    span      SPAN_TILES KV tiles that share one running maximum
    slab      items of some query tiles and one span, sorted by KV tile, then by query tile
    segment   the items of a slab with the same KV tile

Query tiles are sorted by position, the longest context first: those with a k-th KV tile in the
span are then a prefix, and segments add up without an index.

A rank that holds a share of each sequence's blocks sees the slots of these, one after another, in
place of positions; a row may then see none.

This module is arithmetic on integers (numpy); `tiled` computes.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from twinflow.parallel.latent.block_share import BlockShare, IntArray
from twinflow.runtime.attention.rows import FlatRows

QUERY_TILES = (64, 16, 4, 1)
KV_TILE_TOKENS = 128
SPAN_TILES = 8


def kv_tile_tokens(block_size: int) -> int:
    """Token slots of a KV tile, whole blocks."""
    return max(KV_TILE_TOKENS, block_size)


@dataclass(frozen=True, slots=True, kw_only=True)
class TileShape:
    """Sizes that all steps of a kernel share.

    Attributes:
        num_heads: query heads.
        key_width: elements of a query and of a key, padding included.
        value_width: elements of a value, padding included.
        share: the blocks that this rank holds.
        head_rows: row of each KV head of block 0 in the rows of a layer's keys.
        head_rows_per_block: distance of two blocks in the rows of a layer's keys.
        row_tile: the rows of a matrix are a multiple of this.
        slab_elements: bound of what a slab holds in memory, unless a query tile and one span of
            its context alone exceed it.
        query_tiles: rows of query tiles, falling; the last is 1.
    """

    num_heads: int
    key_width: int
    value_width: int
    share: BlockShare
    head_rows: tuple[int, ...]
    head_rows_per_block: int
    row_tile: int
    slab_elements: int
    query_tiles: tuple[int, ...] = QUERY_TILES

    @property
    def kv_heads(self) -> int:
        """KV heads."""
        return len(self.head_rows)

    @property
    def queries_per_kv_head(self) -> int:
        """Query heads that share a KV head."""
        return self.num_heads // self.kv_heads

    @property
    def kv_tile_tokens(self) -> int:
        """Token slots of a KV tile, whole blocks."""
        return kv_tile_tokens(self.share.block_size)

    def matrix_rows(self, query_rows: int) -> int:
        """Rows of the matrix of one query tile and KV head, padding included."""
        rows = query_rows * self.queries_per_kv_head
        return -(-rows // self.row_tile) * self.row_tile

    def max_items(self, query_rows: int) -> int:
        """Items of such query tiles that fill a slab."""
        widths = self.key_width + self.value_width  # of key and value, and of query and result
        scores = self.matrix_rows(query_rows) * self.kv_tile_tokens
        rows = self.kv_tile_tokens + self.matrix_rows(query_rows)
        item = self.kv_heads * (rows * widths + scores)
        return self.slab_elements // item


@dataclass(frozen=True, slots=True)
class Mask:
    """Keys behind the diagonal.

    Attributes:
        items: which items of the slab.
        hidden: bool [items, matrix rows, KV tile tokens], true for keys a row must not see.
    """

    items: slice
    hidden: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Slab:
    """Items that are computed together; M matrix rows each.

    Attributes:
        matrix_rows: M.
        num_tiles: query tiles.
        state_start: place of the first query tile's rows among those of all slabs.
        span: which span; in the first one the query tiles have no result yet.
        query_rows: [items, kv_heads, M] rows of the queries seen as [rows * num_heads, head_dim].
        key_rows: [items, kv_heads, blocks of a tile] rows of `KVCache.keys`.
        item_tiles: [items] query tile of each item.
        segments: the items of each KV tile; the k-th item of a segment is of query tile k.
        masks: what is hidden from which items.
    """

    matrix_rows: int
    num_tiles: int
    state_start: int
    span: int
    query_rows: IntArray
    key_rows: IntArray
    item_tiles: IntArray
    segments: tuple[slice, ...]
    masks: tuple[Mask, ...]


@dataclass(frozen=True, slots=True)
class WorkList:
    """All slabs of a step, in the order in which they are computed: span after span.

    Attributes:
        slabs: the work.
        num_state_rows: rows of the state, [kv_heads, M] for each query tile.
        output_rows: [rows * num_heads] state row that ends up in each output row.
        has_blind_rows: some rows see no key of this rank; no slab may set their state.
    """

    slabs: tuple[Slab, ...]
    num_state_rows: int
    output_rows: IntArray
    has_blind_rows: bool


def plan_work(rows: FlatRows, shape: TileShape) -> WorkList:
    """Cut the rows of a step into query tiles, and these into slabs of items."""
    slabs: list[Slab] = []
    has_blind_rows = False
    output_rows = np.empty(rows.num_rows * shape.num_heads, dtype=np.int64)
    num_state_rows = 0
    for tiles in _query_tiles(rows, shape):
        query_rows = tiles.query_rows()
        state_rows = np.arange(query_rows.size).reshape(query_rows.shape) + num_state_rows
        used = tiles.rows * shape.queries_per_kv_head
        output_rows[query_rows[:, :, :used]] = state_rows[:, :, :used]
        slabs.extend(_slabs(rows, tiles, query_rows, num_state_rows))
        num_state_rows += query_rows.size
        has_blind_rows |= bool((tiles.kv_tiles == 0).any())
    slabs.sort(key=lambda slab: slab.span)
    return WorkList(tuple(slabs), num_state_rows, output_rows, has_blind_rows)


@dataclass(frozen=True, slots=True)
class _QueryTiles:
    """Query tiles of the same number of rows, the longest context first.

    Attributes:
        shape: of the kernel.
        rows: rows of each tile.
        first_rows: flat row of the first row.
        positions: position of the first row.
        sequences: whose rows.
    """

    shape: TileShape
    rows: int
    first_rows: IntArray
    positions: IntArray
    sequences: IntArray

    def __getitem__(self, tiles: slice) -> "_QueryTiles":
        return _QueryTiles(
            self.shape,
            self.rows,
            self.first_rows[tiles],
            self.positions[tiles],
            self.sequences[tiles],
        )

    @property
    def kv_tiles(self) -> IntArray:
        """KV tiles that each query tile can see some of."""
        visible = self.shape.share.slots(self.positions + self.rows)
        return -(-visible // self.shape.kv_tile_tokens)

    @property
    def visible(self) -> IntArray:
        """[tiles, M] slots, from the first, that each matrix row sees; padding repeats the last
        row."""
        rows = self._matrix_row_index // self.shape.queries_per_kv_head
        return self.shape.share.slots(self.positions[:, None] + rows + 1)

    def query_rows(self) -> IntArray:
        """[tiles, kv_heads, M] rows of the queries seen as [rows * num_heads, head_dim]."""
        group = self.shape.queries_per_kv_head
        index = self._matrix_row_index
        in_row = index // group * self.shape.num_heads + index % group
        heads = np.arange(self.shape.kv_heads) * group
        first = self.first_rows * self.shape.num_heads
        return first[:, None, None] + heads[:, None] + in_row

    @property
    def _matrix_row_index(self) -> IntArray:
        last = self.rows * self.shape.queries_per_kv_head - 1
        return np.minimum(np.arange(self.shape.matrix_rows(self.rows)), last)


def _query_tiles(rows: FlatRows, shape: TileShape) -> Iterator[_QueryTiles]:
    """Cut the rows of each sequence into the largest tiles that fit, from its first row on."""
    taken = np.zeros_like(rows.counts)
    for size in shape.query_tiles:
        counts = (rows.counts - taken) // size
        if not counts.any():
            continue
        sequences = np.repeat(np.arange(len(counts)), counts)
        within = np.arange(len(sequences)) - np.repeat(np.cumsum(counts) - counts, counts)
        offsets = taken[sequences] + within * size
        positions = rows.starts[sequences] + offsets
        order = np.argsort(-positions, kind="stable")
        first_rows = rows.first_rows[sequences] + offsets
        yield _QueryTiles(shape, size, first_rows[order], positions[order], sequences[order])
        taken += counts * size


def _slabs(
    rows: FlatRows, tiles: _QueryTiles, query_rows: IntArray, first_state_row: int
) -> Iterator[Slab]:
    """Spans in order; in each span, query tiles until the slab is full."""
    max_items = tiles.shape.max_items(tiles.rows)
    depths = tiles.kv_tiles
    state_rows_per_tile = query_rows[0].size
    for first_kv_tile in range(0, int(depths[0]), SPAN_TILES):
        active = int(np.count_nonzero(depths > first_kv_tile))
        start = 0
        while start < active:
            depth = min(int(depths[start]) - first_kv_tile, SPAN_TILES)
            end = min(active, start + max(1, max_items // depth))
            yield _slab(
                rows,
                tiles[start:end],
                query_rows[start:end],
                first_kv_tile,
                first_state_row + start * state_rows_per_tile,
            )
            start = end


def _slab(
    rows: FlatRows,
    tiles: _QueryTiles,
    query_rows: IntArray,
    first_kv_tile: int,
    state_start: int,
) -> Slab:
    depths = np.minimum(tiles.kv_tiles - first_kv_tile, SPAN_TILES)
    counts = np.count_nonzero(depths[:, None] > np.arange(depths[0]), axis=0)
    ends = np.cumsum(counts)
    item_tiles = np.arange(ends[-1]) - np.repeat(ends - counts, counts)
    kv_tiles = np.repeat(np.arange(len(counts)), counts) + first_kv_tile
    segments = tuple(
        slice(int(end - count), int(end)) for end, count in zip(ends, counts, strict=True)
    )
    return Slab(
        matrix_rows=query_rows.shape[2],
        num_tiles=len(depths),
        state_start=state_start,
        span=first_kv_tile // SPAN_TILES,
        query_rows=query_rows[item_tiles],
        key_rows=_key_rows(rows, tiles.sequences[item_tiles], kv_tiles, tiles.shape),
        item_tiles=item_tiles,
        segments=segments,
        masks=tuple(_masks(tiles, segments, first_kv_tile)),
    )


def _key_rows(
    rows: FlatRows, sequences: IntArray, kv_tiles: IntArray, shape: TileShape
) -> IntArray:
    """Rows of the blocks of each KV tile. Behind the last block of a sequence that block is
    repeated, so that a sequence reads no blocks but its own; these keys are masked."""
    block_size = shape.share.block_size
    per_tile = shape.kv_tile_tokens // block_size
    wanted = kv_tiles[:, None] * per_tile + np.arange(per_tile)
    last = (shape.share.slots(rows.starts + rows.counts) - 1) // block_size
    in_table = np.minimum(wanted, last[sequences][:, None])
    blocks = rows.blocks[rows.first_blocks[sequences][:, None] + in_table]
    heads = np.array(shape.head_rows)
    key_rows: IntArray = blocks[:, None, :] * shape.head_rows_per_block + heads[:, None]
    return key_rows


def _masks(tiles: _QueryTiles, segments: tuple[slice, ...], first_kv_tile: int) -> Iterator[Mask]:
    """Query tiles are sorted by position, so those that see only a part are the last ones."""
    visible = tiles.visible
    for kv_tile, segment in enumerate(segments, first_kv_tile):
        keys = np.arange(tiles.shape.kv_tile_tokens) + kv_tile * tiles.shape.kv_tile_tokens
        count = segment.stop - segment.start
        whole = int(np.count_nonzero(visible[:count, 0] > keys[-1]))
        if whole < count:
            hidden = keys >= visible[whole:count, :, None]
            yield Mask(slice(segment.start + whole, segment.stop), hidden)
