"""What is chosen is the best of all choices, and moves the right way with what it depends on."""

from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinflow.runtime.speculative.goodput.choice import (
    Candidate,
    GoodputInputs,
    Points,
    choose,
    seconds_of,
)

FLAT: Points = ((1.0, 1.0), (1000.0, 1.0))
SATURATED: Points = ((1.0, 0.1), (1000.0, 100.0))


def inputs(*acceptances: float, times: Points = FLAT, most: int = 5) -> GoodputInputs:
    candidates = tuple(Candidate(one, most) for one in acceptances)
    return GoodputInputs(len(candidates), candidates, (1,) * most, times)


def level(seconds: float) -> Points:
    """Levels that take as long, whatever their rows."""
    return ((1e-9, seconds), (1e9, seconds))


def goodput(given: GoodputInputs, limits: tuple[int, ...]) -> float:
    """Tokens per second of a choice, for chains."""
    tokens = given.decoding + sum(
        candidate.acceptance**level
        for candidate, limit in zip(given.candidates, limits, strict=True)
        for level in range(1, limit + 1)
    )
    seconds = seconds_of(given.times, given.decoding + sum(limits))
    return tokens / (seconds + max(limits) * seconds_of(given.draft_times, 1))


curves = st.lists(st.floats(0.0, 2.0), min_size=2, max_size=6).map(
    lambda steps: tuple(
        (float(4 * index + 1), 1.0 + sum(steps[: index + 1])) for index in range(len(steps))
    )
)
problems = st.builds(
    lambda rates, most, times, each: replace(
        inputs(*rates, times=(*times, (20.0, times[-1][1] + 1.0)), most=most),
        draft_times=level(each),
    ),
    st.lists(st.floats(0.0, 0.99), min_size=1, max_size=3),
    st.integers(1, 4),
    curves,
    st.floats(0.0, 0.5),
)


@given(problems)
def test_no_choice_is_better_by_more_than_the_margin(given: GoodputInputs) -> None:
    chosen = goodput(given, choose(given).limits)
    every = product(*(range(candidate.limit + 1) for candidate in given.candidates))
    best = max(goodput(given, limits) for limits in every)
    # With time that rises in rows and levels the greedy order is the best one only per number of
    # rows: depth may cost what another request's first level does not.
    if not seconds_of(given.draft_times, 1):
        assert chosen >= best / 1.02 - 1e-9
    assert chosen >= goodput(given, (0,) * len(given.candidates)) - 1e-9


@given(problems, st.floats(1.0, 20.0))
def test_slower_verification_never_means_more_proposals(
    given: GoodputInputs, factor: float
) -> None:
    """What rows cost beyond those that come anyway, times a factor."""
    base = seconds_of(given.times, given.decoding)
    behind = [p for p in given.times if p[0] > given.decoding]
    points = ((float(given.decoding), base), *behind)
    steeper = tuple((rows, base + factor * (seconds - base)) for rows, seconds in points)
    same = replace(given, times=points)
    assert choose(replace(given, times=steeper)).rows <= choose(same).rows


@given(problems, st.floats(0.0, 1.0))
def test_worse_proposals_are_never_longer_for_one_request(
    given: GoodputInputs, factor: float
) -> None:
    one = given.candidates[0]
    alone = replace(given, decoding=1, candidates=(one,))
    worse = replace(alone, candidates=(replace(one, acceptance=factor * one.acceptance),))
    assert choose(worse).rows <= choose(alone).rows


def test_who_is_never_right_gets_nothing_and_who_is_always_right_gets_everything() -> None:
    assert choose(inputs(0.0, 0.99)).limits == (0, 5)
    assert choose(inputs(0.0)).limits == (0,)


def test_nothing_is_worth_it_where_a_row_costs_what_a_token_does() -> None:
    assert choose(inputs(0.9, 0.9, times=SATURATED)).limits == (0, 0)


def test_without_measurements_a_step_without_proposals_is_measured_first() -> None:
    assert choose(inputs(0.5, 0.5, times=())).limits == (0, 0)


def test_nobody_goes_far_beyond_what_was_measured() -> None:
    """Twice the rows, and one level more: those of a tree may be wide."""
    given = inputs(*(0.9,) * 8, times=((1.0, 1.0), (8.0, 1.0)))
    assert choose(given).rows == 9
    assert choose(replace(given, times=((1.0, 1.0), (17.0, 1.0)))).rows == 17 * 2 - 8 + 1


def test_catching_up_is_spread_over_what_the_request_may_still_get() -> None:
    late = Candidate(0.9, 5, behind=100, remaining=50)
    given = replace(inputs(0.9), candidates=(late,), behind_seconds=0.1)
    assert choose(given).limits == (5,)
    assert choose(replace(given, candidates=(replace(late, remaining=3),))).limits == (0,)
    assert choose(replace(given, behind_seconds=5.0)).limits == (0,)


def test_nobody_catches_up_for_a_load_that_does_not_last() -> None:
    """Two of eight that came together decode already; rows are free among six, and dear later."""
    knee: Points = ((1.0, 1.0), (6.0, 1.0), (64.0, 60.0))
    late, ready = Candidate(0.9, 2, behind=100), Candidate(0.9, 2)
    given = GoodputInputs(2, (late, ready), (1,) * 2, knee, behind_seconds=0.001)
    assert choose(given).limits == (2, 2)
    assert choose(replace(given, coming=2)).limits == (2, 2)
    assert choose(replace(given, coming=6)).limits == (0, 2)


def test_nobody_catches_up_for_a_load_that_was_never_measured() -> None:
    """Whoever is ready may try twice the rows; for an eighth more somebody may catch up."""
    late = Candidate(0.9, 4, behind=100)
    given = GoodputInputs(8, (late,) * 8, (1,) * 4, ((8.0, 1.0),), behind_seconds=0.001)
    assert sum(limit > 0 for limit in choose(given).limits) == 2
    ready = replace(given, candidates=(Candidate(0.9, 4),) * 8)
    assert sum(limit > 0 for limit in choose(ready).limits) == 8
    assert not choose(replace(given, coming=2)).rows
    assert choose(replace(given, coming=2, times=((8.0, 1.0), (16.0, 1.0)))).rows > 8
    assert choose(replace(ready, coming=2)) == choose(ready)


def test_who_has_nothing_to_catch_up_with_comes_first() -> None:
    late, ready = Candidate(0.9, 3, behind=100), Candidate(0.8, 3)
    times = ((2.0, 1.0), (5.0, 1.0), (6.0, 9.0))
    given = GoodputInputs(2, (late, ready), (1,) * 3, times, behind_seconds=0.1)
    assert choose(given).limits == (0, 3)
    assert choose(replace(given, behind_seconds=0.0)).limits == (2, 1)


def test_a_probe_pays_for_all_of_the_catching_up_of_the_cheapest_request() -> None:
    slow = ((2.0, 1.0), (3.0, 1.5), (20.0, 30.0))
    candidates = (Candidate(0.3, 5, behind=40), Candidate(0.2, 5, behind=20))
    given = GoodputInputs(2, candidates, (1,) * 5, slow, behind_seconds=0.1)
    assert not choose(replace(given, saved=2.4)).rows
    choice = choose(replace(given, saved=2.6))
    assert (choice.limits, choice.probe) == ((0, 1), True)
    assert choice.extra_seconds == pytest.approx(20 * 0.1 + 0.5)


def test_what_catching_up_takes_is_found_out_with_one_request() -> None:
    candidates = (Candidate(0.9, 2, behind=40), Candidate(0.9, 2, behind=30), Candidate(0.9, 2, 1))
    given = GoodputInputs(3, candidates, (1,) * 2, FLAT)
    choice = choose(given)
    assert (choice.limits, choice.probe) == ((0, 1, 0), True)
    assert choose(replace(given, behind_seconds=0.0)).limits == (2, 2, 2)


def test_nobody_gets_more_than_the_limit() -> None:
    given = replace(inputs(0.9, 0.9), candidates=(Candidate(0.9, 2), Candidate(0.9, 4)))
    assert choose(given).limits == (2, 4)


def test_drafting_that_takes_long_shortens_proposals() -> None:
    given = inputs(0.7)
    times = [level(each) for each in (0.0, 0.05, 0.2, 1.0)]
    lengths = [choose(replace(given, draft_times=each)).rows for each in times]
    assert lengths == sorted(lengths, reverse=True)
    assert (lengths[0], lengths[-1]) == (5, 0)


def test_a_probe_waits_until_it_is_paid_for() -> None:
    given = inputs(0.3, times=((1.0, 1.0), (2.0, 2.0), (6.0, 6.0)))
    assert not choose(replace(given, saved=0.9)).rows
    choice = choose(replace(given, saved=1.1))
    assert (choice.limits, choice.probe, choice.extra_seconds) == ((1,), True, 1.0)


def test_levels_of_a_tree_are_given_out_whole_and_from_above() -> None:
    given = GoodputInputs(1, (Candidate(0.5, 6),), (3, 2, 4), ((1.0, 1.0), (10.0, 1.6)))
    assert choose(given).limits == (5,)
    # A last level that does not fit is worth its part.
    assert choose(replace(given, candidates=(Candidate(0.99, 6),))).limits == (6,)


@pytest.mark.parametrize(("rows", "expected"), [(1, 0.5), (2, 1.0), (4, 2.0), (6, 3.0), (9, 3.0)])
def test_what_was_not_measured_is_thought_to_be_fast(rows: int, expected: float) -> None:
    assert seconds_of(((2.0, 1.0), (6.0, 3.0)), rows) == expected
    assert seconds_of((), rows) == 0.0
