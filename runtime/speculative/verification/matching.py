"""Rules that let the target choose first and then look whether its choice was proposed.

    greedy      the likeliest token
    match       a token drawn afresh
    coupled     the token that the sequence gets anyway: its noise is a function of seed and
                position (Daliri et al., arXiv 2408.07978)

For tokens that were proposed without chance, drawing once and comparing accepts exactly as often as
rejection with point masses, which is as often as a fixed set of proposals can be. For proposals
drawn with the noise of the target, `coupled` accepts at least (1 - d) / (1 + d) of them, where d is
the total variation between the two distributions. With it the sequence is the same, token by
token, whatever is proposed.
"""

from collections.abc import Callable

from twinflow.runtime.speculative.draft import Draft
from twinflow.runtime.speculative.verification.base import Chance, Target, Verdict

Choice = Callable[[Target, int, Chance], int]


def follow(draft: Draft, choose: Callable[[int], int]) -> Verdict:
    """Go along the target's choices as long as they were proposed.

    Args:
        draft: the proposal.
        choose: the target's token behind a node; asked along the accepted path only.
    """
    path: list[int] = []
    node = 0
    while True:
        token = choose(node)
        child = draft.child(node, token)
        if child is None:
            return Verdict(tuple(path), token)
        path.append(child)
        node = child


class Matching:
    """Follows the target's choices as long as they were proposed.

    Args:
        choose: the target's token behind a node.
    """

    def __init__(self, choose: Choice) -> None:
        self._choose = choose

    def verify(self, draft: Draft, target: Target, chance: Chance) -> Verdict:
        """See `VerificationRule.verify`."""
        return follow(draft, lambda node: self._choose(target, node, chance))


def likeliest(target: Target, node: int, chance: Chance) -> int:
    """The token of the largest probability, the lowest of several."""
    return int(target.probabilities(node).argmax())


def drawn(target: Target, node: int, chance: Chance) -> int:
    """A token of the target's distribution."""
    return chance.draw(target.probabilities(node))


def own(target: Target, node: int, chance: Chance) -> int:
    """The token that comes without proposals."""
    return target.token(node)
