"""Sequoia's tree for rates of acceptance as they are found in service.

Behind each node that came true, one of its children did, or none: whatever a sequence went on with
tells the rank of the child that was right, also where a proposal was cut short. The rates start at
what is assumed of any drafter, and the tree is built again when it has been told twice as much as
the last time. Rates are rounded, so that the tree is a function of few numbers and seldom changes.

Lives where the drafter does, on rank 0; the tree decides about speed alone.
"""

from collections.abc import Sequence
from functools import lru_cache

from twinflow.runtime.speculative.draft import Draft
from twinflow.runtime.speculative.drafters.base import DraftedSequence
from twinflow.runtime.speculative.trees.config import TreeConfig
from twinflow.runtime.speculative.trees.sequoia import SequoiaProgramme
from twinflow.runtime.speculative.trees.template import TreeTemplate

# How often the likeliest child of an accepted node is taken to be accepted, what is left of that
# for each further one, and for how many nodes that counts.
FIRST_RATE, SLOPE = 0.6, 0.35
_PRIOR_NODES = 16.0
# The tree is built again after so many proposals, then after twice as many, and so on; from the
# last number on evidence is halved each time, so that what changes is noticed.
_FIRST_CHANGE, _LAST_CHANGE = 32, 1024
_STEPS = 40


def assumed_rates(width: int) -> tuple[float, ...]:
    """Rates by rank before anything was measured."""
    return tuple(FIRST_RATE * SLOPE**rank for rank in range(width))


@lru_cache(maxsize=256)
def best_template(rates: tuple[float, ...], depth: int, nodes: int) -> TreeTemplate:
    """The tree of so many nodes with the most accepted ones; see `SequoiaProgramme`."""
    # Goodput control asks for one size after the other: few programmes have all of them.
    return _programme(rates, depth, 1 << (nodes - 1).bit_length()).tree(nodes).template


@lru_cache(maxsize=16)
def _programme(rates: tuple[float, ...], depth: int, budget: int) -> SequoiaProgramme:
    return SequoiaProgramme(rates, budget=budget, depth=depth)


class MeasuredTree:
    """See the module.

    Args:
        config: width and depth.
    """

    def __init__(self, config: TreeConfig) -> None:
        self._config = config
        self._tried = [0.0] * config.width
        self._right = [0.0] * config.width
        self._open: dict[str, tuple[int, Draft]] = {}
        self._seen = 0
        self._next_change = _FIRST_CHANGE
        self.rates = assumed_rates(config.width)

    def template(self, nodes: int) -> TreeTemplate:
        """The best tree of so many nodes."""
        return best_template(self.rates, self._config.depth, nodes)

    def widths(self, nodes: int) -> tuple[int, ...]:
        """Nodes of each of its levels."""
        return self.template(nodes).widths

    def proposed(self, sequence: DraftedSequence, draft: Draft) -> None:
        """A sequence gets a proposal; what it will go on with is looked at when it asks again."""
        if draft.tokens:
            self._open[sequence.request_id] = (sequence.num_tokens, draft)

    def settle(self, sequence: DraftedSequence) -> None:
        """Learn from what a sequence went on with behind its last proposal."""
        known, draft = self._open.pop(sequence.request_id, (0, None))
        if draft is not None and sequence.num_tokens > known:
            self._learn(draft, sequence.tokens(known, sequence.num_tokens - known))

    def forget(self, request_id: str) -> None:
        """A sequence is over."""
        self._open.pop(request_id, None)

    def _learn(self, draft: Draft, truth: Sequence[int]) -> None:
        node: int | None = 0
        for token in truth:
            children = [] if node is None else draft.children(node)
            if not children:
                break
            node = None
            for rank, child in enumerate(children[: self._config.width]):
                self._tried[rank] += 1.0
                if draft.token(child) == token:
                    self._right[rank] += 1.0
                    node = child
        self._seen += 1
        if self._seen >= self._next_change:
            self._change()

    def _change(self) -> None:
        """Take over what was measured."""
        falling: list[float] = []
        expected = FIRST_RATE
        for right, tried in zip(self._right, self._tried, strict=True):
            measured = (right + _PRIOR_NODES * expected) / (tried + _PRIOR_NODES)
            # No rank counts for more than a better one; one that no tree had follows from it.
            falling.append(min([measured, *falling[-1:]]))
            expected = SLOPE * falling[-1]
        # Of one node they sum to 1 at most.
        too_much = max(1.0, sum(falling))
        self.rates = tuple(int(rate / too_much * _STEPS) / _STEPS for rate in falling)
        if self._next_change < _LAST_CHANGE:
            self._next_change *= 2
            return
        self._seen //= 2
        self._tried = [tried / 2 for tried in self._tried]
        self._right = [right / 2 for right in self._right]
