"""Flat rows: positions, blocks, and which blocks a step opens."""

import pytest

from twinflow.parallel.latent.block_share import BlockShare
from twinflow.runtime.attention.rows import FlatRows
from twinflow.runtime.model_runner import SequenceRows


def group(start: int, count: int, blocks: list[int]) -> SequenceRows:
    return SequenceRows([0] * count, start, blocks, samples=True)


def test_positions_and_blocks_of_each_row() -> None:
    rows = FlatRows.build([group(6, 4, [7, 5, 9]), group(0, 2, [3])], block_size=4)
    assert rows.num_rows == 6
    assert rows.positions.tolist() == [6, 7, 8, 9, 0, 1]
    assert rows.row_blocks().tolist() == [5, 5, 9, 9, 3, 3]
    assert rows.first_rows.tolist() == [0, 4]


def test_a_block_table_may_be_longer_than_needed() -> None:
    rows = FlatRows.build([group(0, 3, [4, 8, 6]), group(3, 1, [2])], block_size=4)
    assert rows.blocks.tolist() == [4, 2]
    assert rows.row_blocks().tolist() == [4, 4, 4, 2]


@pytest.mark.parametrize(
    ("start", "count", "opened"),
    [
        (0, 3, [1]),  # the first slots of block 1
        (0, 4, []),  # fills it
        (3, 1, []),  # its last slot
        (2, 1, []),  # a slot in the middle: opened before
        (4, 1, [2]),
        (2, 4, [2]),  # fills block 1, opens block 2
        (0, 9, [3]),  # only the last block stays partly unwritten
    ],
)
def test_opened_blocks(start: int, count: int, opened: list[int]) -> None:
    rows = FlatRows.build([group(start, count, [1, 2, 3])], block_size=4)
    assert rows.opened_blocks(BlockShare(4)).tolist() == opened


@pytest.mark.parametrize(
    ("start", "count", "blocks"), [(0, 0, [1]), (-1, 2, [1]), (0, 5, [1]), (8, 1, [1, 2])]
)
def test_refuses_rows_that_do_not_fit(start: int, count: int, blocks: list[int]) -> None:
    good = group(0, 1, [9])
    with pytest.raises(ValueError, match=f"row group 1: {count} tokens from position {start}"):
        FlatRows.build([good, group(start, count, blocks)], block_size=4)
