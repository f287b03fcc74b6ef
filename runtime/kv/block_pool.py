"""Blocks by number: reference counts, the free list, and the index of cached prefixes.

Every block is in exactly one of three states:

    held     reference count > 0
    cached   reference count 0, has a name: can be found and taken back, or evicted
    free     reference count 0, no name

Cached and free blocks form one list in order of release, so the least recently used cached block
is evicted first. Blocks that were never held come before all others, in order, and are counted
instead of listed: a large pool costs no more to make than a small one. Block 0 is the null block:
padding rows write to it, nobody ever holds it. The pool knows neither requests nor tokens.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence

NULL_BLOCK = 0


class BlockPool:
    """Reference counts and prefix index of `num_blocks` blocks, the null block included.

    Attributes:
        sharing_changes: grows whenever a block gets or loses a holder besides another one.
    """

    def __init__(self, num_blocks: int) -> None:
        if num_blocks < 2:
            raise ValueError(f"a pool needs at least 2 blocks, not {num_blocks}")
        self._references = [0] * num_blocks
        self.sharing_changes = 0
        # No block from this one on was ever held; the idle ones before it are listed.
        self._untouched = NULL_BLOCK + 1
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._names: dict[int, bytes] = {}
        self._blocks: dict[bytes, int] = {}

    @property
    def num_blocks(self) -> int:
        """Blocks that can be held."""
        return len(self._references) - 1

    @property
    def num_idle(self) -> int:
        """Blocks that `allocate` could hand out now: free ones and cached ones."""
        return len(self._idle) + len(self._references) - self._untouched

    def references(self, block: int) -> int:
        """How many holders a block has."""
        return self._references[block]

    def is_private(self, block: int) -> bool:
        """Whether a block has one holder and cannot be found by others."""
        return self._references[block] == 1 and block not in self._names

    def num_shared(self, blocks: Iterable[int]) -> int:
        """How many of the blocks have more than one holder."""
        references = self._references
        return sum([references[block] > 1 for block in blocks])

    def allocate(self, count: int) -> list[int]:
        """Take `count` idle blocks, evicting the cached prefixes that were unused longest.

        Raises:
            ValueError: there are fewer idle blocks.
        """
        if count > self.num_idle:
            raise ValueError(f"{count} blocks wanted, {self.num_idle} are idle")
        start = self._untouched
        self._untouched = min(start + count, len(self._references))
        taken = list(range(start, self._untouched))
        for _ in range(count - len(taken)):
            block, _ = self._idle.popitem(last=False)
            self._forget(block)
            taken.append(block)
        for block in taken:
            self._references[block] = 1
        return taken

    def retain(self, blocks: Iterable[int]) -> None:
        """Add a holder to each block; cached blocks come back from the idle list."""
        for block in blocks:
            if self._references[block] == 0:
                del self._idle[block]
            else:
                self.sharing_changes += 1
            self._references[block] += 1

    def release(self, blocks: Sequence[int]) -> None:
        """Remove a holder from each block of a sequence.

        The end of the sequence goes idle first: a prefix is worth more than what follows it.
        """
        for block in reversed(blocks):
            if self._references[block] <= 0:
                raise ValueError(f"block {block} has no holder")
            self._references[block] -= 1
            if self._references[block] == 0:
                self._idle[block] = None
            else:
                self.sharing_changes += 1

    def publish(self, block: int, name: bytes) -> None:
        """Make a held block findable. If another block already has the name, that one stays."""
        if name not in self._blocks and block not in self._names:
            self._blocks[name] = block
            self._names[block] = name

    def find(self, chain: Iterable[bytes]) -> list[int]:
        """The blocks of the longest cached prefix of a chain of names."""
        found: list[int] = []
        for name in chain:
            block = self._blocks.get(name)
            if block is None:
                break
            found.append(block)
        return found

    def num_idle_among(self, blocks: Iterable[int]) -> int:
        """How many of the blocks are idle, so that holding them uses up idle blocks."""
        return sum(self._references[block] == 0 for block in blocks)

    def _forget(self, block: int) -> None:
        name = self._names.pop(block, None)
        if name is not None:
            del self._blocks[name]

    def check_integrity(self, holders: Iterable[Sequence[int]]) -> None:
        """Recount everything.

        Args:
            holders: the block lists of everyone who holds blocks.

        Raises:
            AssertionError: counts, lists or index disagree; the message says where.
        """
        counts = [0] * len(self._references)
        for blocks in holders:
            for block in blocks:
                counts[block] += 1
        for block, (counted, kept) in enumerate(zip(counts, self._references, strict=True)):
            if counted != kept:
                raise AssertionError(f"block {block}: {counted} holders, count says {kept}")
            idle = block in self._idle or block >= self._untouched
            if block != NULL_BLOCK and (kept == 0) != idle:
                raise AssertionError(f"block {block}: count {kept}, idle {idle}")
        if counts[NULL_BLOCK] or NULL_BLOCK in self._idle or NULL_BLOCK in self._names:
            raise AssertionError("the null block is in use")
        if {name: block for block, name in self._names.items()} != self._blocks:
            raise AssertionError("names and blocks of the prefix index differ")
