"""Suffix decoding: majority among the longest matches, here and in earlier outputs."""

import math
import random

import pytest
from tests.support.drafted import FakeSequence, proposed, rounds

from twinflow.runtime.speculative.drafters.suffix import SuffixConfig, SuffixDrafter


def test_the_most_frequent_continuation_is_proposed() -> None:
    drafter = SuffixDrafter(SuffixConfig(max_spec_factor=4.0))
    sequence = FakeSequence([1, 2, 7, 0, 1, 2, 8, 0, 1, 2, 7, 5, 1, 2])
    assert proposed(drafter, sequence, 1) == (7,)


def test_a_proposal_is_as_long_as_its_match_justifies() -> None:
    drafter = SuffixDrafter(SuffixConfig(max_spec_factor=1.0))
    tokens = list(range(20))
    assert proposed(drafter, FakeSequence([*tokens, 8, 9], "two"), 8) == (10, 11)
    assert proposed(drafter, FakeSequence([*tokens, 5, 6, 7, 8, 9], "five"), 8) == (
        *(10, 11, 12, 13, 14),
    )
    deep = SuffixDrafter(SuffixConfig(max_tree_depth=6, max_spec_factor=3.0))
    assert proposed(deep, FakeSequence([*tokens, 5, 6, 7, 8, 9], "deep"), 8) == (10, 11, 12, 13)


def test_a_path_that_few_places_have_gone_is_not_proposed() -> None:
    tokens = [token for last in range(10) for token in (1, 2, 100 + last)]
    bold, shy = (SuffixDrafter(SuffixConfig(min_token_prob=p)) for p in (0.1, 0.2))
    assert proposed(bold, FakeSequence([*tokens, 1, 2]), 1) == (109,)
    assert proposed(shy, FakeSequence([*tokens, 1, 2]), 1) == ()


def test_outputs_of_ended_sequences_are_proposed_to_later_ones_with_the_same_salt() -> None:
    drafter = SuffixDrafter(SuffixConfig())
    answer = [40, 41, 42, 43, 44, 45]
    first = FakeSequence([1, 2, 3], "first", "mine")
    rounds(drafter, first, answer, 4)
    drafter.forget(first)
    assert proposed(drafter, FakeSequence([9, 40, 41], "second", "mine"), 4) == (42, 43)
    assert proposed(drafter, FakeSequence([9, 40, 41], "third", "other"), 4) == ()
    # Its prompt is not an output.
    assert proposed(drafter, FakeSequence([9, 1, 2], "fourth", "mine"), 4) == ()


def test_nothing_is_proposed_across_the_end_of_an_output() -> None:
    drafter = SuffixDrafter(SuffixConfig(max_spec_factor=4.0))
    for name in "ab":
        sequence = FakeSequence([1], name)
        rounds(drafter, sequence, [50, 51, 52], 1)
        drafter.forget(sequence)
    assert proposed(drafter, FakeSequence([50, 51], "c"), 4) == (52,)


def test_old_outputs_are_forgotten() -> None:
    drafter = SuffixDrafter(SuffixConfig(max_cached_requests=4))
    for number in range(7):
        sequence = FakeSequence([1], str(number))
        rounds(drafter, sequence, [10 * number, 10 * number + 1, 10 * number + 2], 1)
        drafter.forget(sequence)
    known = [
        bool(proposed(drafter, FakeSequence([10 * n, 10 * n + 1], f"ask {n}"), 1)) for n in range(7)
    ]
    assert known[0] is False
    assert known[-3:] == [True, True, True]
    assert sum(known) <= 4


def test_repeating_work_gets_cheaper() -> None:
    rng = random.Random(3)
    drafter = SuffixDrafter(SuffixConfig(max_spec_factor=2.0))
    answer = [rng.randrange(1000) for _ in range(60)]
    spent = []
    for name in "abc":
        sequence = FakeSequence([7, 8, 9], name)
        spent.append(rounds(drafter, sequence, answer, 8))
        drafter.forget(sequence)
    assert spent[0] >= 58
    assert max(spent[1:]) < 14


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tree_depth", 2),
        ("max_cached_requests", -1),
        ("max_spec_factor", 0.0),
        ("max_spec_factor", math.inf),
        ("max_spec_factor", math.nan),
        ("max_spec_factor", 1e308),
        ("min_token_prob", 1.5),
    ],
)
def test_settings_that_mean_nothing_are_refused_by_name(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"suffix_decoding_{field}"):
        SuffixConfig(**{field: value})  # type: ignore[arg-type]
