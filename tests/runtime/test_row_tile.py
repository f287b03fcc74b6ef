"""The probe finds the row counts for which rows do not influence each other, or says none do."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from twinflow.runtime.row_tile import CANDIDATES, RowKernel, RowTile, find_row_tile


def kernel(run: Callable[[Tensor], Tensor]) -> RowKernel:
    return RowKernel(
        in_features=6,
        flop_per_row=1_000_000,
        dtype=torch.float32,
        device=torch.device("cpu"),
        run=run,
    )


def careful_below(tile: int) -> Callable[[Tensor], Tensor]:
    """Like a library that takes another code path for rows that do not fill a tile."""

    def run(rows: Tensor) -> Tensor:
        result = rows.double().sum(-1, keepdim=True)
        rest = len(rows) % tile
        result[len(rows) - rest :] += 1e-9
        return result

    return run


@pytest.mark.parametrize("tile", CANDIDATES)
def test_finds_the_smallest_tile(tile: int) -> None:
    assert find_row_tile([kernel(careful_below(tile))]) == RowTile(tile, batch_invariant=True)


def test_the_tile_suits_every_kernel() -> None:
    kernels = [kernel(careful_below(tile)) for tile in (1, 16, 4)]
    assert find_row_tile(kernels) == RowTile(16, batch_invariant=True)


def test_says_so_when_no_tile_helps() -> None:
    def by_count(rows: Tensor) -> Tensor:
        return rows + 1e-3 * len(rows)

    assert find_row_tile([kernel(by_count)]) == RowTile(1, batch_invariant=False)


def test_notices_dependence_on_the_place_of_a_row() -> None:
    def by_place(rows: Tensor) -> Tensor:
        return rows + 1e-3 * torch.arange(len(rows))[:, None]

    assert not find_row_tile([kernel(by_place)]).batch_invariant


def test_notices_dependence_on_the_place_within_a_tile() -> None:
    def by_pair(rows: Tensor) -> Tensor:
        return rows + 1e-3 * (torch.arange(len(rows)) % 2)[:, None]

    assert not find_row_tile([kernel(by_pair)]).batch_invariant


def test_joined_tiles_suit_both() -> None:
    assert RowTile(4, True).join(RowTile(16, True)) == RowTile(16, True)
    assert RowTile(8, True).join(RowTile(1, False)) == RowTile(8, False)


def test_round_up() -> None:
    tile = RowTile(4, batch_invariant=True)
    assert [tile.round_up(count) for count in (1, 4, 5, 8)] == [4, 4, 8, 8]
