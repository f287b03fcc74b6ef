"""The work list covers every visible key of every row exactly once, within its memory bound."""

from dataclasses import replace

import numpy as np
import pytest

from twinflow.parallel.latent.block_share import BlockShare
from twinflow.runtime.attention.rows import FlatRows
from twinflow.runtime.attention.work_items import SPAN_TILES, Slab, TileShape, plan_work
from twinflow.runtime.model_runner import SequenceRows

SHAPE = TileShape(
    num_heads=6,
    key_width=4,
    value_width=4,
    share=BlockShare(16),
    head_rows=(0, 1),
    head_rows_per_block=12,
    row_tile=4,
    slab_elements=60_000,
)

MIXES = {
    "decode": [(0, 1), (130, 1), (127, 1), (128, 1)],
    "one prompt": [(0, 300)],
    "chunk": [(101, 37)],
    "all tile sizes": [(250, 64 + 16 + 4 + 1)],
    "across a span": [(SPAN_TILES * 128 - 30, 64)],
    "mixed": [(1500, 1), (0, 77), (640, 130), (5, 3)],
}


def build(mix: list[tuple[int, int]], block_size: int = 16) -> FlatRows:
    groups, next_block = [], 1
    for start, count in mix:
        num_blocks = -(-(start + count) // block_size)
        blocks = list(range(next_block, next_block + num_blocks))
        groups.append(SequenceRows([0] * count, start, blocks, samples=True))
        next_block += num_blocks
    return FlatRows.build(groups, block_size)


def visible_keys(slab: Slab, shape: TileShape) -> np.ndarray:
    """[items, M, tokens] which keys each matrix row sees."""
    tokens = slab.key_rows.shape[2] * shape.share.block_size
    seen = np.ones((len(slab.item_tiles), slab.matrix_rows, tokens), dtype=bool)
    for mask in slab.masks:
        seen[mask.items] &= ~mask.hidden
    return seen


@pytest.mark.parametrize("block_size", [8, 16, 256])
@pytest.mark.parametrize("mix", MIXES.values(), ids=MIXES.keys())
def test_every_query_head_sees_every_key_up_to_itself_once(
    mix: list[tuple[int, int]], block_size: int
) -> None:
    shape = replace(SHAPE, share=BlockShare(block_size))
    rows = build(mix, block_size)
    work = plan_work(rows, shape)
    sequence_of_row = np.repeat(np.arange(len(mix)), rows.counts)
    # For each output row (query row and head): the (block, slot) pairs it saw, KV head checked.
    seen: list[list[tuple[int, int]]] = [[] for _ in work.output_rows]
    row_of_state = {int(state): row for row, state in enumerate(work.output_rows)}
    for slab in work.slabs:
        visible = visible_keys(slab, shape)
        for item, tile in enumerate(slab.item_tiles):
            for head in range(shape.kv_heads):
                state = slab.state_start + (tile * shape.kv_heads + head) * slab.matrix_rows
                blocks, heads = np.divmod(slab.key_rows[item, head], shape.head_rows_per_block)
                assert (heads == head).all()
                slots = [(int(b), s) for b in blocks for s in range(shape.share.block_size)]
                for index in range(slab.matrix_rows):
                    output = row_of_state.get(int(state) + index)
                    if output is None:
                        continue
                    assert slab.query_rows[item, head, index] == output
                    assert output % shape.num_heads // shape.queries_per_kv_head == head
                    seen[output] += [
                        slot for slot, ok in zip(slots, visible[item, index], strict=True) if ok
                    ]
    for output, found in enumerate(seen):
        row = output // shape.num_heads
        sequence = sequence_of_row[row]
        first = rows.first_blocks[sequence]
        table = rows.blocks[first : first + rows.block_counts[sequence]]
        expected = [divmod(position, block_size) for position in range(rows.positions[row] + 1)]
        assert found == [(int(table[block]), slot) for block, slot in expected]


@pytest.mark.parametrize("mix", MIXES.values(), ids=MIXES.keys())
def test_segments_are_prefixes_of_the_query_tiles(mix: list[tuple[int, int]]) -> None:
    for slab in plan_work(build(mix), SHAPE).slabs:
        assert len(slab.segments) <= SPAN_TILES
        assert slab.segments[0] == slice(0, slab.num_tiles)
        for segment in slab.segments:
            count = segment.stop - segment.start
            assert slab.item_tiles[segment].tolist() == list(range(count))
        assert slab.segments[-1].stop == len(slab.item_tiles)


def test_slabs_are_bounded() -> None:
    rows = build([(1000, 1)] * 40 + [(0, 512)])
    for slab in plan_work(rows, SHAPE).slabs:
        query_rows = slab.matrix_rows // SHAPE.queries_per_kv_head
        bound = max(SHAPE.max_items(query_rows), SPAN_TILES)
        assert len(slab.item_tiles) <= bound


def test_a_sequence_reads_no_blocks_but_its_own() -> None:
    mix = [(0, 3), (140, 1), (20, 50)]
    rows = build(mix)
    for slab in plan_work(rows, SHAPE).slabs:
        for item, keys in enumerate(slab.key_rows):
            blocks = set((keys // SHAPE.head_rows_per_block).reshape(-1).tolist())
            queries = slab.query_rows[item].reshape(-1) // SHAPE.num_heads
            owners = np.searchsorted(rows.first_rows, queries, side="right") - 1
            assert len(set(owners.tolist())) == 1
            first = rows.first_blocks[owners[0]]
            assert blocks <= set(rows.blocks[first : first + rows.block_counts[owners[0]]].tolist())
