"""Rejection of one token after the other, from the sequence on.

A child with token x, drawn from q, is accepted with probability min(1, p(x) / q(x)); if it is not,
p becomes the normalised excess of p over q, and the next child is tried. When none is left, a token
is drawn from what p has become.

On a chain this is speculative sampling (Leviathan et al., arXiv 2211.17192; Chen et al., arXiv
2302.01318), on trees SpecInfer's (arXiv 2305.09781). Whether children were drawn independently or
without replacement (Sequoia, arXiv 2402.12374) or are fixed is the proposal's to say, in what it
gives as q of each child.
"""

from twinflow.runtime.speculative.draft import Draft
from twinflow.runtime.speculative.verification.base import Chance, Target, Verdict, residual


class TokenRejection:
    """See the module."""

    def verify(self, draft: Draft, target: Target, chance: Chance) -> Verdict:
        """See `VerificationRule.verify`."""
        path: list[int] = []
        node = 0
        while True:
            wanted, accepted = target.probabilities(node), None
            for child in draft.children(node):
                token, drawn_from = draft.token(child), draft.drawn_from(child, len(wanted))
                if chance.happens(float(wanted[token]), float(drawn_from[token])):
                    accepted = child
                    break
                wanted = residual(wanted, drawn_from)
            if accepted is None:
                return Verdict(tuple(path), chance.draw(wanted))
            path.append(accepted)
            node = accepted
