"""What became of proposals: how many tokens were proposed, and how many were right, by place.

Counts only; rates are for whoever shows them.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import zip_longest


@dataclass(slots=True)
class SpeculationAccount:
    """Totals of a request or of an engine.

    Attributes:
        drafts: proposals that were verified.
        draft_tokens: tokens in them.
        accepted_tokens: those of them that were right.
        accepted_at: proposals whose token was accepted at each place, the first one first.
    """

    drafts: int = 0
    draft_tokens: int = 0
    accepted_tokens: int = 0
    accepted_at: list[int] = field(default_factory=list)

    def copy(self) -> "SpeculationAccount":
        """The totals as they are now."""
        return replace(self, accepted_at=list(self.accepted_at))

    def note(self, drafted: int, accepted: int) -> None:
        """Add a proposal of `drafted` tokens, the first `accepted` of which were right."""
        self.drafts += 1
        self.draft_tokens += drafted
        self.accepted_tokens += accepted
        missing = accepted - len(self.accepted_at)
        self.accepted_at.extend([0] * max(0, missing))
        for place in range(accepted):
            self.accepted_at[place] += 1


def together(accounts: Iterable[SpeculationAccount | None]) -> SpeculationAccount | None:
    """The totals of several; None if there are none."""
    found = [account for account in accounts if account is not None]
    if not found:
        return None
    places = zip_longest(*(account.accepted_at for account in found), fillvalue=0)
    return SpeculationAccount(
        sum(account.drafts for account in found),
        sum(account.draft_tokens for account in found),
        sum(account.accepted_tokens for account in found),
        [sum(place) for place in places],
    )
