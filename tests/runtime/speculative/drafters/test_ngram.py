"""Prompt lookup: what it proposes, and what it costs."""

import random

import pytest
from tests.support.drafted import FakeSequence, proposed, rounds

from twinflow.runtime.speculative.drafters.base import DraftQuery
from twinflow.runtime.speculative.drafters.ngram import NgramConfig, NgramDrafter


def test_it_proposes_what_followed_the_last_tokens_before() -> None:
    drafter = NgramDrafter(NgramConfig(shortest=2))
    sequence = FakeSequence([1, 2, 3, 4, 5, 9, 1, 2])
    assert proposed(drafter, sequence, limit=3) == (3, 4, 5)
    assert proposed(drafter, sequence, limit=1) == (3,)


def test_the_longest_match_counts_and_of_equals_the_latest() -> None:
    drafter = NgramDrafter(NgramConfig(shortest=1, longest=3))
    assert proposed(drafter, FakeSequence([7, 1, 2, 30, 8, 2, 40, 1, 2], "a"), 1) == (30,)
    assert proposed(drafter, FakeSequence([1, 2, 30, 1, 2, 40, 1, 2], "b"), 1) == (40,)


def test_nothing_is_proposed_where_nothing_occurs_twice() -> None:
    drafter = NgramDrafter(NgramConfig(shortest=2))
    for tokens in ([5], [5, 6], [5, 6, 7, 6]):
        assert proposed(drafter, FakeSequence(tokens, str(tokens))) == ()


def test_a_circle_goes_on() -> None:
    drafter = NgramDrafter(NgramConfig(shortest=2))
    assert proposed(drafter, FakeSequence([9, 1, 2, 1, 2]), limit=5) == (1, 2, 1, 2, 1)


def test_a_copy_takes_a_round_for_each_proposal_and_random_tokens_lose_nothing() -> None:
    rng = random.Random(1)
    prompt = [rng.randrange(5000) for _ in range(64)]
    drafter = NgramDrafter(NgramConfig(shortest=2, longest=4))
    assert rounds(drafter, FakeSequence(prompt + prompt[:2], "copy"), prompt[2:62], 5) == 10
    fresh = [rng.randrange(10_000, 10**9) for _ in range(20)]
    assert rounds(drafter, FakeSequence(prompt, "fresh"), fresh, 5) == 20


def test_it_agrees_with_a_search_of_the_whole_sequence() -> None:
    rng = random.Random(2)
    drafter = NgramDrafter(NgramConfig(shortest=1, longest=3))
    sequence = FakeSequence([0])
    for _ in range(60):
        assert proposed(drafter, sequence, 3) == naive(sequence.all_tokens, 3, 3)
        sequence.all_tokens.extend(rng.randrange(4) for _ in range(rng.choice([1, 1, 3])))


def naive(tokens: list[int], longest: int, limit: int) -> tuple[int, ...]:
    for length in range(min(longest, len(tokens) - 1), 0, -1):
        for end in range(len(tokens) - 1, length - 1, -1):
            if tokens[end - length : end] == tokens[-length:]:
                circle = len(tokens) - end
                return tuple(tokens[end + index % circle] for index in range(limit))
    return ()


def test_every_token_is_read_once_and_nothing_is_left_of_ended_sequences() -> None:
    drafter = NgramDrafter(NgramConfig())
    sequence = FakeSequence([1, 2, 3])
    drafter.propose([DraftQuery(sequence, 2)])
    sequence.all_tokens.extend([1, 2])
    drafter.propose([DraftQuery(sequence, 2)])
    assert sequence.reads == [(0, 3), (3, 2)]
    drafter.forget(sequence)
    drafter.forget(sequence)
    assert len(drafter._histories) == 0


def test_bounds_that_mean_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match=r"prompt_lookup_min \(4\) .* prompt_lookup_max \(3\)"):
        NgramConfig(shortest=4, longest=3)
