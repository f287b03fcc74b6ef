"""Token recycling (arXiv 2408.08696): what the target once found likely is likely again.

A table holds, for each token of the vocabulary, what the target last found likeliest behind it. It
is overwritten by every verified row, accepted or not, and read as a graph: the likeliest tokens
behind the last token, the likeliest behind those, and so on.

The table is as large as the vocabulary whatever is served, less than 2 MB for 32000 tokens. One for
each cache salt: tables tell what was said.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from twinflow.runtime.speculative.draft import NOTHING, Draft
from twinflow.runtime.speculative.drafters.base import DraftedSequence, DraftQuery, LikelyNext
from twinflow.runtime.speculative.drafters.salted import BySalt
from twinflow.runtime.speculative.trees.config import TreeConfig
from twinflow.runtime.speculative.trees.measured import MeasuredTree
from twinflow.runtime.speculative.trees.template import TreeTemplate

_NOTHING = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class RecyclingConfig:
    """What is remembered and which shape is read off.

    Attributes:
        vocab_size: rows of a table.
        nodes: most tokens of a proposal.
        tree: its shape; None for chains.
        width: candidates of a token.
    """

    vocab_size: int
    nodes: int
    tree: TreeConfig | None = None
    width: int = 8


class TokenRecyclingDrafter:
    """See the module."""

    def __init__(self, config: RecyclingConfig) -> None:
        self._config = config
        self._chain = TreeTemplate.chain(config.nodes)
        self._measured = None if config.tree is None else MeasuredTree(config.tree)
        self._tables: BySalt[NDArray[np.int32]] = BySalt(self._empty)

    @property
    def likely_tokens(self) -> int:
        """See `Drafter.likely_tokens`."""
        return self._config.width

    def propose(self, queries: Sequence[DraftQuery]) -> list[Draft]:
        """See `Drafter.propose`."""
        if self._measured is None:
            return [self._read(query, self._chain) for query in queries]
        for query in queries:
            self._measured.settle(query.sequence)
        template = self._measured.template(self._config.nodes)
        drafts = [self._read(query, template) for query in queries]
        for query, draft in zip(queries, drafts, strict=True):
            self._measured.proposed(query.sequence, draft)
        return drafts

    def _read(self, query: DraftQuery, template: TreeTemplate) -> Draft:
        sequence = query.sequence
        table = self._tables.find(sequence.cache_salt)
        if table is None:
            return NOTHING
        (last,) = sequence.tokens(sequence.num_tokens - 1, 1)

        def children(token: int) -> list[int]:
            row: list[int] = table[token].tolist()
            return [candidate for candidate in row if candidate != _NOTHING]

        return template.fill(last, children, query.limit)

    def observe(self, likely: Sequence[LikelyNext]) -> None:
        """See `Drafter.observe`; of two rows with the same token the later one counts."""
        for row in likely:
            table = self._tables.take(row.cache_salt)
            table[row.token_id] = _NOTHING
            table[row.token_id, : len(row.next_ids)] = row.next_ids

    def _empty(self) -> NDArray[np.int32]:
        return np.full((self._config.vocab_size, self._config.width), _NOTHING, dtype=np.int32)

    def forget(self, sequence: DraftedSequence) -> None:
        """See `Drafter.forget`; what was learned stays."""
        if self._measured is not None:
            self._measured.forget(sequence.request_id)
