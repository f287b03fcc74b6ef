"""A request's derived figures, and where its time went."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.engines import create_request

from twinflow.runtime.outputs import PhaseTime
from twinflow.runtime.request import Stopwatch
from twinflow.runtime.sampling_params import SamplingParams


@given(
    prompt=st.lists(st.integers(0, 99), min_size=1, max_size=12),
    output=st.lists(st.integers(0, 99), max_size=12),
    start=st.integers(0, 24),
    count=st.integers(0, 24),
)
def test_tokens_of_any_range(prompt: list[int], output: list[int], start: int, count: int) -> None:
    request = create_request(prompt, output_token_ids=output)
    assert list(request.tokens(start, count)) == [*prompt, *output][start : start + count]
    assert request.num_tokens == len(request.token_ids) == len(prompt) + len(output)


def test_what_is_left_to_compute() -> None:
    request = create_request([1, 2, 3], output_token_ids=[4], num_computed=3)
    assert request.num_uncomputed == 1
    assert request.max_total_tokens == 7


@pytest.mark.parametrize(("ignore_eos", "ending"), [(False, {7, 8, 9}), (True, {8, 9})])
def test_what_ends_it(ignore_eos: bool, ending: set[int]) -> None:
    params = SamplingParams(stop_token_ids=(8, 9), ignore_eos=ignore_eos)
    request = create_request(params=params, eos_token_ids=(7, 8))
    assert request.ending_token_ids == ending


def test_priority_before_arrival() -> None:
    early, late = create_request(priority=1, order=1), create_request(priority=0, order=2)
    assert sorted((early, late), key=lambda request: request.rank) == [late, early]


class TestStopwatch:
    """Phases add up to the time that passed."""

    def test_phases_in_order(self) -> None:
        watch = Stopwatch("queue", 10.0)
        watch.enter("prefill", 12.0)
        watch.enter("prefill", 13.0)
        watch.enter("decode", 15.0)
        assert watch.total(16.0) == (
            PhaseTime("queue", 2.0),
            PhaseTime("prefill", 3.0),
            PhaseTime("decode", 1.0),
        )

    def test_looking_changes_nothing(self) -> None:
        watch = Stopwatch("queue", 0.0)
        assert watch.total(1.0) == watch.total(1.0) == (PhaseTime("queue", 1.0),)

    def test_news_come_once_for_every_phase_that_ends(self) -> None:
        watch = Stopwatch("queue", 0.0)
        assert watch.news(1.0) == ()
        watch.enter("prefill", 2.0)
        assert watch.news(3.0) == (PhaseTime("queue", 2.0), PhaseTime("prefill", 1.0))
        assert watch.news(4.0) == ()
        watch.enter("decode", 5.0)
        assert watch.total(5.0) == watch.news(5.0)
        assert watch.news(6.0) == ()

    def test_another_workers_phases_replace_the_beginning(self) -> None:
        watch = Stopwatch("transfer", 0.0)
        watch.insert([PhaseTime("prefill_queue", 1.0), PhaseTime("prefill", 2.0)], 5.0)
        assert watch.total(6.0) == (
            PhaseTime("prefill_queue", 1.0),
            PhaseTime("prefill", 2.0),
            PhaseTime("transfer", 3.0),
        )

    def test_another_clock_that_runs_fast_is_scaled_down(self) -> None:
        watch = Stopwatch("transfer", 0.0)
        watch.insert([PhaseTime("prefill_queue", 2.0), PhaseTime("prefill", 6.0)], 4.0)
        assert watch.total(4.0) == (
            PhaseTime("prefill_queue", 1.0),
            PhaseTime("prefill", 3.0),
            PhaseTime("transfer", 0.0),
        )

    @given(
        events=st.lists(
            st.tuples(
                st.floats(0, 100),
                st.one_of(st.sampled_from("abc"), st.lists(st.floats(0, 50), max_size=3)),
            ),
            max_size=12,
        )
    )
    def test_every_history_adds_up(self, events: list[tuple[float, str | list[float]]]) -> None:
        watch, now = Stopwatch("start", 3.0), 3.0
        for elapsed, event in events:
            now += elapsed
            if isinstance(event, str):
                watch.enter(event, now)
            else:
                watch.insert([PhaseTime("theirs", seconds) for seconds in event], now)
        phases = watch.total(now)
        assert sum(phase.seconds for phase in phases) == pytest.approx(now - 3.0)
        assert all(phase.seconds >= -1e-9 for phase in phases)
