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
    # A path to a node takes a node a level: more levels than nodes would be passes for nothing.
    for _ in range(min(depth, budget)):
        distributions = yield [candidate.path for candidate in frontier]
        grown = [
            Candidate((*parent.path, token), parent.value * float(distribution[token]))
            for parent, distribution in zip(frontier, distributions, strict=True)
            for token in likeliest(distribution, width)
        ]
        frontier = sorted(grown, key=_by_value)[:width]
        # Shorter paths first among equals: a parent never stays out for its child.
        found = sorted(found + grown, key=_by_value)[:budget]
        if not frontier or (len(found) == budget and frontier[0].value <= found[-1].value):
            break
    return tree_of(found, Siblings.FIXED, {})


def _by_value(candidate: Candidate) -> tuple[float, int]:
    return -candidate.value, len(candidate.path)
