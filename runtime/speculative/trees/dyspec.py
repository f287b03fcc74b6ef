"""DySpec (arXiv 2410.11744): the tree grows where the drafter is sure.

A node's value is the chance that it is accepted, by the drafter's own word. Tokens are drawn
without replacement: drawing x with probability q(x) where a path has value v gives x the value
v q(x) and leaves v (1 - q(x)) for the sibling that is drawn after it. The largest value is served
first, so with a budget of nodes the expected number of accepted ones is as large as the drafter
knows how to make it.

Nodes that are drawn one by one would need a pass of the drafter each. Here a layer at a time is
grown, with all values that reach a threshold (section 4.3).
"""

import heapq
from dataclasses import dataclass, field

from twinflow.runtime.speculative.draft import FloatArray, Siblings
from twinflow.runtime.speculative.trees.base import Candidate, Growth, Path, tree_of
from twinflow.runtime.speculative.verification.base import Chance


@dataclass(order=True, slots=True)
class _Draw:
    """A child that is still to be drawn.

    Attributes:
        priority: its value, negative: the heap's smallest is the best.
        order: of being thought of; breaks ties.
        parent: path.
        left: what the parent's children are drawn from, elder siblings being gone.
    """

    priority: float
    order: int
    parent: Path = field(compare=False)
    left: FloatArray = field(compare=False)


def dyspec_tree(chance: Chance, *, depth: int, budget: int, threshold: float) -> Growth:
    """Build a tree of tokens drawn without replacement.

    Args:
        chance: draws tokens.
        depth: tokens of the longest path.
        budget: most nodes.
        threshold: values below it are not worth a node.
    """
    found: list[Candidate] = []
    distributions: dict[Path, FloatArray] = {}
    layer = [Candidate((), 1.0)]
    for _ in range(depth):
        paths = [candidate.path for candidate in layer]
        if not paths or len(found) == budget:
            break
        distributions.update(zip(paths, (yield paths), strict=True))
        room = budget - len(found)
        layer = _draw_layer(layer, distributions, chance, threshold)[:room]
        found += layer
    return tree_of(found, Siblings.DISTINCT, distributions)


def _draw_layer(
    parents: list[Candidate],
    distributions: dict[Path, FloatArray],
    chance: Chance,
    threshold: float,
) -> list[Candidate]:
    """Children of a layer whose value reaches the threshold, in the order of their draws."""
    drawn: list[Candidate] = []
    heap = [
        _Draw(-parent.value, index, parent.path, distributions[parent.path].copy())
        for index, parent in enumerate(parents)
    ]
    heapq.heapify(heap)
    while heap and -heap[0].priority >= threshold:
        best = heapq.heappop(heap)
        value, mass = -best.priority, float(best.left.sum())
        if mass <= 0.0:
            continue
        token = chance.draw(best.left)
        share = float(best.left[token]) / mass
        drawn.append(Candidate((*best.parent, token), value * share))
        best.left[token] = 0.0
        rest = value * (1.0 - share)
        heapq.heappush(heap, _Draw(-rest, len(parents) + len(drawn), best.parent, best.left))
    return drawn
