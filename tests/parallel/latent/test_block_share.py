"""Ranks that share blocks hold every token once, in the order of the tokens."""

import itertools

import numpy as np
import pytest

from twinflow.parallel.latent.block_share import BlockShare


@pytest.mark.parametrize(("block_size", "size"), [(1, 1), (4, 1), (1, 3), (4, 2), (16, 4)])
def test_every_token_is_held_once_and_in_order(block_size: int, size: int) -> None:
    shares = [BlockShare(block_size, rank, size) for rank in range(size)]
    positions = np.arange(3 * size * block_size + block_size // 2 + 1)
    held = np.stack([share.holds(positions) for share in shares])
    assert (held.sum(0) == 1).all()
    for share, mine in zip(shares, held, strict=True):
        expected = np.concatenate(([0], np.cumsum(mine)))
        assert (share.slots(np.arange(len(positions) + 1)) == expected).all()
        # Entry and slot by division, as tables and planes have it.
        slots = share.slots(positions[mine])
        assert (slots // block_size == positions[mine] // share.tokens_per_entry).all()
        assert (slots % block_size == positions[mine] % block_size).all()


@pytest.mark.parametrize("fields", [(0, 0, 1), (4, 2, 2), (4, -1, 2)])
def test_what_is_no_share_is_refused(fields: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="is no share"):
        BlockShare(*fields)


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("end", range(11))
def test_shares_cut_every_run_of_blocks_into_disjoint_pieces(size: int, end: int) -> None:
    for first in range(end + 1):
        pieces = [BlockShare(8, rank, size).blocks(first, end) for rank in range(size)]
        assert sorted(itertools.chain(*pieces)) == list(range(first, end))
        assert all(block % size == rank for rank, piece in enumerate(pieces) for block in piece)
