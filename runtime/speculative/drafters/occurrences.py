"""Where in a list of tokens something has been said before.

Positions are indexed by the `order` tokens that end there, so that adding a token costs the same
however long the list is, and looking something up costs as much as there are candidates, of which
only the latest are looked at.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from twinflow.runtime.speculative.drafters.base import DraftedSequence

# Candidates that are looked at, the latest ones.
_MOST_CANDIDATES = 64


@dataclass(frozen=True, slots=True)
class Occurrence:
    """A place at which the list agrees with the end of a sequence.

    Attributes:
        end: one behind its last token.
        length: tokens that agree.
    """

    end: int
    length: int


class OccurrenceIndex:
    """A list of tokens that grows.

    Args:
        order: fewest tokens that must agree.

    Attributes:
        tokens: the list; add with `extend` only.
    """

    def __init__(self, order: int) -> None:
        if order < 1:
            raise ValueError(f"at least one token must agree, not {order}")
        self._order = order
        self._ends: dict[tuple[int, ...], list[int]] = {}
        self.tokens: list[int] = []

    def extend(self, tokens: Sequence[int]) -> None:
        """Add tokens."""
        first = max(len(self.tokens) + 1, self._order)
        self.tokens.extend(tokens)
        for end in range(first, len(self.tokens) + 1):
            gram = tuple(self.tokens[end - self._order : end])
            self._ends.setdefault(gram, []).append(end)

    def find(self, suffix: Sequence[int]) -> list[Occurrence]:
        """Where the end of a sequence occurs with a token behind it, the latest place first.

        Args:
            suffix: its last tokens; no more of them are compared.
        """
        if len(suffix) < self._order:
            return []
        ends = self._ends.get(tuple(suffix[len(suffix) - self._order :]), [])
        latest = ends[-_MOST_CANDIDATES - 1 :]
        return [
            Occurrence(end, self._agree(suffix, end))
            for end in reversed(latest)
            if end < len(self.tokens)
        ]

    def following(self, end: int, count: int) -> list[int]:
        """What follows a place that a sequence ends like.

        Where the list itself ends first, what comes next is what has just been read off: the list
        goes round in a circle, and so does the answer.

        Args:
            end: of the place; there is a token behind it.
            count: how many tokens are wanted.
        """
        found = self.tokens[end : end + count]
        for index in range(count - len(found)):
            found.append(found[index])
        return found

    def _agree(self, suffix: Sequence[int], end: int) -> int:
        length, most = self._order, min(len(suffix), end)
        while length < most and suffix[-length - 1] == self.tokens[end - length - 1]:
            length += 1
        return length


class Histories:
    """The tokens of sequences that are asked about, each indexed.

    Args:
        order: see `OccurrenceIndex`.
    """

    def __init__(self, order: int) -> None:
        self._order = order
        self._indices: dict[str, OccurrenceIndex] = {}

    def __len__(self) -> int:
        return len(self._indices)

    def update(self, sequence: DraftedSequence) -> OccurrenceIndex:
        """The index of a sequence, up to its latest token."""
        index = self._indices.get(sequence.request_id)
        if index is None:
            index = self._indices[sequence.request_id] = OccurrenceIndex(self._order)
        known = len(index.tokens)
        if known < sequence.num_tokens:
            index.extend(sequence.tokens(known, sequence.num_tokens - known))
        return index

    def pop(self, request_id: str) -> None:
        """Forget a sequence; unknown ones are fine."""
        self._indices.pop(request_id, None)
