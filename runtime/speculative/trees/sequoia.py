"""Sequoia's static trees (arXiv 2402.12374, section 4.1): the best shape for acceptance rates.

The r-th child of an accepted node is accepted with probability p[r], whatever the node. So a tree's
expected number of accepted nodes is a sum over its nodes, and the best tree of n nodes consists of
best smaller ones:

    best(n, d, r) = max over m of best(m, d, r + 1) + p[r] * (1 + best(n - 1 - m, d - 1, 0))

for n nodes below one whose first r children are given away, d levels deep; m nodes go to the later
siblings, and the r-th child has the rest below it. One programme finds the best trees of all sizes
up to its own, in milliseconds: levels times ranks steps over all n and m at once. Acceptance rates
are measured; nothing is measured here.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

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


class SequoiaProgramme:
    """The best trees of every size.

    Args:
        rates: probability that the r-th child of an accepted node is the accepted one; of one node
            they sum to at most 1.
        budget: nodes of the largest tree.
        depth: most levels.

    Raises:
        ValueError: the rates are no such probabilities.
    """

    def __init__(self, rates: Sequence[float], *, budget: int, depth: int) -> None:
        if any(rate < 0.0 for rate in rates) or sum(rates) > 1.0 + 1e-9:
            raise ValueError(f"acceptance rates {list(rates)} are no probabilities of one outcome")
        self._depth, self._ranks = depth, len(rates)
        # best(n, d, r), and its m, by [d, r, n].
        shape = (depth + 1, len(rates) + 1, budget + 1)
        self._best, self._later = np.zeros(shape), np.zeros(shape, dtype=np.int64)
        # By [n - 1, n - 1 - m]: the last m of equal ones is the first of a row.
        below = np.arange(budget)
        later = below[:, None] - below
        impossible = np.where(later < 0, -np.inf, 0.0)
        for level in range(1, depth + 1):
            for rank in reversed(range(len(rates))):
                gained = rates[rank] * (1.0 + self._best[level - 1, 0, :budget])
                total = self._best[level, rank + 1][later] + gained + impossible
                chosen = total.argmax(axis=1)
                self._best[level, rank, 1:] = total[below, chosen]
                self._later[level, rank, 1:] = below - chosen

    def tree(self, nodes: int) -> StaticTree:
        """The tree of so many nodes, at most the budget, with the most accepted ones on average."""
        parents: list[int] = []
        ranks: list[int] = []
        pending = [(0, nodes, self._depth, 0)]
        while pending:
            parent, left, level, rank = pending.pop(0)
            if left == 0 or level == 0 or rank == self._ranks:
                continue
            later = int(self._later[level, rank, left])
            parents.append(parent)
            ranks.append(rank)
            pending.append((parent, later, level, rank + 1))
            pending.append((len(parents), left - 1 - later, level - 1, 0))
        accepted = float(self._best[self._depth, 0, nodes])
        return StaticTree(TreeTemplate(tuple(parents), tuple(ranks)), accepted)


def sequoia_tree(rates: Sequence[float], *, budget: int, depth: int) -> StaticTree:
    """The tree with the most accepted nodes on average; see `SequoiaProgramme`."""
    return SequoiaProgramme(rates, budget=budget, depth=depth).tree(budget)
