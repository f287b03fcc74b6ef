"""Which worker probably has which prefix cached.

The gateway remembers where it sent the prompts of the last while. The memory is approximate on
purpose: a worker may have evicted the blocks, which costs a wrong guess and never a wrong token.
Bounded, least recently used entries go first.
"""

from collections import OrderedDict
from collections.abc import Sequence
from functools import cached_property

from twinflow.runtime.kv.prefix_hash import extend_chain, prefix_root


class PrefixIndex:
    """Names of prompt blocks, each with the worker that saw it last.

    Args:
        block_size: token slots of the workers' KV blocks.
        capacity: names to remember.
    """

    def __init__(self, block_size: int, capacity: int = 100_000) -> None:
        self._block_size = block_size
        self._capacity = capacity
        self._workers: OrderedDict[bytes, dict[str, None]] = OrderedDict()
        self._names: dict[str, set[bytes]] = {}

    def __len__(self) -> int:
        return len(self._workers)

    def names(self, token_ids: Sequence[int], cache_salt: str) -> list[bytes]:
        """Names of the full blocks of a prompt, short of its last token."""
        chain: list[bytes] = []
        extend_chain(
            prefix_root("", "", cache_salt),
            chain,
            lambda start, count: token_ids[start : start + count],
            num_blocks=(len(token_ids) - 1) // self._block_size,
            block_size=self._block_size,
        )
        return chain

    def hits(self, names: Sequence[bytes]) -> dict[str, int]:
        """Tokens of the prefix that each worker has seen in one piece from the start."""
        found: dict[str, int] = {}
        candidates: set[str] | None = None
        for depth, name in enumerate(names, 1):
            holders = self._workers.get(name)
            if holders is None:
                break
            candidates = set(holders) if candidates is None else candidates & holders.keys()
            if not candidates:
                break
            found.update(dict.fromkeys(candidates, depth * self._block_size))
        return found

    def record(self, names: Sequence[bytes], worker_id: str) -> None:
        """A prompt with these names was sent to a worker."""
        known = self._names.setdefault(worker_id, set())
        known.update(names)
        # Backwards, so that the end of a prefix is forgotten before what it is worth nothing
        # without: its beginning.
        for name in reversed(names):
            self._workers.setdefault(name, {})[worker_id] = None
            self._workers.move_to_end(name)
        while len(self._workers) > self._capacity:
            name, holders = self._workers.popitem(last=False)
            for holder in holders:
                self._names[holder].discard(name)

    def forget(self, worker_id: str) -> None:
        """A worker's cache is gone; takes time in proportion to what is known of it."""
        for name in self._names.pop(worker_id, ()):
            holders = self._workers[name]
            del holders[worker_id]
            if not holders:
                del self._workers[name]

    def check_integrity(self) -> None:
        """Compare both directions; raises AssertionError if they differ."""
        forward = {(name, holder) for name, found in self._workers.items() for holder in found}
        backward = {(name, worker) for worker, names in self._names.items() for name in names}
        if forward != backward:
            raise AssertionError("the names by worker and the workers by name differ")


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
    def names(self) -> list[bytes]:
        """See `PrefixIndex.names`."""
        return self._index.names(self._token_ids, self._cache_salt)
