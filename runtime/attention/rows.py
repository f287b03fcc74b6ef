"""The rows of one step as flat arrays.

    sequence 0        sequence 1   sequence 2
    p p p p p p p p | d          | p p p p         row: 0 .. num_rows-1

Each sequence contributes consecutive rows: a prompt, a chunk of one, or a single decode token.
Nothing is padded and nothing here is a tensor: the arrays are built once per step, for all layers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]


class RowGroupLike(Protocol):
    """Consecutive tokens of one sequence."""

    @property
    def token_ids(self) -> Sequence[int]:
        """The tokens of the rows."""
        ...

    @property
    def start(self) -> int:
        """Position of the first row in its sequence."""
        ...

    @property
    def block_ids(self) -> Sequence[int]:
        """Block table that covers the sequence up to the last row."""
        ...


@dataclass(frozen=True, slots=True)
class FlatRows:
    """Positions and blocks of all rows of a step; S sequences, R rows.

    Attributes:
        block_size: token slots of a block.
        starts: [S] position of the first row of each sequence.
        counts: [S] rows of each sequence.
        first_rows: [S] flat row at which each sequence begins.
        positions: [R] position of each row in its sequence.
        blocks: the block tables one after another, each cut to the blocks in use.
        first_blocks: [S] where the table of each sequence begins in `blocks`.
        block_counts: [S] blocks of each sequence.
    """

    block_size: int
    starts: IntArray
    counts: IntArray
    first_rows: IntArray
    positions: IntArray
    blocks: IntArray
    first_blocks: IntArray
    block_counts: IntArray

    @classmethod
    def build(cls, groups: Sequence[RowGroupLike], block_size: int) -> "FlatRows":
        """Lay out row groups one after another.

        Raises:
            ValueError: a group is empty, starts before 0 or is not covered by its block table.
        """
        starts = np.array([group.start for group in groups], dtype=np.int64)
        counts = np.array([len(group.token_ids) for group in groups], dtype=np.int64)
        block_counts = -(-(starts + counts) // block_size)
        tables = np.array([len(group.block_ids) for group in groups], dtype=np.int64)
        bad = np.flatnonzero((counts < 1) | (starts < 0) | (tables < block_counts))
        if bad.size:
            at = int(bad[0])
            raise ValueError(
                f"row group {at}: {counts[at]} tokens from position {starts[at]} with "
                f"{tables[at]} blocks of {block_size} tokens; expected at least one token and "
                f"{block_counts[at]} blocks"
            )
        used = [
            np.asarray(group.block_ids, dtype=np.int64)[:count]
            for group, count in zip(groups, block_counts, strict=True)
        ]
        first_rows = _exclusive_sum(counts)
        within = np.arange(int(counts.sum())) - np.repeat(first_rows, counts)
        return cls(
            block_size=block_size,
            starts=starts,
            counts=counts,
            first_rows=first_rows,
            positions=np.repeat(starts, counts) + within,
            blocks=np.concatenate(used),
            first_blocks=_exclusive_sum(block_counts),
            block_counts=block_counts,
        )

    @property
    def num_rows(self) -> int:
        """Rows of the step."""
        return len(self.positions)

    def row_blocks(self) -> IntArray:
        """[R] block that each row is written to."""
        first_blocks = np.repeat(self.first_blocks, self.counts)
        blocks: IntArray = self.blocks[first_blocks + self.positions // self.block_size]
        return blocks

    def opened_blocks(self) -> IntArray:
        """Blocks of which this step writes the first slot but not the last one."""
        ends = self.starts + self.counts
        last_starts = (ends - 1) // self.block_size * self.block_size
        opened = (last_starts >= self.starts) & (ends % self.block_size != 0)
        blocks: IntArray = self.blocks[(self.first_blocks + self.block_counts - 1)[opened]]
        return blocks


def _exclusive_sum(values: IntArray) -> IntArray:
    return np.cumsum(values) - values
