"""Suffix decoding (arXiv 2411.04975): what usually followed the longest match, here and in earlier
outputs.

The last tokens are looked up in the sequence itself and in the outputs of sequences that have
ended. Of all places with the longest match a path is read off by majority: at each depth the most
frequent token, as long as the share of places that have gone this way all along is large enough.
The longer the match, the longer the proposal may be. Where the earlier outputs match longer than
the sequence itself, they are believed.

Sequences with different cache salts never learn from one another. Earlier outputs are kept in two
halves, of which the older one is dropped as a whole.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from twinflow.runtime.speculative.draft import NOTHING, Draft
from twinflow.runtime.speculative.drafters.base import (
    DraftedSequence,
    DraftQuery,
    LikelyNext,
    Outlook,
)
from twinflow.runtime.speculative.drafters.occurrences import Histories, OccurrenceIndex
from twinflow.runtime.speculative.drafters.salted import BySalt

# Between two outputs: no token has this id.
_GAP = -1
_ORDER = 2
# The shortest match then proposes more than anybody is ever asked for.
_BOLDEST = 64.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SuffixConfig:
    """How bold proposals are; names and defaults are vLLM's.

    Attributes:
        max_tree_depth: most tokens of match and proposal together.
        max_cached_requests: earlier outputs that are remembered; 0 for none.
        max_spec_factor: tokens proposed per matching token.
        min_token_prob: smallest share of the matching places that must have gone the proposed way.
    """

    max_tree_depth: int = 24
    max_cached_requests: int = 10_000
    max_spec_factor: float = 1.0
    min_token_prob: float = 0.1

    def __post_init__(self) -> None:
        if self.max_tree_depth <= _ORDER:
            raise ValueError(
                f"suffix_decoding_max_tree_depth must exceed {_ORDER}, not {self.max_tree_depth}"
            )
        if self.max_cached_requests < 0:
            raise ValueError(
                f"suffix_decoding_max_cached_requests must be at least 0, not "
                f"{self.max_cached_requests}"
            )
        # Written so that it refuses what is no number, too.
        if not 0.0 < self.max_spec_factor <= _BOLDEST:
            raise ValueError(
                f"suffix_decoding_max_spec_factor must be above 0 and at most {_BOLDEST:g}, not "
                f"{self.max_spec_factor}"
            )
        if not 0.0 <= self.min_token_prob <= 1.0:
            raise ValueError(
                f"suffix_decoding_min_token_prob must be in [0, 1], not {self.min_token_prob}"
            )


class EarlierOutputs:
    """The latest outputs of ended sequences.

    Args:
        most: how many are remembered at least, twice as many at most.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._count = 0
        self._halves = (OccurrenceIndex(_ORDER), OccurrenceIndex(_ORDER))

    def add(self, tokens: Sequence[int]) -> None:
        """Remember an output."""
        if self._count == self._most:
            self._halves, self._count = (self._halves[1], OccurrenceIndex(_ORDER)), 0
        self._halves[1].extend((*tokens, _GAP))
        self._count += 1

    @property
    def indices(self) -> tuple[OccurrenceIndex, OccurrenceIndex]:
        """Where to look; the older half first."""
        return self._halves


class SuffixDrafter:
    """See the module."""

    likely_tokens = 0

    def __init__(self, config: SuffixConfig) -> None:
        self._config = config
        self._histories = Histories(_ORDER)
        self._begun: dict[str, int] = {}
        # Two halves, so that there is always one to drop.
        half = max(1, config.max_cached_requests // 2)
        self._earlier: BySalt[EarlierOutputs] = BySalt(lambda: EarlierOutputs(half))

    def propose(self, queries: Sequence[DraftQuery]) -> list[Draft]:
        """See `Drafter.propose`."""
        return [self._look_up(query) for query in queries]

    def _look_up(self, query: DraftQuery) -> Draft:
        sequence = query.sequence
        # What is there when drafting begins is prompt, or was said elsewhere.
        self._begun.setdefault(sequence.request_id, sequence.num_tokens)
        own = self._histories.update(sequence)
        # A match as long as the tree is deep would leave nothing to propose.
        longest = max(_ORDER, self._config.max_tree_depth - query.limit)
        suffix = own.tokens[-longest:]
        earlier = self._earlier.find(sequence.cache_salt)
        indices = (own, *(earlier.indices if earlier else ()))
        found = [(place, index) for index in indices for place in index.find(suffix)]
        if not found:
            return NOTHING
        longest = max(place.length for place, _ in found)
        behind = [
            index.following(place.end, query.limit)
            for place, index in found
            if place.length == longest
        ]
        room = self._config.max_tree_depth - longest
        most = min(query.limit, room, int(self._config.max_spec_factor * longest))
        return Draft.chain(self._majority(behind, most))

    def _majority(self, behind: list[list[int]], most: int) -> list[int]:
        """The path that most places have gone."""
        path: list[int] = []
        needed = self._config.min_token_prob * len(behind)
        while len(path) < most:
            depth = len(path)
            heads = Counter(tokens[depth] for tokens in behind if len(tokens) > depth)
            heads.pop(_GAP, None)
            if not heads:
                break
            # Of equally frequent ones the first that was found: the latest.
            token, count = heads.most_common(1)[0]
            if count < needed:
                break
            path.append(token)
            behind = [t for t in behind if len(t) > depth and t[depth] == token]
        return path

    def outlook(self, sequences: Sequence[DraftedSequence], nodes: int) -> Outlook:
        """See `Drafter.outlook`: look-ups need nothing computed."""
        return Outlook()

    def observe(self, likely: Sequence[LikelyNext]) -> None:
        """See `Drafter.observe`; never called."""

    def forget(self, sequence: DraftedSequence) -> None:
        """See `Drafter.forget`; what the sequence has generated is remembered for others."""
        begun = self._begun.pop(sequence.request_id, None)
        if begun is None:
            return
        tokens = self._histories.update(sequence).tokens
        self._histories.pop(sequence.request_id)
        if self._config.max_cached_requests:
            self._earlier.take(sequence.cache_salt).add(tokens[begun:])
