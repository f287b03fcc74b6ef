"""What a verification rule is given and what it answers.

A rule takes a proposal and the target's view of every node of it. Whatever was proposed, the
tokens that a sequence gets this way have the target's distribution. The target's distribution at a
node is that of the sequence with the node's path appended: penalties, bias, masks and filters
included. Rules know no logits, no requests and no KV.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from twinflow.runtime.speculative.draft import Draft, FloatArray


class Target(Protocol):
    """The model that is served, behind each node of a proposal."""

    def token(self, node: int) -> int:
        """The token that the sequence gets behind a node when nothing is proposed to it."""
        ...

    def probabilities(self, node: int) -> FloatArray:
        """The distribution of that token; float64 [vocabulary], not to be changed."""
        ...


class Chance(Protocol):
    """Random decisions."""

    def happens(self, weight: float, of: float) -> bool:
        """True with probability min(1, weight / of); never if both are 0."""
        ...

    def draw(self, distribution: FloatArray) -> int:
        """An index, with the probability that it has."""
        ...


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a sequence gets.

    Attributes:
        path: accepted nodes, from a child of node 0 on.
        token: one more token behind them, always of the target.
    """

    path: tuple[int, ...]
    token: int

    def tokens(self, draft: Draft) -> tuple[int, ...]:
        """Everything that the sequence gets."""
        return (*(draft.token(node) for node in self.path), self.token)


class VerificationRule(Protocol):
    """Decides which nodes of a proposal are accepted."""

    def verify(self, draft: Draft, target: Target, chance: Chance) -> Verdict:
        """Accept a path of the proposal, perhaps an empty one, and choose the token behind it."""
        ...


def residual(target: FloatArray, drawn_from: FloatArray, share: float = 1.0) -> FloatArray:
    """What the target has in excess of a proposal: (share * target - drawn_from)+, normalised.

    Where rounding leaves no excess, the proposal was the target, and the target is returned.
    """
    excess = np.maximum(share * target - drawn_from, 0.0)
    mass = float(excess.sum())
    return excess / mass if mass > 0.0 else target
