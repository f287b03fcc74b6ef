"""Prompt lookup: what followed the last tokens when they came before in the same sequence.

The longest run of last tokens that occurs earlier counts, of equally long ones the latest, and
what follows it there is proposed. Of very many places only the latest are compared. Costs no model
and pays where output repeats its input: summaries, code that is edited, answers with quotations
(A. Saxena, "Prompt Lookup Decoding", 2023).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from twinflow.runtime.speculative.draft import NOTHING, Draft
from twinflow.runtime.speculative.drafters.base import (
    DraftedSequence,
    DraftQuery,
    LikelyNext,
    Outlook,
)
from twinflow.runtime.speculative.drafters.occurrences import Histories


@dataclass(frozen=True, slots=True, kw_only=True)
class NgramConfig:
    """What counts as having come before.

    Attributes:
        shortest: fewest last tokens that must occur earlier.
        longest: most that are compared.
    """

    shortest: int = 2
    longest: int = 5

    def __post_init__(self) -> None:
        if not 1 <= self.shortest <= self.longest:
            raise ValueError(
                f"prompt_lookup_min ({self.shortest}) must be at least 1 and at most "
                f"prompt_lookup_max ({self.longest})"
            )


class NgramDrafter:
    """See the module."""

    likely_tokens = 0

    def __init__(self, config: NgramConfig) -> None:
        self._config = config
        self._histories = Histories(config.shortest)

    def propose(self, queries: Sequence[DraftQuery]) -> list[Draft]:
        """See `Drafter.propose`."""
        return [self._look_up(query) for query in queries]

    def _look_up(self, query: DraftQuery) -> Draft:
        index = self._histories.update(query.sequence)
        found = index.find(index.tokens[-self._config.longest :])
        if not found:
            return NOTHING
        # The first of equal maxima, which is the latest.
        best = max(found, key=lambda occurrence: occurrence.length)
        return Draft.chain(index.following(best.end, query.limit))

    def outlook(self, sequences: Sequence[DraftedSequence], nodes: int) -> Outlook:
        """See `Drafter.outlook`: look-ups need nothing computed."""
        return Outlook()

    def observe(self, likely: Sequence[LikelyNext]) -> None:
        """See `Drafter.observe`; never called."""

    def forget(self, sequence: DraftedSequence) -> None:
        """See `Drafter.forget`."""
        self._histories.pop(sequence.request_id)
