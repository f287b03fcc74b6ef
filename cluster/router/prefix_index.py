"""Which worker probably has which prefix cached.

The gateway remembers where it sent the prompts of the last while. The memory is approximate on
purpose: a worker may have evicted the blocks, which costs a wrong guess and never a wrong token.
Bounded, least recently used entries go first. An entry is two whole numbers, some 150 bytes: a part
of the block's name, and a bit for each worker that has it.
"""

from collections import OrderedDict
from collections.abc import Sequence
from functools import cached_property

from twinflow.runtime.kv.prefix_hash import extend_chain, prefix_root

MAX_NAMES = 100_000
# Of a block's name. Two blocks that agree in it by chance cost a wrong guess.
_NAME_BYTES = 7


class PrefixIndex:
    """Names of prompt blocks, each with the workers that saw it.

    Args:
        block_size: token slots of the workers' KV blocks.
        capacity: names to remember.
    """

    def __init__(self, block_size: int, capacity: int = MAX_NAMES) -> None:
        self._block_size = block_size
        self._capacity = capacity
        self._holders: OrderedDict[int, int] = OrderedDict()
        self._bits: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._holders)

    def names(self, token_ids: Sequence[int], cache_salt: str) -> list[int]:
        """Names of the full blocks of a prompt, short of its last token."""
        chain: list[bytes] = []
        extend_chain(
            prefix_root("", "", cache_salt),
            chain,
            lambda start, count: token_ids[start : start + count],
            num_blocks=(len(token_ids) - 1) // self._block_size,
            block_size=self._block_size,
        )
        return [int.from_bytes(name[:_NAME_BYTES], "little") for name in chain]

    def hits(self, names: Sequence[int]) -> dict[str, int]:
        """Tokens of the prefix that each worker has seen in one piece from the start."""
        found: dict[str, int] = {}
        candidates = self._bits
        for depth, name in enumerate(names, 1):
            holders = self._holders.get(name, 0)
            candidates = {worker: bit for worker, bit in candidates.items() if holders & bit}
            if not candidates:
                break
            found.update(dict.fromkeys(candidates, depth * self._block_size))
        return found

    def record(self, names: Sequence[int], worker_id: str) -> None:
        """A prompt with these names was sent to a worker."""
        bit = self._bits.get(worker_id) or self._new_bit(worker_id)
        # Backwards, so that the end of a prefix is forgotten before what it is worth nothing
        # without: its beginning.
        for name in reversed(names):
            self._holders[name] = self._holders.get(name, 0) | bit
            self._holders.move_to_end(name)
        self._trim()

    def resize(self, capacity: int) -> None:
        """Remember as many names as that, and at most `MAX_NAMES`."""
        self._capacity = min(capacity, MAX_NAMES)
        self._trim()

    def forget(self, worker_id: str) -> None:
        """A worker's cache is gone; takes time in proportion to all that is known."""
        bit = self._bits.pop(worker_id, 0)
        for name in [name for name, holders in self._holders.items() if holders & bit]:
            self._holders[name] &= ~bit
            if not self._holders[name]:
                del self._holders[name]

    def check_integrity(self) -> None:
        """Raises AssertionError if workers share a bit, or a name is held by nobody known."""
        known = 0
        for bit in self._bits.values():
            if bit.bit_count() != 1 or known & bit:
                raise AssertionError("two workers share a bit")
            known |= bit
        if any(not holders or holders & ~known for holders in self._holders.values()):
            raise AssertionError("a name is held by nobody, or by a worker that is forgotten")

    def _new_bit(self, worker_id: str) -> int:
        """The lowest that no worker has: numbers stay small however many workers come and go."""
        taken, bit = set(self._bits.values()), 1
        while bit in taken:
            bit <<= 1
        self._bits[worker_id] = bit
        return bit

    def _trim(self) -> None:
        while len(self._holders) > self._capacity:
            self._holders.popitem(last=False)


class PromptNames:
    """The names of one prompt, computed when they are first asked for.

    Args:
        index: knows how to name.
        token_ids: of the prompt.
        cache_salt: of the request.
    """

    def __init__(self, index: PrefixIndex, token_ids: Sequence[int], cache_salt: str) -> None:
        self._index = index
        self._token_ids = token_ids
        self._cache_salt = cache_salt

    @cached_property
    def names(self) -> list[int]:
        """See `PrefixIndex.names`."""
        return self._index.names(self._token_ids, self._cache_salt)
