"""Admission: how far ahead each policy looks, and the arithmetic of Past-Future."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.schedulers import SchedulerBench

from twinflow.protos.errors import ConfigError
from twinflow.runtime.output_history import OutputHistory
from twinflow.runtime.schedulers.admission import create_admission, register_admission
from twinflow.runtime.schedulers.admission.conservative import Conservative
from twinflow.runtime.schedulers.admission.past_future import draw_lengths, peak_tokens
from twinflow.runtime.schedulers.base import SchedulerLimits


def simulated_peak(held: list[int], remaining: list[int]) -> int:
    """Step by step: everybody grows by one and leaves after its last token."""
    peak, alive = 0, list(zip(held, remaining, strict=True))
    while alive:
        peak = max(peak, sum(tokens for tokens, _ in alive))
        alive = [(tokens + 1, left - 1) for tokens, left in alive if left > 0]
    return peak


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), min_size=1, max_size=10))
def test_the_peak_is_that_of_a_simulation(requests: list[tuple[int, int]]) -> None:
    held, remaining = (list(values) for values in zip(*requests, strict=True))
    assert peak_tokens(np.array(held), np.array(remaining)) == simulated_peak(held, remaining)


def test_peaks_of_several_draws() -> None:
    draws = np.array([[0, 9], [9, 0]])
    assert peak_tokens(np.array([5, 1]), draws).tolist() == [10, 14]


def history(*lengths: int, window: int = 200) -> OutputHistory:
    made = OutputHistory(window)
    for length in lengths:
        made.record(length)
    return made


class TestDraws:
    """What the past says about the future."""

    @given(
        past=st.lists(st.integers(1, 100), max_size=300),
        generated=st.integers(0, 120),
        more=st.integers(0, 80),
        uniform=st.floats(0.0, 1.0, exclude_max=True),
    )
    def test_a_draw_lies_between_what_is_there_and_the_limit(
        self, past: list[int], generated: int, more: int, uniform: float
    ) -> None:
        drawn = draw_lengths(
            np.array([generated]),
            np.array([generated + more]),
            history(*past),
            np.array([[uniform]]),
        )
        assert generated <= drawn[0, 0] <= generated + more

    def test_an_empty_history_expects_the_limit(self) -> None:
        uniform = np.linspace(0.02, 0.98, 25)[:, None]
        drawn = draw_lengths(np.array([3]), np.array([500]), history(), uniform)
        assert (drawn == 500).mean() > 0.9

    def test_a_full_history_is_drawn_from_evenly(self) -> None:
        past = history(*range(1, 201))
        uniform = (np.arange(1000)[:, None] + 0.5) / 1000
        drawn = draw_lengths(np.array([0]), np.array([1000]), past, uniform)[:, 0]
        assert abs(np.median(drawn) - 100) <= 2
        assert (drawn > 200).mean() < 0.01

    def test_what_is_generated_is_taken_into_account(self) -> None:
        """Of outputs that are 10 or 100 long, those with 50 tokens are the latter."""
        past = history(*([10] * 150), *([100] * 50))
        uniform = (np.arange(500)[:, None] + 0.5) / 500
        young = draw_lengths(np.array([0]), np.array([1000]), past, uniform)
        old = draw_lengths(np.array([50]), np.array([1000]), past, uniform)
        assert (young <= 10).mean() == pytest.approx(0.75, abs=0.02)
        assert (old >= 100).mean() == pytest.approx(0.98, abs=0.02)

    def test_old_lengths_are_forgotten(self) -> None:
        past = history(*([900] * 4), 1, 2, 3, 4, window=4)
        assert past.ascending.tolist() == [1, 2, 3, 4]
        past.record(9)
        assert past.ascending.tolist() == [2, 3, 4, 9]
        with pytest.raises(ValueError, match="a history of 0 lengths"):
            OutputHistory(0)


def admitted(bench: SchedulerBench) -> int:
    known = {group.request_id for group in bench.plan().row_groups}
    return sum(request.request_id in known for request in bench.queues.waiting)


class TestPolicies:
    """Ten blocks; one request of 8 tokens holds two and may have 20 more tokens."""

    def bench(self, admission: str, *lengths: int) -> SchedulerBench:
        bench = SchedulerBench(admission=admission, num_blocks=11, budget=40)
        bench.running(7, max_tokens=21)
        for length in lengths:
            bench.history.record(length)
        return bench

    @pytest.mark.parametrize(
        ("admission", "expected"), [("aggressive", 4), ("conservative", 1), ("past-future", 2)]
    )
    def test_without_a_past_the_limits_count(self, admission: str, expected: int) -> None:
        """Past-Future knows that the short ones will be gone when the long one is at its end."""
        bench = self.bench(admission)
        for _ in range(4):
            bench.waiting(8, max_tokens=4)
        assert admitted(bench) == expected

    def test_short_outputs_let_more_in(self) -> None:
        bench = self.bench("past-future", *([2] * 200))
        for _ in range(4):
            bench.waiting(8, max_tokens=20)
        assert admitted(bench) >= 2
        bench = self.bench("past-future", *([20] * 200))
        for _ in range(4):
            bench.waiting(8, max_tokens=20)
        assert admitted(bench) == 0

    @pytest.mark.parametrize("admission", ["aggressive", "conservative", "past-future"])
    def test_whoever_is_alone_comes_in(self, admission: str) -> None:
        bench = SchedulerBench(admission=admission, num_blocks=11, budget=40)
        bench.waiting(39, max_tokens=20)
        assert admitted(bench) == 1

    def test_blocks_that_another_worker_reads_may_stay_for_long(self) -> None:
        bench = SchedulerBench(admission="conservative", num_blocks=11, budget=40)
        bench.parked(20)
        bench.waiting(8, max_tokens=12)
        bench.waiting(4, max_tokens=4)
        assert admitted(bench) == 1
        bench = SchedulerBench(admission="conservative", num_blocks=11, budget=40)
        bench.parked(20)
        bench.waiting(8, max_tokens=13)
        assert admitted(bench) == 0

    def test_requests_whose_kv_is_on_its_way_grow_too(self) -> None:
        alone = self.bench("conservative")
        alone.waiting(8, max_tokens=4)
        assert admitted(alone) == 1
        beside = self.bench("conservative")
        beside.receiving(4, max_tokens=9)
        beside.waiting(8, max_tokens=4)
        assert admitted(beside) == 0

    def test_the_same_state_gives_the_same_draws_and_the_next_step_others(self) -> None:
        bench = self.bench("past-future", *range(1, 200))
        policy = create_admission("past-future", SchedulerLimits(8, 40, 4, 0))
        (holder,), candidate = bench.queues.running, bench.request(bench.waiting(8, max_tokens=20))
        seen = []
        for _ in range(8):
            state = bench.state()
            seen.append(policy.reserve(state, [holder], candidate))
            assert policy.reserve(state, [holder], candidate) == seen[-1]
            holder.output_token_ids.append(1)
        assert len(set(seen)) > 1


class TestRegistry:
    """Policies by name."""

    LIMITS = SchedulerLimits(1, 1, 1, 0)

    def test_unknown(self) -> None:
        with pytest.raises(ConfigError, match=r"--admission magic: unknown; .*'past-future'"):
            create_admission("magic", self.LIMITS)

    def test_a_name_is_taken_once(self) -> None:
        with pytest.raises(ValueError, match="already registered"):
            register_admission("conservative", lambda _: Conservative())
