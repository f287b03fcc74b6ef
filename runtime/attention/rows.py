"""The rows of one step as flat arrays.

    sequence 0        sequence 1   sequence 2
    p p p p p p p p | d          | p p p p         row: 0 .. num_rows-1

Each sequence contributes consecutive rows: a prompt, a chunk of one, or a single decode token.
Nothing is padded and nothing here is a tensor: the arrays are built once per step, for all layers.
An entry of a block table stands for `block_size` tokens; a rank may hold only its share of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from twinflow.parallel.latent.block_share import BlockShare, IntArray

_NO_ECHOES: IntArray = np.empty((0, 3), dtype=np.int64)
_NO_COPIES: IntArray = np.empty((0, 2), dtype=np.int64)


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

    @property
    def prompt_tokens(self) -> int:
        """Tokens at positions below this are the prompt's, the others were generated."""
        ...

    @property
    def ancestors(self) -> Sequence[int]:
        """See `SequenceRows.ancestors`."""
        ...

    @property
    def copied_block(self) -> int:
        """See `SequenceRows.copied_block`."""
        ...


@dataclass(frozen=True, slots=True)
class FlatRows:
    """Positions and blocks of all rows of a step; S sequences, R rows.

    Attributes:
        block_size: tokens of an entry of a block table.
        starts: [S] position of the first row of each sequence.
        counts: [S] rows of each sequence.
        prompt_tokens: [S] tokens of each sequence that are its prompt.
        first_rows: [S] flat row at which each sequence begins.
        positions: [R] position of each row in its sequence.
        blocks: the block tables one after another, each cut to the blocks in use.
        first_blocks: [S] where the table of each sequence begins in `blocks`.
        block_counts: [S] blocks of each sequence.
        written_starts: [S] first position of each sequence that the step writes: that of its first
            row, or of a row of another sequence that is written to its blocks as well.
        echoes: [E, 3] what is written as well: row, block and position.
        copied_blocks: [C, 2] blocks to be copied before the step, from and to.
    """

    block_size: int
    starts: IntArray
    counts: IntArray
    prompt_tokens: IntArray
    first_rows: IntArray
    positions: IntArray
    blocks: IntArray
    first_blocks: IntArray
    block_counts: IntArray
    written_starts: IntArray
    echoes: IntArray
    copied_blocks: IntArray

    @classmethod
    def build(cls, groups: Sequence[RowGroupLike], block_size: int) -> "FlatRows":
        """Lay out row groups one after another.

        Raises:
            ValueError: a group is empty, starts before 0 or is not covered by its block table.
        """
        # Numbers of Python, and few arrays: after a pass over the weights, the first use of each
        # function of NumPy costs more than a loop over the sequences of a step.
        described: list[tuple[int, ...]] = []
        used: list[int] = []
        branches: list[tuple[RowGroupLike, int]] = []
        num_rows = 0
        for group in groups:
            start, count = group.start, len(group.token_ids)
            needed = -(-(start + count) // block_size)
            if count < 1 or start < 0 or len(group.block_ids) < needed:
                raise ValueError(
                    f"row group {len(described)}: {count} tokens from position {start} with "
                    f"{len(group.block_ids)} blocks of {block_size} tokens; expected at least one "
                    f"token and {needed} blocks"
                )
            if group.ancestors or group.copied_block:
                branches.append((group, num_rows))
            written = start - len(group.ancestors)
            described.append(
                (start, count, group.prompt_tokens, num_rows, len(used), needed, written)
            )
            used.extend(group.block_ids[:needed])
            num_rows += count
        columns = np.array(described, dtype=np.int64).T.copy()
        starts, counts, prompt_tokens, first_rows, first_blocks, block_counts, written = columns
        return cls(
            block_size=block_size,
            starts=starts,
            counts=counts,
            prompt_tokens=prompt_tokens,
            first_rows=first_rows,
            positions=starts if num_rows == len(groups) else _consecutive(starts, counts),
            blocks=np.array(used, dtype=np.int64),
            first_blocks=first_blocks,
            block_counts=block_counts,
            written_starts=written,
            echoes=_echoes(branches, block_size),
            copied_blocks=_copies([group for group, _ in branches], block_size),
        )

    @property
    def num_rows(self) -> int:
        """Rows of the step."""
        return len(self.positions)

    @property
    def one_row_each(self) -> bool:
        """Whether every sequence has a single row, as when all of them are decoded."""
        return len(self.positions) == len(self.starts)

    def row_blocks(self) -> IntArray:
        """[R] block that each row is written to."""
        each = self.one_row_each
        first_blocks = self.first_blocks if each else np.repeat(self.first_blocks, self.counts)
        blocks: IntArray = self.blocks[first_blocks + self.positions // self.block_size]
        return blocks

    def written(self) -> tuple[IntArray | None, IntArray, IntArray]:
        """What the step writes: rows, None if that is each row once, their blocks and positions."""
        if not self.echoes.size:
            return None, self.row_blocks(), self.positions
        rows, blocks, positions = self.echoes.T
        return (
            np.concatenate((np.arange(self.num_rows), rows)),
            np.concatenate((self.row_blocks(), blocks)),
            np.concatenate((self.positions, positions)),
        )

    def opened_blocks(self, share: BlockShare) -> IntArray:
        """Blocks of a rank of which this step writes the first slot but not the last one."""
        end_positions = self.starts + self.counts
        next_blocks = -(-self.written_starts // share.block_size) * share.block_size
        if not (next_blocks < end_positions).any():
            return self.blocks[:0]  # as in most steps that decode
        starts, ends = share.slots(self.written_starts), share.slots(end_positions)
        last_blocks = (ends - 1) // share.block_size
        opened = (last_blocks * share.block_size >= starts) & (ends % share.block_size != 0)
        blocks: IntArray = self.blocks[(self.first_blocks + last_blocks)[opened]]
        return blocks

    def sequences(self, first: int, end: int) -> "FlatRows":
        """The rows of sequences [first, end) alone."""
        return self._cut(np.arange(first, end), self.starts[first:end], self.counts[first:end])

    def prompt_rows(self) -> tuple["FlatRows", IntArray]:
        """The rows whose tokens are their prompt's, and which rows of this they are."""
        counts = np.clip(self.prompt_tokens - self.starts, 0, self.counts)
        (some,) = np.nonzero(counts)
        index = _consecutive(self.first_rows[some], counts[some])
        return self._cut(some, self.starts[some], counts[some]), index

    def generated_rows(self) -> tuple["FlatRows", IntArray]:
        """The rows whose tokens were generated, and which rows of this they are."""
        skipped = np.clip(self.prompt_tokens - self.starts, 0, self.counts)
        (some,) = np.nonzero(self.counts - skipped)
        counts = (self.counts - skipped)[some]
        index = _consecutive((self.first_rows + skipped)[some], counts)
        return self._cut(some, (self.starts + skipped)[some], counts), index

    def _cut(self, some: IntArray, starts: IntArray, counts: IntArray) -> "FlatRows":
        """Fewer rows of some of the sequences, to attend with; the step writes all of them."""
        return replace(
            self,
            starts=starts,
            counts=counts,
            prompt_tokens=self.prompt_tokens[some],
            first_rows=_exclusive_sum(counts),
            positions=_consecutive(starts, counts),
            first_blocks=self.first_blocks[some],
            block_counts=-(-(starts + counts) // self.block_size),
            written_starts=starts,
            echoes=_NO_ECHOES,
            copied_blocks=_NO_COPIES,
        )


def _echoes(branches: Sequence[tuple[RowGroupLike, int]], block_size: int) -> IntArray:
    """Rows that are written to the blocks of sequences that go on from them; see `FlatRows`."""
    found = [
        (first_row - distance, group.block_ids[position // block_size], position)
        for group, first_row in branches
        for position, distance in enumerate(
            group.ancestors, start=group.start - len(group.ancestors)
        )
    ]
    return np.array(found, dtype=np.int64) if found else _NO_ECHOES


def _copies(branches: Sequence[RowGroupLike], block_size: int) -> IntArray:
    found = [
        (group.copied_block, group.block_ids[group.start // block_size])
        for group in branches
        if group.copied_block
    ]
    return np.array(found, dtype=np.int64) if found else _NO_COPIES


def _exclusive_sum(values: IntArray) -> IntArray:
    return np.cumsum(values) - values


def _consecutive(firsts: IntArray, counts: IntArray) -> IntArray:
    """`counts[i]` numbers from `firsts[i]` on, for all i."""
    within = np.arange(int(counts.sum())) - np.repeat(_exclusive_sum(counts), counts)
    numbers: IntArray = np.repeat(firsts, counts) + within
    return numbers
