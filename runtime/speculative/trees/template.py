"""Trees of a fixed shape: which child of which node, whatever the tokens are.

A node is "the r-th likeliest token behind its parent". A drafter fills a template with tokens; a
template does not know any.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from twinflow.runtime.speculative.draft import Draft


@dataclass(frozen=True, slots=True)
class TreeTemplate:
    """A shape.

    Attributes:
        parents: of nodes 1, 2, ...; a node comes behind its parent.
        ranks: which of its parent's children each node is, from 0 on.
    """

    parents: tuple[int, ...]
    ranks: tuple[int, ...]

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
