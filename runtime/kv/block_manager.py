"""Which blocks hold which sequence.

    tokens    0 ....... cached prefix ....... | ... computed ... | scheduled | to come
    blocks    [ shared, found in the index    ][ own, allocated on admission and while decoding ]
    names     [ published ................................ ]  only full, computed blocks

A table's blocks are held from `open` to `free`. Blocks are published as soon as every token in
them is computed in all layers, never earlier. A sequence that has ended while its rows are being
computed is in quarantine: it holds its blocks until they can be reused without harm. The manager
knows no tensors and makes no policy: schedulers ask what fits, the engine carries out.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice

from twinflow.runtime.kv.block_pool import BlockPool
from twinflow.runtime.kv.prefix_hash import extend_chain, prefix_root
from twinflow.runtime.request import Request


@dataclass(slots=True)
class BlockTable:
    """The blocks of one sequence.

    Attributes:
        blocks: block numbers, in token order.
        published: leading blocks that are in the prefix index.
        shared: blocks that others hold too, when they were last counted.
        counted_at: the pool's `sharing_changes` then.
        branches: blocks of continuations that are looked at, none of them in `blocks`.
    """

    blocks: list[int]
    published: int
    shared: int = 0
    counted_at: int = -1
    branches: list[int] = field(default_factory=list)

    @property
    def held(self) -> list[int]:
        """All blocks."""
        return self.blocks + self.branches


@dataclass(frozen=True, slots=True)
class PrefixMatch:
    """What the prefix index has of a sequence.

    Attributes:
        blocks: cached blocks, in token order.
        num_tokens: tokens they hold.
        num_idle: how many of them are idle: holding them uses up that many idle blocks.
    """

    blocks: tuple[int, ...] = ()
    num_tokens: int = 0
    num_idle: int = 0


_NO_MATCH = PrefixMatch()


@dataclass(slots=True)
class PrefixCounters:
    """How much computing the prefix index saves.

    Attributes:
        queries: tokens of sequences that were admitted to be computed here.
        hits: those of them that the index had.
    """

    queries: int = 0
    hits: int = 0


class BlockManager:
    """Block tables over one pool.

    Args:
        num_blocks: blocks of the KV cache, the null block included.
        block_size: token slots of a block, of all ranks together that share one.
        model_fingerprint: part of every prefix's name.
        layout_digest: part of every prefix's name.
        enable_prefix_caching: whether finished blocks can be found again.
        share_generated: whether a generated token's KV may serve as that of a prompt's token, and
            the other way round; if not, only blocks of prompts can be found.
    """

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        *,
        model_fingerprint: str,
        layout_digest: str,
        enable_prefix_caching: bool = True,
        share_generated: bool = True,
    ) -> None:
        self._pool = BlockPool(num_blocks)
        self._tables: dict[str, BlockTable] = {}
        self._quarantined: set[str] = set()
        self._identity = (model_fingerprint, layout_digest)
        self._caching = enable_prefix_caching
        self._share_generated = share_generated
        self.block_size = block_size
        self.counters = PrefixCounters()

    @property
    def num_blocks(self) -> int:
        """Blocks that sequences can hold."""
        return self._pool.num_blocks

    @property
    def num_idle(self) -> int:
        """Blocks that can be allocated now."""
        return self._pool.num_idle

    def use(self) -> float:
        """The share of all blocks that cannot be allocated now."""
        return 1.0 - self.num_idle / self.num_blocks

    @property
    def holders(self) -> frozenset[str]:
        """Ids of the sequences that have a block table."""
        return frozenset(self._tables)

    @property
    def quarantined(self) -> frozenset[str]:
        """Ids of the sequences in quarantine."""
        return frozenset(self._quarantined)

    @property
    def num_quarantined(self) -> int:
        """Blocks that only sequences in quarantine hold: all others that are not idle are those of
        live sequences."""
        if not self._quarantined:
            return 0
        holders = Counter(b for name in self._quarantined for b in self._tables[name].held)
        return sum(self._pool.references(block) == count for block, count in holders.items())

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that `num_tokens` tokens fill, the last one perhaps in part."""
        return -(-num_tokens // self.block_size)

    def blocks(self, request_id: str) -> Sequence[int]:
        """The block table of a sequence; empty if it has none."""
        table = self._tables.get(request_id)
        return table.blocks if table else ()

    def num_held(self, request_id: str) -> int:
        """Length of a sequence's block table."""
        return len(self.blocks(request_id))

    def is_private(self, block: int) -> bool:
        """Whether one sequence holds a block and no other can find it."""
        return self._pool.is_private(block)

    def num_reclaimable(self, request_id: str) -> int:
        """Blocks that go idle when the sequence is freed: those nobody else holds.

        Counted again only if blocks were shared or unshared meanwhile: admission asks this of
        everybody, in every step, and what a sequence allocates is its own.
        """
        table, now = self._tables.get(request_id), self._pool.sharing_changes
        if table is None:
            return 0
        if table.counted_at != now:
            table.shared, table.counted_at = self._pool.num_shared(table.blocks), now
        return len(table.blocks) - table.shared

    def match(self, request: Request) -> PrefixMatch:
        """The longest cached prefix, short of the last token: its logits must be computed."""
        if not self._shares(request):
            return _NO_MATCH
        num_full = self._shareable(request, request.num_tokens - 1)
        self._name(request, num_full)
        blocks = self._pool.find(islice(request.prefix_names, num_full))
        if not blocks:
            return _NO_MATCH
        num_idle = self._pool.num_idle_among(blocks)
        return PrefixMatch(tuple(blocks), len(blocks) * self.block_size, num_idle)

    def open(
        self, request: Request, match: PrefixMatch, *, computed_elsewhere: bool = False
    ) -> None:
        """Start the table of a sequence with the blocks of a match made in the same step.

        Args:
            request: the sequence.
            match: of the sequence.
            computed_elsewhere: what the match lacks is received from the worker that computes it,
                which has looked the whole sequence up and counts that.
        """
        if request.request_id in self._tables:
            raise ValueError(f"request {request.request_id} already has a block table")
        self._pool.retain(match.blocks)
        self._tables[request.request_id] = BlockTable(list(match.blocks), len(match.blocks))
        if self._shares(request) and not computed_elsewhere:
            self.counters.queries += request.num_tokens
            self.counters.hits += match.num_tokens

    def grow(self, request_id: str, num_tokens: int) -> None:
        """Make room for the first `num_tokens` tokens of a sequence.

        Raises:
            ValueError: there are not enough idle blocks; nothing was allocated.
        """
        table = self._tables[request_id]
        missing = self.blocks_for(num_tokens) - len(table.blocks)
        if missing > 0:
            table.blocks.extend(self._pool.allocate(missing))

    def trim(self, request_id: str, num_tokens: int) -> None:
        """Give back the blocks behind the first `num_tokens` tokens of a sequence.

        What is in them was computed for tokens that did not become part of the sequence, and was
        never published.
        """
        table = self._tables[request_id]
        kept = self.blocks_for(num_tokens)
        surplus = table.blocks[kept:]
        if surplus:
            del table.blocks[kept:]
            self._pool.release(surplus)

    def branch(self, request_id: str, shared: Sequence[int], count: int) -> list[int]:
        """A block table for a continuation that is looked at beside the sequence itself.

        Args:
            request_id: of the sequence.
            shared: blocks of the sequence, or of another branch of it, that the table begins with.
            count: new blocks behind them.

        Raises:
            ValueError: there are not enough idle blocks; nothing was allocated.
        """
        fresh = self._pool.allocate(count)
        self._tables[request_id].branches.extend(fresh)
        return [*shared, *fresh]

    def adopt(self, request_id: str, blocks: Sequence[int]) -> None:
        """The sequence goes on in this table, its own or a branch's; all other branches end.

        What ends was never published: branches begin behind the blocks that are.
        """
        table, kept = self._tables[request_id], set(blocks)
        surplus = [block for block in table.held if block not in kept]
        table.blocks, table.branches = list(blocks), []
        self._pool.release(surplus)

    def publish(self, request: Request) -> None:
        """Make findable every full block among the computed tokens of a sequence."""
        if not self._shares(request):
            return
        table = self._tables[request.request_id]
        num_full = self._shareable(request, request.num_computed)
        if num_full <= table.published:
            return
        self._name(request, num_full)
        for index in range(table.published, num_full):
            self._pool.publish(table.blocks[index], request.prefix_names[index])
        table.published = num_full

    def quarantine(self, request_id: str) -> None:
        """Keep the blocks of a sequence that has ended until it is freed: a step that is under way
        reads and writes them."""
        if request_id in self._tables:
            self._quarantined.add(request_id)

    def free(self, request_id: str) -> None:
        """Give back every block of a sequence; a sequence without a table is fine."""
        self._quarantined.discard(request_id)
        table = self._tables.pop(request_id, None)
        if table is not None:
            self._pool.release(table.held)

    def check_integrity(self) -> None:
        """Recount all blocks; raises AssertionError with the first disagreement."""
        self._pool.check_integrity(table.held for table in self._tables.values())

    def _shares(self, request: Request) -> bool:
        """Whether a sequence takes part in prefix caching."""
        return self._caching and not request.probe

    def _shareable(self, request: Request, num_tokens: int) -> int:
        """Full blocks among the first tokens of a sequence that can be found by others."""
        if not self._share_generated:
            num_tokens = min(num_tokens, len(request.prompt_token_ids))
        return num_tokens // self.block_size

    def _name(self, request: Request, num_blocks: int) -> None:
        if len(request.prefix_names) >= num_blocks:
            return  # as in nearly every step that a request waits
        extend_chain(
            prefix_root(*self._identity, request.cache_salt),
            request.prefix_names,
            request.tokens,
            num_blocks=num_blocks,
            block_size=self.block_size,
        )
