"""A proposal: tokens that may come next, and how they were found.

                 ┌─ node 1 ── node 3
    node 0 ──────┤                          node 0 is the sequence as it is; a chain is a tree
                 └─ node 2                  whose nodes have one child each

Nodes are numbered so that each comes behind its parent; row i of the pass that verifies a proposal
is that of node i. Nothing here chooses tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


class Siblings(StrEnum):
    """How the children of a node were found; verification by rejection depends on it."""

    FIXED = "fixed"
    """Chosen without chance, such as the likeliest ones."""
    INDEPENDENT = "independent"
    """Each drawn from the same distribution; some may be equal."""
    DISTINCT = "distinct"
    """Drawn one after the other without replacement."""


@dataclass(frozen=True, slots=True)
class Draft:
    """Proposed tokens.

    Attributes:
        tokens: of nodes 1, 2, ...; empty if there is nothing to propose.
        parents: the node that each of them follows.
        siblings: how children were found.
        distributions: what the children of a node were drawn from, by node: float64 [vocabulary];
            none where they are fixed.
        grown: levels that a drafter went through to make it, where it counts them.
    """

    tokens: tuple[int, ...] = ()
    parents: tuple[int, ...] = ()
    siblings: Siblings = Siblings.FIXED
    distributions: Mapping[int, FloatArray] = field(default_factory=dict)
    grown: int = field(default=0, compare=False)

    def __post_init__(self) -> None:
        if len(self.tokens) != len(self.parents):
            raise ValueError(f"{len(self.tokens)} tokens have {len(self.parents)} parents")
        for node, parent in enumerate(self.parents, start=1):
            if not 0 <= parent < node:
                raise ValueError(f"node {node} cannot follow node {parent}")
            if self.siblings is not Siblings.FIXED and parent not in self.distributions:
                raise ValueError(f"what node {node} was drawn from is missing")

    @classmethod
    def chain(
        cls, tokens: Sequence[int], distributions: Sequence[FloatArray] | None = None
    ) -> "Draft":
        """Tokens one behind the other.

        Args:
            tokens: at least none.
            distributions: what each was drawn from; None if they are fixed.
        """
        parents = tuple(range(len(tokens)))
        if distributions is None:
            return cls(tuple(tokens), parents)
        drawn = dict(zip(parents, distributions, strict=True))
        return cls(tuple(tokens), parents, Siblings.INDEPENDENT, drawn)

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def is_chain(self) -> bool:
        """Whether no node has more than one child."""
        return self.parents == tuple(range(len(self.parents)))

    @property
    def has_twins(self) -> bool:
        """Whether a node has two children with the same token."""
        return len(set(zip(self.parents, self.tokens, strict=True))) < len(self.tokens)

    def token(self, node: int) -> int:
        """The token of a node other than 0."""
        return self.tokens[node - 1]

    def children(self, node: int) -> list[int]:
        """The nodes that follow a node, in the order in which they were found."""
        return [child for child, parent in enumerate(self.parents, start=1) if parent == node]

    def child(self, node: int, token: int) -> int | None:
        """The first node behind a node that has this token; None if there is none."""
        return next((c for c in self.children(node) if self.token(c) == token), None)

    def along(self, tokens: Sequence[int]) -> int:
        """A node that the longest proposed beginning of a continuation leads to.

        Of twins, the one behind which it goes on.
        """
        nodes = [0]
        for token in tokens:
            following = [c for n in nodes for c in self.children(n) if self.token(c) == token]
            if not following:
                break
            nodes = following
        return nodes[0]

    @property
    def depth(self) -> int:
        """Nodes of the longest path."""
        depths = [0]
        for parent in self.parents:
            depths.append(depths[parent] + 1)
        return max(depths)

    @property
    def levels(self) -> int:
        """Levels that it took to make: its depth, and those that left it no node."""
        return max(self.grown, self.depth)

    def path(self, node: int) -> tuple[int, ...]:
        """The nodes from a child of node 0 to this one; none for node 0."""
        found: list[int] = []
        while node:
            found.append(node)
            node = self.parents[node - 1]
        return tuple(reversed(found))

    def shortened(self, count: int) -> "Draft":
        """The proposal without its nodes behind the first `count`."""
        if count >= len(self.tokens):
            return self
        return Draft(self.tokens[:count], self.parents[:count], self.siblings, self.distributions)

    def drawn_from(self, child: int, vocab_size: int) -> FloatArray:
        """The distribution of a node's token, given its elder siblings; float64 [vocab_size]."""
        if self.siblings is Siblings.FIXED:
            fixed = np.zeros(vocab_size)
            fixed[self.token(child)] = 1.0
            return fixed
        parent = self.parents[child - 1]
        distribution = self.distributions[parent]
        if self.siblings is Siblings.INDEPENDENT:
            return distribution
        elder = [self.token(node) for node in self.children(parent) if node < child]
        left = distribution.copy()
        left[elder] = 0.0
        left /= left.sum()
        return left


NOTHING = Draft()
"""The proposal of whoever has nothing to propose."""
