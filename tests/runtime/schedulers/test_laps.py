"""Length-aware batching: windows of short prompts, and long ones beside them."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.cost import h100
from tests.support.engines import EngineSpec, ManualClock, create_engine, create_request
from tests.support.histories import History
from tests.support.schedulers import LinearTimes, SchedulerBench

from twinflow.runtime.schedulers.admission.aggressive import Aggressive
from twinflow.runtime.schedulers.base import Scheduler, SchedulerLimits
from twinflow.runtime.schedulers.laps import Boundary, LengthAwareScheduler
from twinflow.runtime.schedulers.orders import create_order
from twinflow.runtime.schedulers.orders.fcfs import FirstComeFirstServed
from twinflow.runtime.schedulers.setup import SchedulerSetup
from twinflow.runtime.step_plan import StepPlan

SHORT, WINDOW = 10, 0.5


def rows(plan: StepPlan) -> list[tuple[str, int, int]]:
    return [(group.request_id, group.token_start, group.token_count) for group in plan.row_groups]


def bench(**options: Any) -> SchedulerBench:
    def build(setup: SchedulerSetup) -> Scheduler:
        return LengthAwareScheduler(setup, Boundary(SHORT, WINDOW))

    settings: dict[str, Any] = {"budget": 24, "max_num_seqs": 8}
    return SchedulerBench(build, **(settings | options))


class TestWindow:
    """When short prompts are served."""

    def test_they_wait_for_others(self) -> None:
        made = bench()
        first = made.waiting(5, arrival=1.0)
        assert made.plan(1.1) == StepPlan(idle_until=1.5)
        second = made.waiting(6, arrival=1.4)
        assert made.plan(1.4) == StepPlan(idle_until=1.5)
        assert rows(made.plan(1.5)) == [(first, 0, 5), (second, 0, 6)]

    def test_a_full_step_does_not_wait(self) -> None:
        made = bench(budget=12)
        first, second = made.waiting(5, arrival=1.0), made.waiting(7, arrival=1.0)
        assert rows(made.plan(1.0)) == [(first, 0, 5), (second, 0, 7)]

    def test_the_last_seat_does_not_wait(self) -> None:
        made = bench(max_num_seqs=2)
        made.parked()
        only = made.waiting(5, arrival=1.0)
        assert rows(made.plan(1.0)) == [(only, 0, 5)]

    def test_an_objective_ends_the_window(self) -> None:
        """A row takes 0.04 s: five of them must begin 0.2 s before the objective."""
        times = LinearTimes(step=0.0, layer=0.0, row=0.01)
        made = bench(times=times, ttft_objective=0.4)
        made.waiting(5, arrival=1.0)
        assert made.plan(1.1).idle_until == pytest.approx(1.2)

    def test_nobody_waits_beside_decode_rows(self) -> None:
        made = bench()
        decoding, short = made.running(4), made.waiting(5, arrival=1.0)
        assert rows(made.plan(1.0)) == [(decoding, 4, 1), (short, 0, 5)]

    def test_long_ones_are_served_meanwhile(self) -> None:
        made = bench()
        long = made.waiting(30, arrival=0.0)
        short = made.waiting(5, arrival=1.0)
        assert rows(made.plan(1.1)) == [(long, 0, 24)]
        assert [row[0] for row in rows(made.plan(1.5))] == [long, short]

    def test_a_prompt_is_short_by_what_the_cache_lacks(self) -> None:
        made = bench()
        made.running(list(range(40)))
        made.waiting([*range(40), 99, 98], arrival=1.0)
        made.queues.running.clear()
        assert made.plan(1.0).idle_until == 1.5


class TestBoundary:
    """What is short, and how long company is worth waiting for."""

    LIMITS = SchedulerLimits(
        max_num_seqs=8, max_num_batched_tokens=1024, num_layers=4, watermark_blocks=0
    )

    def test_what_a_step_costs_in_any_case_is_the_measure(self) -> None:
        """2 s a step and 0.5 s a token: four tokens take as long as the step itself."""
        times = LinearTimes(step=1.0, layer=0.25, row=0.125)
        assert Boundary.of(times, self.LIMITS) == Boundary(5, 2.5)

    def test_it_is_near_what_the_paper_found(self) -> None:
        limits = replace(self.LIMITS, num_layers=32)
        found, usual = Boundary.of(h100(), limits), Boundary.of(None, limits)
        assert 150 <= found.longest_short <= 512
        assert found.window == pytest.approx(usual.window, rel=0.2)

    def test_where_rows_cost_nothing_all_prompts_are_short(self) -> None:
        free = LinearTimes(row=0.0)
        assert Boundary.of(free, self.LIMITS).longest_short == 1024

    def test_there_is_a_shortest_one(self) -> None:
        limits = replace(self.LIMITS, max_num_batched_tokens=1)
        for times in (LinearTimes(), LinearTimes(step=0.0, layer=0.0)):
            assert Boundary.of(times, limits).longest_short == 1


class TestLongPrompts:
    """What a long prompt gets beside short ones."""

    @pytest.mark.parametrize(
        ("now", "expected"),
        [(5.0, [("short", 0, 6)]), (6.0, [("long", 0, 18), ("short", 0, 6)])],
    )
    def test_short_ones_come_first_until_it_must_begin(
        self, now: float, expected: list[tuple[str, int, int]]
    ) -> None:
        """A row takes 0.04 s: 50 of them must begin 2 s before 8."""
        times = LinearTimes(step=0.0, layer=0.0, row=0.01)
        made = bench(times=times, ttft_objective=8.0)
        names = {made.waiting(50, arrival=0.0): "long", made.waiting(6, arrival=1.0): "short"}
        found = [(names[name], start, count) for name, start, count in rows(made.plan(now))]
        assert found == expected

    def test_then_it_gets_half_of_a_step(self) -> None:
        made = bench()
        long = made.waiting(50, arrival=0.0)
        short = [made.waiting(8, arrival=0.0) for _ in range(4)]
        assert rows(made.plan(1.0)) == [(long, 0, 12), (short[0], 0, 8), (short[1], 0, 4)]

    def test_nobody_comes_in_before_it_once_it_must_begin(self) -> None:
        """It finds no room: short ones would keep it out for ever."""
        made = bench(num_blocks=12)
        made.running(8)
        made.waiting(40, arrival=0.0)
        made.waiting(5, arrival=0.0)
        assert len(made.plan(1.0).row_groups) == 1

    @pytest.mark.parametrize("length", [40, 90])
    def test_the_longest_wait_under_a_flood_of_short_ones(self, length: int) -> None:
        clock, objective, budget = ManualClock(), 20.0, 24

        def build(_: Scheduler, limits: SchedulerLimits) -> Scheduler:
            setup = SchedulerSetup(
                limits, FirstComeFirstServed(), Aggressive(1), ttft_objective=objective
            )
            return LengthAwareScheduler(setup, Boundary(longest_short=SHORT))

        spec = EngineSpec(
            max_num_batched_tokens=budget,
            num_blocks=90,
            enable_prefix_caching=False,
        )
        engine, _ = create_engine(spec, clock=clock, wrap=build)
        long = create_request(prompt=length, max_tokens=1)
        engine.add_request(long)
        begun: float | None = None
        while long.request_id in {r.request_id for r in engine.queues}:
            for _ in range(5):
                engine.add_request(create_request(prompt=8, max_tokens=1))
            engine.step()
            clock.advance(1.0)
            engine.take_outputs()
            if begun is None and long.num_computed:
                begun = clock.now
        assert begun is not None and begun <= objective + 2
        assert clock.now - begun <= 2 * length / budget


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    window=st.sampled_from([0.0, 0.4, 3.0]),
    objective=st.sampled_from([None, 2.0]),
    order=st.sampled_from(["fcfs", "spf"]),
    budget=st.integers(4, 32),
)
def test_every_plan_of_any_history(
    seed: int, window: float, objective: float | None, order: str, budget: int
) -> None:
    def build(limits: SchedulerLimits) -> Scheduler:
        parts = (limits, create_order(order, objective), Aggressive(1))
        setup = SchedulerSetup(*parts, ttft_objective=objective)
        return LengthAwareScheduler(setup, Boundary(SHORT, window))

    spec = EngineSpec(
        num_blocks=30, max_model_len=44, max_num_seqs=4, max_num_batched_tokens=budget
    )
    History(seed, spec, order=None, build=build).play(steps=40)
