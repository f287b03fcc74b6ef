"""Which layout and group size pays best: tokens per second, predicted from what was measured.

A proposal of k tokens takes one exact pass of the drafter and k - 1 grouped ones, and a pass of the
target verifies it. The first token is right with the agreement of the exact drafter, each other
one, if those before it are, with that of the grouped drafter:

    tokens  = 1 + a (1 + g + g² + ... + g^(k-1))
    seconds = exact + (k - 1) grouped + verify

No layout and no size is preferred beforehand. Measures nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from twinflow.runtime.speculative.layer_parallel.plan import LayerPlan
from twinflow.runtime.speculative.layer_parallel.share import DraftShare


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to draft.

    Attributes:
        share: layout.
        plan: of grouped passes.
        exact_s: seconds of an exact pass.
        grouped_s: seconds of a grouped pass.
        exact_agreement: how likely an exactly drafted token is right.
        grouped_agreement: how likely a token of a grouped pass is right, behind right ones.
    """

    share: DraftShare
    plan: LayerPlan
    exact_s: float
    grouped_s: float
    exact_agreement: float
    grouped_agreement: float

    def tokens(self, count: int) -> float:
        """Expected tokens of a step whose proposals have `count` tokens."""
        powers = sum(self.grouped_agreement**power for power in range(count))
        return 1.0 + self.exact_agreement * powers

    def seconds(self, count: int, verify_s: float) -> float:
        """Seconds of such a step."""
        return self.exact_s + (count - 1) * self.grouped_s + verify_s

    def describe(self, count: int, verify_s: float) -> str:
        """The candidate with what is expected of it, for a log."""
        tokens, seconds = self.tokens(count), self.seconds(count, verify_s)
        return (
            f"{self.share}, groups of {max(self.plan.sizes)}: {tokens:.2f} tokens in "
            f"{seconds * 1e3:.1f} ms"
        )


def best(candidates: Sequence[Candidate], count: int, verify_s: float) -> Candidate:
    """The candidate with the most tokens per second; of equal ones the first.

    Args:
        candidates: at least one.
        count: tokens of a proposal.
        verify_s: seconds of the target's pass over one.
    """
    return max(candidates, key=lambda one: one.tokens(count) / one.seconds(count, verify_s))
