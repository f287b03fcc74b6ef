"""What a drafter is asked and told.

A drafter is asked between steps for proposals, and told what the target found likely at every
position that was verified. It may remember what it likes; whatever it proposes, tokens stay what
they are. It knows no queues, no blocks and no other request's business.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from twinflow.runtime.sampling_params import SamplingParams
from twinflow.runtime.speculative.draft import Draft


class DraftedSequence(Protocol):
    """A sequence, as far as a drafter may look at it."""

    @property
    def request_id(self) -> str:
        """Its name."""
        ...

    @property
    def cache_salt(self) -> str:
        """Sequences with different salts must not learn from one another."""
        ...

    @property
    def params(self) -> SamplingParams:
        """How its tokens are chosen."""
        ...

    @property
    def prompt_token_ids(self) -> Sequence[int]:
        """Its prompt."""
        ...

    @property
    def ending_token_ids(self) -> frozenset[int]:
        """Every token that ends it."""
        ...

    @property
    def num_tokens(self) -> int:
        """Tokens of prompt and output; tokens are only ever appended."""
        ...

    def tokens(self, start: int, count: int) -> Sequence[int]:
        """Tokens [start, start + count)."""
        ...


@dataclass(frozen=True, slots=True)
class DraftQuery:
    """Propose something for a sequence.

    Attributes:
        sequence: whose next tokens are wanted.
        limit: most nodes, at least one.
    """

    sequence: DraftedSequence
    limit: int


@dataclass(frozen=True, slots=True)
class Outlook:
    """What proposals to some sequences would take now.

    Attributes:
        behind: of each sequence, the tokens that the drafter has to compute before it can propose
            anything, besides the last one and those in place of rejected ones; None if nothing can
            be proposed to it now; empty if there is nothing to compute for anybody.
        widths: nodes of each level of the largest proposal; empty if that has not changed since
            the start.
    """

    behind: tuple[int | None, ...] = ()
    widths: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class LikelyNext:
    """What the target found likely behind a token.

    Attributes:
        token_id: the token.
        next_ids: likeliest next tokens, best first.
        cache_salt: of the sequence.
        true: the token is the sequence's, and was not only proposed to it.
    """

    token_id: int
    next_ids: tuple[int, ...]
    cache_salt: str
    true: bool = True


class Drafter(Protocol):
    """Proposes tokens."""

    @property
    def likely_tokens(self) -> int:
        """How many likely next tokens `observe` wants to hear of; 0 for no calls at all."""
        ...

    def propose(self, queries: Sequence[DraftQuery]) -> Sequence[Draft]:
        """One proposal for each query, in order; an empty one where there is nothing to say, or not
        yet: whoever is far behind with a sequence computes a bounded part of it at a time."""
        ...

    def outlook(self, sequences: Sequence[DraftedSequence], nodes: int) -> Outlook:
        """What proposals of so many nodes at most would take; nothing is computed."""
        ...

    def observe(self, likely: Sequence[LikelyNext]) -> None:
        """Hear what the target said in a step, in the order of its rows."""
        ...

    def forget(self, sequence: DraftedSequence) -> None:
        """The sequence is over; one that was never asked about is fine."""
        ...
