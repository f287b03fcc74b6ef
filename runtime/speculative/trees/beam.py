"""Beam search: the likeliest paths of each depth, and of all of them the likeliest nodes.

Each depth costs one pass of the drafter over at most `width` nodes. Whatever a node's own
probability, that of its path counts, and no node's is above its parent's: so the `budget` likeliest
nodes form a tree. As in EAGLE-2 (arXiv 2406.16858, section 4).
"""

from twinflow.runtime.speculative.draft import Siblings
from twinflow.runtime.speculative.trees.base import Candidate, Growth, likeliest, tree_of


def beam_tree(*, depth: int, width: int, budget: int) -> Growth:
    """Build a tree of fixed tokens.

    Args:
        depth: tokens of the longest path.
        width: paths that go on from one depth to the next, and children of each.
        budget: most nodes.
    """
    found: list[Candidate] = []
    frontier = [Candidate((), 1.0)]
    for _ in range(depth):
        distributions = yield [candidate.path for candidate in frontier]
        grown = [
            Candidate((*parent.path, token), parent.value * float(distribution[token]))
            for parent, distribution in zip(frontier, distributions, strict=True)
            for token in likeliest(distribution, width)
            if distribution[token] > 0.0
        ]
        frontier = sorted(grown, key=_by_value)[:width]
        found += grown
        if not frontier:
            break
    # Shorter paths first among equals: a parent never stays out for its child.
    chosen = sorted(found, key=lambda c: (-c.value, len(c.path)))[:budget]
    return tree_of(chosen, Siblings.FIXED, {})


def _by_value(candidate: Candidate) -> float:
    return -candidate.value
