"""The chunked policy: tables of states and plans."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.engines import (
    NUM_LAYERS,
    EngineSpec,
    FakeExecutor,
    create_engine,
    create_request,
    run,
)
from tests.support.schedulers import LinearTimes, SchedulerBench

from twinflow.protos.errors import ConfigError
from twinflow.runtime.cost.base import StepLoad
from twinflow.runtime.engine import Engine
from twinflow.runtime.schedulers import create_scheduler, register_scheduler
from twinflow.runtime.schedulers.admission.aggressive import Aggressive
from twinflow.runtime.schedulers.base import SchedulerLimits
from twinflow.runtime.schedulers.chunked import ChunkedScheduler
from twinflow.runtime.schedulers.orders.fcfs import FirstComeFirstServed
from twinflow.runtime.schedulers.setup import SchedulerSetup
from twinflow.runtime.step_plan import RowGroup, RowKind, StepPlan


def rows(plan: StepPlan) -> list[tuple[str, int, int]]:
    """(request, first token, tokens) of every row group."""
    return [(group.request_id, group.token_start, group.token_count) for group in plan.row_groups]


class TestBudget:
    """Who gets how many rows."""

    def test_decodes_first_then_running_prompts_then_admissions(self) -> None:
        bench = SchedulerBench(budget=12)
        prefilling = bench.running(20, computed=15)
        decoding = bench.running(8)
        arriving = bench.waiting(9)
        plan = bench.plan()
        assert rows(plan) == [(decoding, 8, 1), (prefilling, 15, 5), (arriving, 0, 6)]
        assert [group.kind for group in plan.row_groups] == [
            RowKind.DECODE, RowKind.PREFILL, RowKind.PREFILL,
        ]  # fmt: skip
        assert [group.samples for group in plan.row_groups] == [True, True, False]

    def test_nothing_is_left_for_prompts_when_decodes_take_the_budget(self) -> None:
        bench = SchedulerBench(budget=4, max_num_seqs=8)
        decoding = [bench.running(4) for _ in range(4)]
        bench.running(20, computed=3)
        bench.waiting(4)
        assert rows(bench.plan()) == [(request_id, 4, 1) for request_id in decoding]

    def test_a_prompt_that_waits_for_a_fetch_needs_no_rows(self) -> None:
        bench = SchedulerBench(budget=2)
        bench.running(4)
        bench.running(4)
        fetching = bench.waiting(40, fetch_from="peer")
        assert bench.plan().receive == (fetching,)

    def test_seats_count_parked_requests(self) -> None:
        bench = SchedulerBench(max_num_seqs=3)
        bench.parked()
        bench.running()
        first = bench.waiting()
        bench.waiting()
        assert [group[0] for group in rows(bench.plan())][1:] == [first]

    def test_no_seat_is_free(self) -> None:
        bench = SchedulerBench(max_num_seqs=1)
        bench.parked()
        bench.waiting()
        assert bench.plan() == StepPlan()


class TestAdmission:
    """Who comes in, and in which order."""

    def test_first_come_first_served_within_a_priority(self) -> None:
        bench = SchedulerBench(budget=100)
        late, urgent, later = bench.waiting(), bench.waiting(priority=-1), bench.waiting()
        assert [group[0] for group in rows(bench.plan())] == [urgent, late, later]

    def test_a_small_request_does_not_overtake_a_large_one(self) -> None:
        bench = SchedulerBench(num_blocks=11)
        bench.running(20)
        bench.waiting(36)
        bench.waiting(4)
        assert len(bench.plan().row_groups) == 1

    def test_the_whole_prompt_is_reserved(self) -> None:
        """A prompt of three chunks is not begun where only the first one fits."""
        bench = SchedulerBench(num_blocks=11, budget=16)
        bench.waiting(41)
        assert bench.plan() == StepPlan()

    def test_admission_leaves_a_reserve_while_others_run(self) -> None:
        alone = SchedulerBench(num_blocks=5, watermark=2)
        alone.waiting(16)
        assert len(alone.plan().row_groups) == 1
        beside = SchedulerBench(num_blocks=9, watermark=2)
        beside.running(14)
        beside.waiting(12)
        assert len(beside.plan().row_groups) == 1

    def test_cached_blocks_are_not_needed_again(self) -> None:
        bench = SchedulerBench(num_blocks=8, budget=30)
        bench.running(list(range(16)))
        again = bench.waiting([*range(16), 99])
        assert rows(bench.plan())[1:] == [(again, 16, 1)]

    @pytest.mark.parametrize(
        ("prompt", "probe", "fetched"),
        [
            ([*range(16), 99], False, False),  # a short rest is computed here
            ([*range(16), *range(50, 60)], False, True),
            (list(range(100, 104)), False, True),  # nothing is cached, however short
            ([*range(16), 99], True, True),
        ],
    )
    def test_what_is_fetched(self, prompt: list[int], probe: bool, fetched: bool) -> None:
        bench = SchedulerBench(budget=30)
        bench.running(list(range(16)))
        request_id = bench.waiting(prompt, fetch_from="peer", probe=probe)
        assert (request_id in bench.plan().receive) is fetched


class TestPreemption:
    """Who makes room when a decoding request needs a block."""

    def full(self, *, hold_last: bool = False) -> tuple[SchedulerBench, list[str]]:
        """Three requests whose next token needs a block each, and two blocks."""
        bench = SchedulerBench(num_blocks=9)
        ids = [bench.running(8), bench.running(8)]
        if hold_last:
            return bench, [*ids, bench.running(16, computed=4, hold=True)]
        return bench, [*ids, bench.running(8), bench.running(8, computed=3)]

    def test_the_worst_rank(self) -> None:
        bench, (first, second, third, newest) = self.full()
        plan = bench.plan()
        assert plan.preempted == (newest, third)
        assert rows(plan) == [(first, 8, 1), (second, 8, 1)]

    def test_a_prompt_for_another_worker_is_spared(self) -> None:
        bench, (first, second, held) = self.full(hold_last=True)
        plan = bench.plan()
        assert plan.preempted == (second,)
        assert rows(plan) == [(first, 8, 1), (held, 4, 12)]

    def test_nobody_is_admitted_in_the_same_step(self) -> None:
        bench, _ = self.full()
        bench.waiting(4, priority=-1)
        assert len(bench.plan().row_groups) == 2

    def test_a_request_without_neighbours_gives_way_itself(self) -> None:
        bench = SchedulerBench(num_blocks=5)
        bench.parked(8)
        alone = bench.running(8)
        assert bench.plan() == StepPlan(preempted=(alone,))

    def test_shared_blocks_do_not_count_as_gained(self) -> None:
        bench = SchedulerBench(num_blocks=5)
        first = bench.running(list(range(16)))
        second = bench.running(list(range(16)))
        plan = bench.plan()
        assert plan == StepPlan(preempted=(second, first))


def first_served(engine: Engine, executor: FakeExecutor) -> list[str]:
    """Request ids in the order of their first rows."""
    run(engine)
    seen = [request_id for batch in executor.batches for request_id, *_ in batch]
    return list(dict.fromkeys(seen))


@settings(max_examples=50, deadline=None)
@given(prompts=st.lists(st.integers(1, 40), min_size=2, max_size=12))
def test_requests_of_one_priority_begin_in_the_order_of_their_arrival(prompts: list[int]) -> None:
    engine, executor = create_engine(EngineSpec(num_blocks=14, max_num_seqs=3, max_model_len=44))
    requests = [create_request(prompt=prompt, max_tokens=4) for prompt in prompts]
    for request in requests:
        engine.add_request(request)
    assert first_served(engine, executor) == [request.request_id for request in requests]


def test_a_large_prompt_is_served_under_a_stream_of_small_ones() -> None:
    engine, executor = create_engine(EngineSpec(num_blocks=13, max_num_seqs=4, max_model_len=44))
    large = create_request(prompt=40, max_tokens=2)
    for _ in range(6):
        engine.add_request(create_request(prompt=6, max_tokens=6))
    engine.add_request(large)
    for step in range(200):
        engine.add_request(create_request(prompt=6, max_tokens=6))
        engine.step()
        if any(request_id == large.request_id for request_id, *_ in executor.batches[-1]):
            assert step < 60
            return
    raise AssertionError("the large prompt starves")


class TestDeadlines:
    """How many rows of prompts fit before the next token is due; a row takes 0.04 s."""

    TIMES = LinearTimes(step=0.0, layer=0.0, row=0.01)

    def bench(self, *latest: float, **options: Any) -> tuple[SchedulerBench, list[str]]:
        """Requests that decode, with the times of their latest tokens, and a prompt."""
        settings: dict[str, Any] = {"times": self.TIMES, "tbt_objective": 2.0, "budget": 100}
        bench = SchedulerBench(**(settings | options))
        decoding = [bench.running(4) for _ in latest]
        for request_id, moment in zip(decoding, latest, strict=True):
            bench.request(request_id).last_token_at = moment
        return bench, [*decoding, bench.waiting(80)]

    @pytest.mark.parametrize(
        ("now", "expected"),
        [
            (0.0, 49),  # 2 s, 50 rows
            (1.0, 24),
            (1.3, 16),  # 17 rows, one of them decoded
            (1.9, 16),  # too late for more than the least
            (9.0, 16),
        ],
    )
    def test_a_chunk_ends_before_the_next_token_is_due(self, now: float, expected: int) -> None:
        bench, (decoding, arriving) = self.bench(0.0)
        assert rows(bench.plan(now - 1e-9)) == [(decoding, 4, 1), (arriving, 0, expected)]

    def test_the_earliest_deadline_counts(self) -> None:
        bench, (*_, arriving) = self.bench(0.5, 0.0, 0.7)
        assert rows(bench.plan(0.8))[-1] == (arriving, 0, 27)

    @pytest.mark.parametrize(
        "options", [{"times": None}, {"tbt_objective": None}, {"tbt_objective": 100.0}]
    )
    def test_the_budget_counts_where_nothing_is_due(self, options: dict[str, Any]) -> None:
        bench, (*_, arriving) = self.bench(0.0, **options)
        assert rows(bench.plan(0.5))[-1] == (arriving, 0, 80)

    def test_the_budget_counts_where_nothing_decodes(self) -> None:
        bench, (arriving,) = self.bench()
        assert rows(bench.plan(0.5)) == [(arriving, 0, 80)]

    def test_rows_that_are_too_many_are_taken_from_the_last_prompts(self) -> None:
        bench, (decoding, *_) = self.bench(0.0, budget=60)
        second = bench.running(30, computed=3)
        plan = rows(bench.plan(0.8))
        assert plan[:2] == [(decoding, 4, 1), (second, 3, 27)]
        assert [row[1:] for row in plan[2:]] == [(0, 2)]

    @settings(max_examples=150, deadline=None)
    @given(
        prompts=st.lists(st.integers(2, 40), min_size=1, max_size=4),
        slack=st.floats(0.1, 3.0),
        pair=st.sampled_from([0.0, 0.001]),
    )
    def test_against_all_chunks(self, prompts: list[int], slack: float, pair: float) -> None:
        """No chunk that is in time is larger, and none is too late unless it is the least."""
        times = LinearTimes(step=0.0, layer=0.01, row=0.01, pair=pair)
        bench = SchedulerBench(times=times, tbt_objective=slack, budget=100, num_blocks=100)
        decoding = bench.running(4)
        bench.request(decoding).last_token_at = 0.0
        for prompt in prompts:
            bench.waiting(prompt)
        groups = bench.plan().row_groups
        chunk = sum(group.token_count for group in groups[1:])
        taken = times.seconds(StepLoad.of(groups))
        assert taken <= slack or chunk == min(16, sum(prompts))
        if chunk < sum(prompts):
            more = RowGroup("next", 40, 1, 0, NUM_LAYERS, RowKind.PREFILL, samples=False)
            longest_row = times.seconds(StepLoad.of([more]))
            assert taken + longest_row > slack


class TestRegistry:
    """Policies by name."""

    SETUP = SchedulerSetup(SchedulerLimits(1, 1, 1, 0), FirstComeFirstServed(), Aggressive(0))

    def test_unknown_policy(self) -> None:
        with pytest.raises(
            ConfigError, match=r"--scheduler magic: unknown; choose one of .*'auto', 'chunked'"
        ):
            create_scheduler("magic", self.SETUP)

    def test_a_name_is_taken_once(self) -> None:
        with pytest.raises(ValueError, match="already registered"):
            register_scheduler("chunked", ChunkedScheduler)
