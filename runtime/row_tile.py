"""How many rows a matrix product needs at a time so that rows do not influence each other.

Mathematically a row of `x @ w` depends on that row of `x` alone. In floating point the library may
pick another kernel, and with it another order of summation, for another number of rows: then a
token's bits depend on what else is in the batch. Most libraries do so only for small or odd
numbers of rows. This module measures, on this machine, which numbers are safe; it does not make a
product safe that is not.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

CANDIDATES = (1, 4, 8, 16, 32)
_PROBE_FLOP = 5e8
_MIN_PROBE_ROWS = 32
_MAX_PROBE_ROWS = 512


@dataclass(frozen=True, slots=True)
class RowTile:
    """Result of a probe.

    Attributes:
        rows: row counts are to be multiples of this.
        batch_invariant: in all probed products with such row counts, no row's bits depended on
            the number of rows or on its place among them.
    """

    rows: int
    batch_invariant: bool

    def join(self, other: "RowTile") -> "RowTile":
        """What suits both; the candidates divide each other."""
        invariant = self.batch_invariant and other.batch_invariant
        return RowTile(max(self.rows, other.rows), invariant)

    def round_up(self, count: int) -> int:
        """The next multiple of `rows`."""
        return -(-count // self.rows) * self.rows


@dataclass(frozen=True, slots=True)
class RowKernel:
    """Something that maps rows to rows, each on its own.

    Attributes:
        in_features: width of a row.
        flop_per_row: cost, to bound the time of the probe.
        dtype: of the rows.
        device: of the rows.
        run: [rows, in_features] to [rows, anything].
    """

    in_features: int
    flop_per_row: int
    dtype: torch.dtype
    device: torch.device
    run: Callable[[Tensor], Tensor]


@torch.inference_mode()
def find_row_tile(kernels: Iterable[RowKernel], candidates: Sequence[int] = CANDIDATES) -> RowTile:
    """The first of ascending candidates for which every kernel treats every row alike.

    Takes a few hundred megaflops for each kernel and candidate. Where no candidate passes, the
    smallest is returned as not batch invariant: padding would buy nothing.
    """
    kernels = list(kernels)
    for tile in candidates:
        if all(_is_invariant(kernel, tile) for kernel in kernels):
            return RowTile(tile, batch_invariant=True)
    return RowTile(candidates[0], batch_invariant=False)


def _is_invariant(kernel: RowKernel, tile: int) -> bool:
    affordable = int(_PROBE_FLOP / kernel.flop_per_row)
    num_rows = max(_MIN_PROBE_ROWS, min(affordable, _MAX_PROBE_ROWS)) // tile * tile
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(num_rows, kernel.in_features, generator=generator)
    rows = rows.to(kernel.device, kernel.dtype)
    expected = kernel.run(rows)
    if not torch.equal(kernel.run(rows.roll(1, 0)), expected.roll(1, 0)):
        return False  # the place within a tile matters
    for count in _row_counts(tile, num_rows):
        first = num_rows - count  # another place among the rows than in `expected`
        if not torch.equal(kernel.run(rows[first:].clone()), expected[first:]):
            return False
    return True


def _row_counts(tile: int, limit: int) -> Iterator[int]:
    """Multiples of `tile`, dense where libraries switch kernels and sparse above."""
    count = tile
    while count < limit:
        yield count
        count += max(1, count // (3 * tile)) * tile
