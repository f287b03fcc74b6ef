"""Sequences as drafters see them, and rounds of drafting against a known continuation."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from twinflow.runtime.model_runner import SequenceRows
from twinflow.runtime.runner import DraftRunner
from twinflow.runtime.sampling_params import SamplingParams
from twinflow.runtime.speculative.draft import Draft
from twinflow.runtime.speculative.drafters.base import Drafter, DraftQuery


@dataclass
class FakeSequence:
    """A sequence that tests append to; see `DraftedSequence`."""

    all_tokens: list[int]
    request_id: str = "a"
    cache_salt: str = ""
    reads: list[tuple[int, int]] = field(default_factory=list)
    params: SamplingParams = field(default_factory=SamplingParams)
    ending_token_ids: frozenset[int] = frozenset()
    prompt_length: int = 1

    @property
    def prompt_token_ids(self) -> list[int]:
        return self.all_tokens[: self.prompt_length]

    @property
    def num_tokens(self) -> int:
        return len(self.all_tokens)

    def tokens(self, start: int, count: int) -> Sequence[int]:
        self.reads.append((start, count))
        return self.all_tokens[start : start + count]


class FedRunner:
    """Counts the rows of every pass."""

    def __init__(self, runner: DraftRunner) -> None:
        self._runner = runner
        self.kv_cache = runner.kv_cache
        self.rows: list[int] = []

    def forward(
        self, rows: Sequence[SequenceRows], *, groups: Sequence[range] | None = None
    ) -> Tensor:
        self.rows.append(sum(len(one.token_ids) for one in rows))
        return self._runner.forward(rows, groups=groups)


def proposed(drafter: Drafter, sequence: FakeSequence, limit: int = 4) -> tuple[int, ...]:
    """The tokens of a proposal."""
    (draft,) = drafter.propose([DraftQuery(sequence, limit)])
    return draft.tokens


def drafts_of(drafter: Drafter, queries: Sequence[DraftQuery]) -> list[Draft]:
    """Proposals as soon as the drafter has read all of the sequences."""
    sequences = [query.sequence for query in queries]
    while any(drafter.outlook(sequences, 1).behind):
        drafter.propose(queries)
    return list(drafter.propose(queries))


def caught_up(drafter: Drafter, sequence: FakeSequence, limit: int = 4) -> tuple[int, ...]:
    """The tokens of a proposal as soon as the drafter has read the sequence."""
    (draft,) = drafts_of(drafter, [DraftQuery(sequence, limit)])
    return draft.tokens


def rounds(
    drafter: Drafter, sequence: FakeSequence, continuation: Sequence[int], limit: int
) -> int:
    """Rounds that it takes to append a continuation when proposals that agree are accepted."""
    count, done = 0, 0
    while done < len(continuation):
        count += 1
        accepted = 0
        for token in proposed(drafter, sequence, limit):
            if done + accepted == len(continuation) or token != continuation[done + accepted]:
                break
            accepted += 1
        sequence.all_tokens.extend(continuation[done : done + accepted + 1])
        done += accepted + 1
    return count
