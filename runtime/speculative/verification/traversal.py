"""Verification of whole paths, from the leaves to the sequence (arXiv 2505.12398).

A path is accepted with its weight: 1 at node 0, and at a child with token x, drawn from q,
min(1, weight * p(x) / q(x)) of its parent's. The first leaf is tried; if it is not accepted it is
taken off, its parent's distribution becomes the normalised excess (weight * p - q)+, and its
parent's weight becomes S / (S + 1 - weight), where S is the mass of that excess. Then the next leaf
is tried, with the weights below that parent anew.

On a chain this is block verification (Sun et al., arXiv 2403.10444). It never accepts fewer tokens
on average than rejection token by token.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from twinflow.runtime.speculative.draft import Draft, FloatArray
from twinflow.runtime.speculative.verification.base import Chance, Target, Verdict, residual


@dataclass(slots=True)
class _Node:
    """A node while leaves are taken off.

    Attributes:
        wanted: what the target still wants behind it.
        weight: probability with which the path to it is accepted if it is a leaf.
        children: those that are left, in order.
    """

    wanted: FloatArray
    weight: float
    children: list[int]


class Traversal:
    """See the module."""

    def verify(self, draft: Draft, target: Target, chance: Chance) -> Verdict:
        """See `VerificationRule.verify`."""
        nodes = [
            _Node(target.probabilities(node), 1.0, draft.children(node))
            for node in range(len(draft) + 1)
        ]
        _weigh(nodes, draft, 0)
        while True:
            path = _first_path(nodes)
            leaf = path[-1] if path else 0
            if leaf == 0 or chance.happens(nodes[leaf].weight, 1.0):
                return Verdict(path, chance.draw(nodes[leaf].wanted))
            parent = draft.parents[leaf - 1]
            _take_off(nodes[parent], draft.drawn_from(leaf, len(nodes[parent].wanted)))
            if parent == 0:
                nodes[0].weight = 1.0
            _weigh(nodes, draft, parent)


def _first_path(nodes: Sequence[_Node]) -> tuple[int, ...]:
    """The nodes from node 0, which is left out, to the first leaf."""
    path: list[int] = []
    node = 0
    while nodes[node].children:
        node = nodes[node].children[0]
        path.append(node)
    return tuple(path)


def _take_off(node: _Node, drawn_from: FloatArray) -> None:
    """Remove the first child, which was not accepted."""
    mass = float(np.maximum(node.weight * node.wanted - drawn_from, 0.0).sum())
    node.wanted = residual(node.wanted, drawn_from, node.weight)
    rest = mass + 1.0 - node.weight
    node.weight = mass / rest if rest > 0.0 else 1.0
    node.children.pop(0)


def _weigh(nodes: Sequence[_Node], draft: Draft, node: int) -> None:
    """Set the weights of everything below a node."""
    for child in nodes[node].children:
        token, wanted = draft.token(child), nodes[node].wanted
        drawn_from = float(draft.drawn_from(child, len(wanted))[token])
        share = float(wanted[token]) / drawn_from if drawn_from > 0.0 else 0.0
        nodes[child].weight = min(1.0, nodes[node].weight * share)
        _weigh(nodes, draft, child)
