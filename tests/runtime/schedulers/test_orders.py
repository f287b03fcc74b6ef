"""Orders of prompts: who goes first, and by how much later arrivals may overtake."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.engines import EngineSpec, ManualClock, create_engine, create_request
from tests.support.schedulers import SchedulerBench

from twinflow.protos.errors import ConfigError
from twinflow.runtime.request import Request
from twinflow.runtime.schedulers.orders import create_order, register_order
from twinflow.runtime.schedulers.orders.fcfs import FirstComeFirstServed
from twinflow.runtime.schedulers.orders.spf import ShortestPrefillFirst
from twinflow.runtime.step_plan import StepPlan

OBJECTIVE = 10.0


def served(plan: StepPlan) -> list[str]:
    return [group.request_id for group in plan.row_groups]


def spf_bench(budget: int = 100) -> SchedulerBench:
    return SchedulerBench(prefill_order="spf", ttft_objective=OBJECTIVE, budget=budget)


class TestShortestFirst:
    """Scores."""

    def test_the_shortest_goes_first(self) -> None:
        bench = spf_bench()
        long, short, middle = (bench.waiting(n) for n in (30, 5, 12))
        assert served(bench.plan()) == [short, middle, long]

    def test_what_is_begun_counts_by_what_is_left(self) -> None:
        bench = spf_bench(budget=20)
        begun = bench.running(30, computed=20)
        shorter, longer = bench.waiting(8), bench.waiting(12)
        assert served(bench.plan()) == [shorter, begun, longer]

    def test_cached_tokens_are_not_to_be_computed(self) -> None:
        bench = spf_bench()
        bench.running(list(range(40)))
        short = bench.waiting(8)
        cached = bench.waiting([*range(40), 99, 98])
        assert served(bench.plan())[1:] == [cached, short]

    def test_ties_go_to_who_came_first(self) -> None:
        bench = spf_bench()
        ids = [bench.waiting(7) for _ in range(4)]
        assert served(bench.plan()) == ids

    def test_priorities_come_before_scores(self) -> None:
        bench = spf_bench()
        short, urgent = bench.waiting(3), bench.waiting(30, priority=-1)
        assert served(bench.plan()) == [urgent, short]

    @pytest.mark.parametrize(("later", "overtakes"), [(7.4, True), (7.6, False)])
    def test_a_prompt_ages(self, later: float, overtakes: bool) -> None:
        """40 tokens in 10 s: 30 tokens less make up for 7.5 s."""
        bench = spf_bench()
        long = bench.waiting(40, arrival=1.0)
        short = bench.waiting(10, arrival=1.0 + later)
        assert (served(bench.plan()) == [short, long]) is overtakes

    def test_a_head_longer_than_a_step_is_chunked(self) -> None:
        bench = spf_bench(budget=16)
        bench.waiting(40)
        assert bench.plan().row_groups[0].token_count == 16

    def test_an_objective_must_be_one(self) -> None:
        with pytest.raises(ValueError, match="TTFT objective of 0"):
            ShortestPrefillFirst(0.0)


@settings(max_examples=300, deadline=None)
@given(
    prompts=st.lists(st.tuples(st.integers(1, 60), st.floats(0.0, 30.0)), min_size=2, max_size=12)
)
def test_nobody_is_overtaken_by_who_came_more_than_an_objective_later(
    prompts: list[tuple[int, float]],
) -> None:
    bench = SchedulerBench(
        prefill_order="spf", ttft_objective=OBJECTIVE, num_blocks=400, max_num_seqs=20, budget=999
    )
    ids = [bench.waiting(length, arrival=moment) for length, moment in prompts]
    place = {request_id: index for index, request_id in enumerate(served(bench.plan()))}
    for early in map(bench.request, ids):
        for late in map(bench.request, ids):
            saved = early.num_tokens - late.num_tokens
            longest = max(length for length, _ in prompts)
            if late.arrival - early.arrival > max(saved, 0) / longest * OBJECTIVE + 1e-9:
                assert place[early.request_id] < place[late.request_id]


@pytest.mark.parametrize("scheduler", ["chunked", "layered"])
def test_the_longest_wait_under_a_flood_of_short_prompts(scheduler: str) -> None:
    """The long prompt is begun once those who came within an objective after it are served, though
    short ones come faster for ever than they can be computed."""
    clock = ManualClock()
    spec = EngineSpec(
        scheduler=scheduler,
        prefill_order="spf",
        ttft_objective=20.0,
        max_num_batched_tokens=12,
        num_blocks=40,
        enable_prefix_caching=False,
    )
    engine, executor = create_engine(spec, clock=clock)
    source = random.Random(3)

    def arrive(prompt: int) -> Request:
        request = create_request(prompt=prompt, max_tokens=1)
        engine.add_request(request)
        return request

    for _ in range(5):
        arrive(6)
    long = arrive(60)
    for _ in range(400):
        for _ in range(source.choice([2, 3])):  # a step computes two of them
            arrive(6)
        engine.step()
        clock.advance(1.0)
        engine.take_outputs()
        if any(request_id == long.request_id for request_id, *_ in executor.batches[-1]):
            break
    came_before = 5 + 2.5 * 20  # and are shorter
    assert 20.0 * (60 - 6) / 60 * 0.9 < clock.now <= came_before / 2 + 6


class TestRegistry:
    """Orders by name."""

    def test_unknown(self) -> None:
        with pytest.raises(ConfigError, match=r"--prefill-order lifo: unknown; .*'fcfs', 'spf'"):
            create_order("lifo", None)

    def test_a_name_is_taken_once(self) -> None:
        with pytest.raises(ValueError, match="already registered"):
            register_order("fcfs", lambda _: FirstComeFirstServed())
