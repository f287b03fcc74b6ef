"""Which blocks of every sequence a rank holds.

With n ranks that share the blocks, block i of a sequence is on rank i % n, and each rank keeps what
it holds one after another, as if it were a sequence of its own:

    tokens     0 ...... 15 | 16 ..... 31 | 32 ..... 47 | 48 ..... 63       blocks of 16, n = 2
    rank 0     slots 0 - 15               slots 16 - 31
    rank 1                  slots 0 - 15                slots 16 - 31

One entry of a block table names n blocks, the same number on each rank. Arithmetic only.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class BlockShare:
    """What one rank holds of each sequence.

    Attributes:
        block_size: token slots of a block.
        rank: which one this is of those that share the blocks.
        size: how many they are; 1 if this rank holds every block.
    """

    block_size: int
    rank: int = 0
    size: int = 1

    def __post_init__(self) -> None:
        if self.block_size < 1 or not 0 <= self.rank < self.size:
            raise ValueError(f"{self} is no share")

    @property
    def tokens_per_entry(self) -> int:
        """Tokens that an entry of a block table stands for, on all ranks together."""
        return self.size * self.block_size

    def blocks(self, first_block: int, end_block: int) -> range:
        """The blocks of this rank among `[first_block, end_block)` of a sequence."""
        return range(first_block + (self.rank - first_block) % self.size, end_block, self.size)

    def slots(self, num_tokens: IntArray) -> IntArray:
        """How many of the first tokens of a sequence this rank holds.

        Args:
            num_tokens: any number of counts, at least 0.
        """
        whole, rest = np.divmod(num_tokens, self.tokens_per_entry)
        mine = np.clip(rest - self.rank * self.block_size, 0, self.block_size)
        held: IntArray = whole * self.block_size + mine
        return held

    def holds(self, positions: IntArray) -> NDArray[np.bool_]:
        """Whether this rank holds the tokens at some positions."""
        held: NDArray[np.bool_] = positions // self.block_size % self.size == self.rank
        return held
