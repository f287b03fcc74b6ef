"""The layered policy: waves, their groups, and who moves with them."""

import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.engines import NUM_LAYERS, EngineSpec, create_engine, create_request
from tests.support.histories import History
from tests.support.schedulers import LinearTimes, SchedulerBench

from twinflow.runtime.request import Wave
from twinflow.runtime.schedulers import default_batched_tokens, resolve_scheduler
from twinflow.runtime.schedulers.layer_groups import fewest_groups, group_end, paper_groups
from twinflow.runtime.step_plan import RowGroup, RowKind, StepPlan

SLOW = LinearTimes(step=0.0, layer=0.0, row=1.0)


def layers(plan: StepPlan) -> list[tuple[str, int, int, int, int]]:
    """(request, first token, tokens, first layer, one behind the last) of every row group."""
    return [
        (g.request_id, g.token_start, g.token_count, g.layer_start, g.layer_end)
        for g in plan.row_groups
    ]


class TestGroups:
    """Into how many groups layers are cut, and where they end."""

    @pytest.mark.parametrize(
        ("tokens", "expected"), [(1, 1), (512, 1), (513, 2), (8192, 16), (99999, 48)]
    )
    def test_the_papers_rule(self, tokens: int, expected: int) -> None:
        assert paper_groups(tokens, 48) == expected

    @given(num_layers=st.integers(1, 100), data=st.data())
    def test_groups_are_even_and_the_larger_ones_come_first(
        self, num_layers: int, data: st.DataObject
    ) -> None:
        groups = data.draw(st.integers(1, num_layers))
        ends = [0]
        while ends[-1] < num_layers:
            ends.append(group_end(ends[-1], groups, num_layers))
        sizes = [end - first for first, end in itertools.pairwise(ends)]
        assert len(sizes) == groups
        assert sizes == sorted(sizes, reverse=True)
        assert sizes[0] - sizes[-1] <= 1

    @given(
        tokens=st.integers(1, 400),
        decodes=st.integers(0, 20),
        seconds=st.floats(0.1, 200),
        num_layers=st.integers(1, 24),
    )
    def test_the_fewest_groups_that_meet_an_objective(
        self, tokens: int, decodes: int, seconds: float, num_layers: int
    ) -> None:
        wave = RowGroup("w", 0, tokens, 0, num_layers, RowKind.PREFILL, samples=True)
        others = [
            RowGroup(f"d{i}", 9, 1, 0, num_layers, RowKind.DECODE, samples=True)
            for i in range(decodes)
        ]
        times = LinearTimes(row=0.01, layer=0.001, step=0.05)

        def longest_step(groups: int) -> float:
            size = -(-num_layers // groups)
            alone = 0.05 + num_layers * 0.01 * decodes + size * 0.01 * tokens
            return alone + 0.001 * (num_layers if decodes else size)

        found = fewest_groups([wave], others, times, seconds)
        fitting = [n for n in range(1, num_layers + 1) if longest_step(n) <= seconds - 1e-9]
        tight = [n for n in range(1, num_layers + 1) if longest_step(n) <= seconds + 1e-9]
        assert found in {min(fitting, default=num_layers), min(tight, default=num_layers)}


class TestWaves:
    """Who moves, and how far."""

    def bench(self, **options: Any) -> SchedulerBench:
        """A layer takes a second for each row, and a step may take 12."""
        settings: dict[str, Any] = {"times": SLOW, "tbt_objective": 12.0, "budget": 24}
        return SchedulerBench("layered", **({"max_num_seqs": 4} | settings | options))

    def test_a_wave_sets_out_with_the_first_group(self) -> None:
        bench = self.bench()
        decoding = bench.running(4)
        first, second = bench.waiting(5), bench.waiting(3)
        plan = bench.plan()
        # 4 s for the decode row, 8 for each layer of 8 rows
        assert layers(plan) == [
            (decoding, 4, 1, 0, 4), (first, 0, 5, 0, 1), (second, 0, 3, 0, 1),
        ]  # fmt: skip
        assert plan.layer_groups == 4
        assert [group.samples for group in plan.row_groups] == [True, False, False]

    def test_uneven_groups(self) -> None:
        bench = self.bench(tbt_objective=4.0 + 2 * 8)
        bench.running(4)
        bench.waiting(8)
        assert bench.plan().layer_groups == 2
        bench = self.bench(tbt_objective=4.0 + 3 * 8)
        bench.running(4)
        bench.waiting(8)
        assert bench.plan().row_groups[-1].layer_end == 2

    def test_the_wave_goes_on_and_nobody_joins(self) -> None:
        bench = self.bench()
        decoding = bench.running(4)
        moving = bench.running(9, computed=0, wave=Wave(0, 6, 1, 4))
        bench.running(9, computed=4)
        bench.waiting(3)
        assert layers(bench.plan()) == [(decoding, 4, 1, 0, 4), (moving, 0, 6, 1, 2)]

    def test_the_last_group_samples_if_the_prompt_ends(self) -> None:
        bench = self.bench()
        bench.running(4)
        bench.running(9, computed=0, wave=Wave(0, 6, 3, 4))
        bench.running(9, computed=4, wave=Wave(4, 5, 3, 4))
        assert [group.samples for group in bench.plan().row_groups] == [True, False, True]

    def test_all_layers_at_once_when_nothing_decodes(self) -> None:
        bench = self.bench()
        arriving = bench.waiting(12)
        assert layers(bench.plan()) == [(arriving, 0, 12, 0, 4)]
        bench = self.bench()
        moving = bench.running(9, computed=0, wave=Wave(0, 6, 1, 4))
        assert layers(bench.plan()) == [(moving, 0, 6, 1, 4)]

    def test_seats_of_later_decode_rows_are_kept_free(self) -> None:
        bench = self.bench(budget=10, max_num_seqs=4)
        decoding = bench.running(4)
        begun, arriving = bench.running(20, computed=4), bench.waiting(9)
        # two members leave two seats: 8 rows
        assert layers(bench.plan()) == [(decoding, 4, 1, 0, 4), (begun, 4, 7, 0, 1)]
        bench = self.bench(budget=10, max_num_seqs=4)
        bench.running(4)
        bench.running(10, computed=5)
        arriving = bench.waiting(9)
        assert layers(bench.plan())[-1] == (arriving, 0, 3, 0, 1)

    def test_a_fetch_comes_in_beside_a_wave(self) -> None:
        bench = self.bench()
        bench.running(4)
        bench.running(9, computed=0, wave=Wave(0, 6, 1, 4))
        fetching = bench.waiting(20, fetch_from="peer")
        bench.waiting(3)
        assert bench.plan().receive == (fetching,)

    def test_a_member_may_be_preempted(self) -> None:
        bench = self.bench(num_blocks=5)
        decoding = bench.running(8)
        moving = bench.running(8, computed=0, wave=Wave(0, 6, 1, 4))
        plan = bench.plan()
        assert plan.preempted == (moving,)
        assert layers(plan) == [(decoding, 8, 1, 0, 4)]

    def test_without_an_objective_the_papers_rule_counts(self) -> None:
        bench = self.bench(times=None, budget=2000, num_blocks=800)
        bench.running(4)
        bench.waiting(600)
        assert bench.plan().layer_groups == 2

    def test_a_wave_of_default_size_takes_a_long_prompt_whole(self) -> None:
        """With the rows of chunks it would be cut, and each piece would load the experts again."""
        seats, prompt = 4, 5000
        rows = default_batched_tokens("layered", prompt + 100, seats)
        bench = self.bench(times=None, budget=rows, num_blocks=3000, max_num_seqs=seats)
        decoding, arriving = bench.running(4), bench.waiting(prompt)
        plan = bench.plan()
        assert layers(plan) == [(decoding, 4, 1, 0, 4), (arriving, 0, prompt, 0, 1)]


class TestAuto:
    """Which policy suits a model."""

    def test_experts(self) -> None:
        name, reason = resolve_scheduler("auto", has_experts=True)
        assert name == "layered"
        assert "experts" in reason

    def test_dense(self) -> None:
        name, reason = resolve_scheduler("auto", has_experts=False)
        assert name == "chunked"
        assert "the model has no experts" in reason

    def test_what_was_asked_for(self) -> None:
        assert resolve_scheduler("layered", has_experts=False) == ("layered", "")


class TestDefaultRows:
    """Rows of a step where nobody has said how many."""

    @pytest.mark.parametrize(
        ("scheduler", "longest", "decoding", "rows"),
        [
            ("chunked", 32_768, 64, 1024),
            ("laps", 32_768, 64, 1024),
            ("chunked", 32_768, 3000, 3000),
            ("layered", 32_768, 64, 8192),
            ("layered", 4096, 64, 4160),
            ("layered", 512, 64, 1024),
            ("layered", 32_768, 9000, 9000),
        ],
    )
    def test_waves_get_room_for_prompts(
        self, scheduler: str, longest: int, decoding: int, rows: int
    ) -> None:
        assert default_batched_tokens(scheduler, longest, decoding) == rows


def test_a_long_prompt_crosses_the_layers_chunk_by_chunk() -> None:
    spec = EngineSpec(
        scheduler="layered", tbt_objective=9.0, times=SLOW, max_num_seqs=2, max_model_len=100
    )
    engine, executor = create_engine(spec)
    engine.add_request(create_request(prompt=2, max_tokens=60))
    engine.step()
    long = create_request(prompt=40, max_tokens=1)
    engine.add_request(long)
    spans = []
    while long.num_tokens == 40:
        engine.step()
        spans += [batch[1:] for batch in executor.batches[-1] if batch[0] == long.request_id]
        assert executor.batches[-1][0][0] != long.request_id
    assert spans == [span for span in [(0, 15), (15, 15), (30, 10)] for _ in range(NUM_LAYERS)]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_histories_do_have_waves(seed: int) -> None:
    spec = EngineSpec(
        scheduler="layered", tbt_objective=1.0, times=SLOW, num_blocks=15, max_model_len=44
    )
    history = History(seed, spec)
    history.play(steps=40)
    assert history.checker is not None
    moved = [g.layer_start for plan in history.checker.plans for g in plan.row_groups]
    assert set(moved) == set(range(NUM_LAYERS))
