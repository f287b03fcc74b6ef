"""Trees of a fixed shape: which child of which node, whatever the tokens are.

A node is "the r-th likeliest token behind its parent". A drafter fills a template with tokens; a
template does not know any.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from twinflow.runtime.speculative.draft import Draft
from twinflow.runtime.speculative.trees.base import Growth, Path, likeliest


@dataclass(frozen=True, slots=True)
class TreeTemplate:
    """A shape.

    Attributes:
        parents: of nodes 1, 2, ...; a node comes behind its parent.
        ranks: which of its parent's children each node is, from 0 on.
    """

    parents: tuple[int, ...]
    ranks: tuple[int, ...]

    @property
    def widths(self) -> tuple[int, ...]:
        """Nodes of each level."""
        depths = [0]
        for parent in self.parents:
            depths.append(depths[parent] + 1)
        return tuple(depths.count(depth) for depth in range(1, max(depths) + 1))

    def grow(self, limit: int) -> Growth:
        """The proposal in which a node is its parent's r-th likeliest child.

        Args:
            limit: most nodes; those behind it stay out, as do nodes for whose rank there is no
                token that may come, with all below them.
        """
        parents, ranks = self.parents[:limit], self.ranks[:limit]
        branching, most = set(parents), 1 + max(ranks, default=0)
        paths: dict[int, Path] = {0: ()}
        level = [0] if parents else []
        while level:
            distributions = yield [paths[node] for node in level]
            ordered = {
                node: likeliest(distribution, most)
                for node, distribution in zip(level, distributions, strict=True)
            }
            level = []
            for node, (parent, rank) in enumerate(zip(parents, ranks, strict=True), start=1):
                if rank < len(ordered.get(parent, ())):
                    paths[node] = (*paths[parent], ordered[parent][rank])
                    level += [node] if node in branching else []
        kept = sorted(paths)
        numbers = {node: number for number, node in enumerate(kept)}
        return Draft(
            tuple(paths[node][-1] for node in kept[1:]),
            tuple(numbers[parents[node - 1]] for node in kept[1:]),
        )

    @classmethod
    def chain(cls, length: int) -> "TreeTemplate":
        """One path."""
        return cls(tuple(range(length)), (0,) * length)

    def fill(self, root: int, children: Callable[[int], Sequence[int]], limit: int) -> Draft:
        """The proposal that a table of likely next tokens gives.

        Args:
            root: the last token of the sequence.
            children: tokens that may follow a token, likeliest first.
            limit: most nodes; those behind it stay out, as do nodes that the table has no token
                for, with all below them.
        """
        numbers = {0: 0}
        known = [root]
        parents: list[int] = []
        for node, (parent, rank) in enumerate(zip(self.parents, self.ranks, strict=True), start=1):
            if len(parents) == limit:
                break
            if parent not in numbers:
                continue
            found = children(known[numbers[parent]])
            if rank >= len(found):
                continue
            parents.append(numbers[parent])
            known.append(found[rank])
            numbers[node] = len(parents)
        return Draft(tuple(known[1:]), tuple(parents))
