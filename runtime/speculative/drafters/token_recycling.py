"""Token recycling (arXiv 2408.08696): what the target once found likely is likely again.

A table holds, for each token of the vocabulary, what the target last found likeliest behind it. It
is overwritten by every row of a token that came true, and read as a graph: the likeliest tokens
behind the last token, the likeliest behind those, and so on. Rows of rejected tokens, which the
paper lets overwrite as well, only fill what is empty: most rows of a tree are behind words that
nobody says, and would replace what is said behind the same token elsewhere.

A prompt tells, too, and before anything of it was verified: what followed a token there goes before
what the target found likely. In code and summaries, where words of the prompt come again, that is
worth more than a larger tree.

The table is as large as the vocabulary whatever is served, less than 2 MB for 32000 tokens. One for
each cache salt: tables tell what was said.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from twinflow.runtime.speculative.draft import NOTHING, Draft
from twinflow.runtime.speculative.drafters.base import (
    DraftedSequence,
    DraftQuery,
    LikelyNext,
    Outlook,
)
from twinflow.runtime.speculative.drafters.salted import BySalt
from twinflow.runtime.speculative.trees.config import TreeConfig
from twinflow.runtime.speculative.trees.measured import MeasuredTree
from twinflow.runtime.speculative.trees.template import TreeTemplate

_NOTHING = -1
# Of a long prompt the last tokens are learned from: milliseconds.
_MOST_PROMPT = 8192


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

    def __post_init__(self) -> None:
        if self.tree is not None and self.tree.width > self.width:
            raise ValueError(
                f"tree.width is {self.tree.width}, and token_recycling remembers {self.width} "
                f"tokens behind each: at most as many can be children of a node"
            )


class TokenRecyclingDrafter:
    """See the module."""

    def __init__(self, config: RecyclingConfig) -> None:
        self._config = config
        self._chain = TreeTemplate.chain(config.nodes)
        self._measured = None if config.tree is None else MeasuredTree(config.tree)
        self._tables: BySalt[NDArray[np.int32]] = BySalt(self._empty)
        self._met: set[str] = set()

    @property
    def likely_tokens(self) -> int:
        """See `Drafter.likely_tokens`."""
        return self._config.width

    def propose(self, queries: Sequence[DraftQuery]) -> list[Draft]:
        """See `Drafter.propose`."""
        for query in queries:
            self._meet(query.sequence)
        if self._measured is None:
            return [self._read(query, self._chain) for query in queries]
        for query in queries:
            self._measured.settle(query.sequence)
        template = self._measured.template(self._config.nodes)
        drafts = [self._read(query, template) for query in queries]
        for query, draft in zip(queries, drafts, strict=True):
            self._measured.proposed(query.sequence, draft)
        return drafts

    def _meet(self, sequence: DraftedSequence) -> None:
        """Learn from the prompt of a sequence that was not seen before."""
        if sequence.request_id in self._met:
            return
        self._met.add(sequence.request_id)
        prompt = sequence.prompt_token_ids[-_MOST_PROMPT:]
        table = self._tables.take(sequence.cache_salt)
        for pairs in reversed(_by_recency(prompt, self._config.width)):
            _put_first(table, np.array(list(pairs), np.int64), np.array(list(pairs.values())))

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

    def outlook(self, sequences: Sequence[DraftedSequence], nodes: int) -> Outlook:
        """See `Drafter.outlook`: look-ups need nothing computed."""
        return Outlook() if self._measured is None else Outlook(widths=self._measured.widths(nodes))

    def observe(self, likely: Sequence[LikelyNext]) -> None:
        """See `Drafter.observe`; of two rows with the same token the later one counts."""
        for row in likely:
            table = self._tables.take(row.cache_salt)
            if not row.true and table[row.token_id, 0] != _NOTHING:
                continue
            table[row.token_id] = _NOTHING
            table[row.token_id, : len(row.next_ids)] = row.next_ids

    def _empty(self) -> NDArray[np.int32]:
        return np.full((self._config.vocab_size, self._config.width), _NOTHING, dtype=np.int32)

    def forget(self, sequence: DraftedSequence) -> None:
        """See `Drafter.forget`; what was learned stays."""
        self._met.discard(sequence.request_id)
        if self._measured is not None:
            self._measured.forget(sequence.request_id)


def _by_recency(tokens: Sequence[int], width: int) -> list[dict[int, int]]:
    """What came last behind each token, then what else came before that, and so on."""
    found: dict[int, list[int]] = {}
    for token, following in dict.fromkeys(reversed(list(pairwise(tokens)))):
        found.setdefault(token, []).append(following)
    most = min(width, max(map(len, found.values()), default=0))
    return [
        {token: behind[place] for token, behind in found.items() if len(behind) > place}
        for place in range(most)
    ]


def _put_first(table: NDArray[np.int32], rows: NDArray[np.int64], first: NDArray[np.int64]) -> None:
    """Move tokens to the front of their rows; what was there last makes room.

    Args:
        table: [vocabulary, width], changed.
        rows: [n] different rows.
        first: [n] their new first tokens.
    """
    old = table[rows]
    same = old == first[:, None]
    end = np.where(same.any(axis=1), same.argmax(axis=1), old.shape[1] - 1)
    moved = np.arange(1, old.shape[1]) <= end[:, None]
    table[rows, 1:] = np.where(moved, old[:, :-1], old[:, 1:])
    table[rows, 0] = first
