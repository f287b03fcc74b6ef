"""Sequoia's static trees (arXiv 2402.12374, section 4.1): the best shape for acceptance rates.

The r-th child of an accepted node is accepted with probability p[r], whatever the node. So a tree's
expected number of accepted nodes is a sum over its nodes, and the best tree of n nodes consists of
best smaller ones:

    best(n, d, r) = max over m of best(m, d, r + 1) + p[r] * (1 + best(n - 1 - m, d - 1, 0))

for n nodes below one whose first r children are given away, d levels deep; m nodes go to the later
siblings, and the r-th child has the rest below it. Acceptance rates are measured; nothing is
measured here.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

from twinflow.runtime.speculative.trees.template import TreeTemplate


@dataclass(frozen=True, slots=True)
class StaticTree:
    """The best tree of its size.

    Attributes:
        template: its shape.
        accepted: nodes that are accepted on average; a round yields one token more.
    """

    template: TreeTemplate
    accepted: float


def sequoia_tree(rates: Sequence[float], *, budget: int, depth: int) -> StaticTree:
    """The tree with the most accepted nodes on average.

    Args:
        rates: probability that the r-th child of an accepted node is the accepted one; of one node
            they sum to at most 1.
        budget: most nodes.
        depth: most levels.
    """
    if any(rate < 0.0 for rate in rates) or sum(rates) > 1.0 + 1e-9:
        raise ValueError(f"acceptance rates {list(rates)} are no probabilities of one outcome")

    @cache
    def best(nodes: int, levels: int, rank: int) -> tuple[float, int]:
        """Accepted nodes, and how many of the nodes go to later siblings."""
        if nodes == 0 or levels == 0 or rank == len(rates):
            return 0.0, 0
        return max(
            (
                best(later, levels, rank + 1)[0]
                + rates[rank] * (1.0 + best(nodes - 1 - later, levels - 1, 0)[0]),
                later,
            )
            for later in range(nodes)
        )

    parents: list[int] = []
    ranks: list[int] = []
    pending = [(0, budget, depth, 0)]
    while pending:
        parent, nodes, levels, rank = pending.pop(0)
        if nodes == 0 or levels == 0 or rank == len(rates):
            continue
        later = best(nodes, levels, rank)[1]
        parents.append(parent)
        ranks.append(rank)
        pending.append((parent, later, levels, rank + 1))
        pending.append((len(parents), nodes - 1 - later, levels - 1, 0))
    return StaticTree(TreeTemplate(tuple(parents), tuple(ranks)), best(budget, depth, 0)[0])


def fastest_tree(
    rates: Sequence[float],
    *,
    budgets: Sequence[int],
    depths: Sequence[int],
    draft_seconds: float,
    verify_seconds: Callable[[int], float],
) -> StaticTree:
    """Of the best trees of several sizes, the one that yields the most tokens per second.

    Args:
        rates: see `sequoia_tree`.
        budgets: numbers of nodes to look at.
        depths: numbers of levels to look at.
        draft_seconds: of one level.
        verify_seconds: of a pass over so many nodes and the sequence's last token.
    """

    def speed(tree: StaticTree, depth: int) -> float:
        seconds = depth * draft_seconds + verify_seconds(len(tree.template.parents))
        return (1.0 + tree.accepted) / seconds

    trees = [(sequoia_tree(rates, budget=n, depth=d), d) for n in budgets for d in depths]
    return max(trees, key=lambda item: speed(*item))[0]
