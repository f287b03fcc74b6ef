"""The controller: as good as looking everywhere, within its bounds, calm, and repeatable."""

import math
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.cost import chunk, decodes, h100, step

from twinflow.parallel.partition.control import (
    ControlConfig,
    Controller,
    Decision,
    Forecast,
    Inputs,
    Mode,
    Reason,
    Standing,
    decide,
)
from twinflow.parallel.partition.layout import MOST_SPLITS, Grid, Layout
from twinflow.parallel.partition.record import Setup, read_decisions, replay, write_decisions
from twinflow.runtime.cost.forecast import StepForecast
from twinflow.runtime.cost.lanes import LaneTimes
from twinflow.runtime.lanes.options import LaneOptions

H100 = Grid.of(132, 8, 8)
FINE = Grid(132, tuple(range(16, 117, 8)))
RECORDED = Path(__file__).parent / "decisions.jsonl"
TIMES = LaneTimes(h100())


@dataclass
class PowerForecast:
    """Times that grow as a lane's share to some power falls; counts how often it is asked."""

    prefill: float
    decode: float
    powers: tuple[float, float] = (0.6, 0.3)
    asked: int = 0

    def alone(self) -> tuple[float, float]:
        return self.prefill, self.decode

    def split(self, layout: Layout) -> tuple[float, float]:
        self.asked += 1
        a, b = self.powers
        return self.prefill * layout.prefill_share**-a, self.decode * layout.decode_share**-b


def both(kv_use: float = 0.3) -> Inputs:
    return Inputs(True, True, kv_use)


def real_forecast(rng: Random) -> StepForecast:
    """Batches as they come, on the shipped H100."""
    prompt = chunk(rng.choice([0, 2048, 8192]), rng.choice([128, 512, 1024, 2048]))
    batch = decodes(rng.randint(1, 128), rng.randint(16, 8192))
    return StepForecast(TIMES, step(prompt), step(decode=batch))


def exhaustive(config: ControlConfig, grid: Grid, mode: Mode, forecast: Forecast) -> int:
    """Look at every split: the definition that the search has to agree with."""
    alone = forecast.alone()
    times = [forecast.split(grid.layout(index)) for index in range(len(grid.splits))]
    keeps_prefill = [i for i, t in enumerate(times) if t[0] <= config.prefill_slack * alone[0]]
    keeps_decode = [i for i, t in enumerate(times) if t[1] <= config.decode_slack * alone[1]]
    least = min(keeps_prefill, default=len(times) - 1)
    most = max(keeps_decode, default=0)
    return max(least, most) if mode is Mode.PREFILL else min(least, most)


def test_the_search_agrees_with_looking_everywhere() -> None:
    rng = Random(0)
    seen: set[Reason] = set()
    for _ in range(1000):
        config = ControlConfig(
            prefill_slack=rng.uniform(1.0, 2.5), decode_slack=rng.uniform(1.0, 2.0), delta=0
        )
        forecast = real_forecast(rng)
        before = Standing(rng.choice(list(Mode)), rng.randrange(len(H100.splits)))
        decision = decide(config, H100, before, both(rng.random()), forecast)
        assert decision.best == exhaustive(config, H100, decision.after.mode, forecast)
        assert decision.layout == H100.layout(decision.best)
        seen.add(decision.reason)
    assert seen == {Reason.SLACK, Reason.INFEASIBLE}


times = st.floats(1e-4, 10.0)
forecasts = st.builds(
    PowerForecast, times, times, st.tuples(st.floats(0.0, 2.0), st.floats(0.0, 2.0))
)
configs = st.builds(
    ControlConfig,
    prefill_slack=st.floats(1.0, 4.0),
    decode_slack=st.floats(1.0, 4.0),
    delta=st.integers(0, 64),
)
grids = st.sampled_from([H100, Grid.of(2), Grid.of(16), Grid(8, (3, 4, 6))])


@settings(deadline=None)
@given(configs, grids, forecasts, st.data())
def test_favouring_a_phase_never_gives_it_less(
    config: ControlConfig, grid: Grid, forecast: PowerForecast, data: st.DataObject
) -> None:
    split = data.draw(st.integers(0, len(grid.splits) - 1))
    found = {}
    for mode, kv_use in ((Mode.PREFILL, 0.0), (Mode.DECODE, 1.0)):
        decision = decide(config, grid, Standing(mode, split), both(kv_use), forecast)
        assert decision.after.mode is mode
        assert decision.layout.prefill in grid.splits
        assert decision.layout.prefill + decision.layout.decode == grid.processors
        assert decision.best is not None
        found[mode] = decision.best
    assert found[Mode.PREFILL] >= found[Mode.DECODE]


@settings(deadline=None)
@given(configs, grids, forecasts)
def test_nothing_is_predicted_twice_and_a_settled_search_looks_nearby(
    config: ControlConfig, grid: Grid, forecast: PowerForecast
) -> None:
    cold = decide(config, grid, Standing(Mode.PREFILL, 0), both(0.0), forecast)
    best = cold.best
    assert best is not None
    # Each answer predicts a step of either lane; this is what a decision's time is made of.
    assert forecast.asked == len(cold.times) <= len(grid.splits)
    forecast.asked = 0
    decision = decide(config, grid, Standing(Mode.PREFILL, best), both(0.0), forecast)
    assert decision.best == best
    assert forecast.asked == len(decision.times) <= len(grid.splits)
    if decision.reason is Reason.SLACK:
        assert forecast.asked <= 2


def test_on_hopper_the_papers_slacks_leave_no_choice_and_ours_do() -> None:
    forecast = StepForecast(TIMES, step(chunk(2048, 2048)), step(decode=decodes(32, 2048)))
    before = Standing(Mode.PREFILL, H100.middle)
    paper = ControlConfig(prefill_slack=1.3, decode_slack=1.1)
    assert decide(paper, H100, before, both(), forecast).reason is Reason.INFEASIBLE
    assert decide(ControlConfig(), H100, before, both(), forecast).best is not None


@pytest.mark.parametrize(
    ("inputs", "layout", "reason"),
    [
        (Inputs(True, False, 0.1), H100.all_prefill, Reason.NO_DECODE),
        (Inputs(False, True, 0.1), H100.all_decode, Reason.NO_PREFILL),
        (Inputs(False, False, 0.1), H100.all_decode, Reason.NO_PREFILL),
    ],
)
def test_a_lane_without_work_leaves_the_device_to_the_other(
    inputs: Inputs, layout: Layout, reason: Reason
) -> None:
    before = Standing(Mode.PREFILL, 3)
    decision = decide(ControlConfig(), H100, before, inputs, PowerForecast(0.0, 0.0))
    assert (decision.layout, decision.reason, decision.after.split) == (layout, reason, 3)
    assert decision.times == {}


def test_the_mode_has_a_band() -> None:
    controller = Controller(ControlConfig(kv_high=0.7, kv_low=0.6), H100)
    uses = [0.5, 0.69, 0.71, 0.65, 0.61, 0.59, 0.65, 0.7, 0.9]
    modes = [controller.decide(both(use), PowerForecast(0.1, 0.01)).after.mode for use in uses]
    p, d = Mode.PREFILL, Mode.DECODE
    assert modes == [p, p, d, d, d, p, p, p, d]


def drift(
    delta: int, decode_times: list[float], grid: Grid = FINE, reasons: set[Reason] | None = None
) -> int:
    """Switches of a controller while the batches' shapes wander."""
    controller = Controller(ControlConfig(delta=delta, decode_slack=1.2), grid)
    for seconds in decode_times:
        decision = controller.decide(both(), PowerForecast(0.1, 0.01, (0.2, seconds)))
        if reasons is not None:
            reasons.add(decision.reason)
    return controller.switches


def test_small_differences_change_nothing_and_a_large_one_changes_once() -> None:
    rng = Random(1)
    noise = [0.275 + rng.uniform(-0.02, 0.02) for _ in range(300)]
    assert drift(0, noise) > 10
    assert drift(16, noise) <= 1, "at most to where all of it is within the slack"
    stepped = [0.15] * 50 + [0.9] * 50
    assert drift(16, [0.15] * 50) == 1
    assert drift(16, stepped) == 2


def test_the_band_that_lanes_get_is_wider_than_one_layout_of_an_h100() -> None:
    """With the layouts that there really are, whose distance is the least a split can change by."""
    rng = Random(1)
    noise = [0.29 + rng.uniform(-0.05, 0.05) for _ in range(300)]
    delta, reasons = LaneOptions().control(H100).delta, set[Reason]()
    assert drift(0, noise, H100) > 50
    assert drift(delta, noise, H100, reasons) <= 1
    assert Reason.SETTLED in reasons
    assert drift(delta, [0.05] * 50 + [0.9] * 50, H100) == 2


def test_a_split_that_breaks_the_slack_is_left_for_any_other() -> None:
    """And one that gives the favoured phase a little less than it could have is kept."""
    config, middle = LaneOptions().control(H100), H100.middle
    shares = [H100.layout(index).decode_share for index in range(len(H100.splits))]
    for best, after in ((middle - 1, middle - 1), (middle + 1, middle), (middle + 2, middle + 2)):
        # As slow on the best split as decoding may be, and slower beyond it.
        power = -math.log(config.decode_slack) / math.log(shares[best]) * 0.999
        decision = decide(
            config,
            H100,
            Standing(Mode.PREFILL, middle),
            both(),
            PowerForecast(0.1, 0.01, (0.2, power)),
        )
        assert (decision.best, decision.after.split) == (best, after)
        assert (decision.reason is Reason.SETTLED) == (best == middle + 1)


def test_the_layouts_of_a_device_are_few_and_as_fine_as_that_allows() -> None:
    assert H100.splits == (16, 32, 48, 64, 80, 96, 112)
    for processors in range(16, 200):
        for alignment, smallest in ((1, 1), (2, 4), (8, 8)):
            splits = Grid.of(processors, alignment, smallest).splits
            assert len(splits) <= MOST_SPLITS
            assert all(split % alignment == 0 for split in splits)
            assert smallest <= splits[0] and splits[-1] <= processors - smallest


def test_lanes_adopt_a_layout_one_by_one() -> None:
    controller = Controller(ControlConfig(), H100)
    assert controller.settled
    decision = controller.decide(Inputs(True, False, 0.0), PowerForecast(0.1, 0.01))
    assert not controller.settled
    assert controller.adopt(Mode.PREFILL) == decision.layout == H100.all_prefill
    assert not controller.settled
    controller.adopt(Mode.DECODE)
    assert controller.settled


def test_decisions_are_written_and_made_again(tmp_path: Path) -> None:
    rng = Random(2)
    setup, made = Setup(ControlConfig(), H100), list[Decision]()
    controller = Controller(setup.config, setup.grid, made.append)
    for _ in range(50):
        inputs = Inputs(rng.random() < 0.8, rng.random() < 0.8, rng.random())
        controller.decide(inputs, real_forecast(rng) if rng.random() < 0.8 else None)
    assert {decision.reason for decision in made} >= {Reason.UNKNOWN, Reason.SLACK}
    write_decisions(tmp_path / "d.jsonl", setup, made)
    read_setup, read = read_decisions(tmp_path / "d.jsonl")
    assert (read_setup, read) == (setup, made)
    assert [replay(read_setup, decision) for decision in read] == made


def test_decisions_of_an_earlier_run_are_made_again() -> None:
    setup, decisions = read_decisions(RECORDED)
    assert {decision.reason for decision in decisions} == set(Reason) - {Reason.UNKNOWN}
    assert {decision.after.mode for decision in decisions} == set(Mode)
    for decision in decisions:
        assert replay(setup, decision) == decision


def test_other_slacks_would_be_noticed() -> None:
    """The replay is a test of the search, not of the file."""
    setup, decisions = read_decisions(RECORDED)
    searched = next(d for d in decisions if d.reason is Reason.SLACK)
    with pytest.raises(KeyError):
        replay(Setup(ControlConfig(decode_slack=1.0), setup.grid), searched)


def test_without_step_times_the_split_stays() -> None:
    controller = Controller(ControlConfig(), H100)
    for _ in range(3):
        for prefill, decode, expected in (
            (True, True, H100.layout(H100.middle)),
            (True, False, H100.all_prefill),
            (False, True, H100.all_decode),
        ):
            decision = controller.decide(Inputs(prefill, decode, 0.5), None)
            assert decision.layout == controller.layout == expected


@pytest.mark.parametrize("splits", [(), (0, 1), (1, 8), (3, 2), (2, 2)])
def test_a_grid_that_is_none_is_refused(splits: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="splits of 8 processors"):
        Grid(8, splits)


def test_a_device_that_cannot_be_divided_has_no_grid() -> None:
    assert Grid.of(2).splits == (1,)
    with pytest.raises(ValueError, match="splits"):
        Grid.of(1)


@pytest.mark.parametrize("bad", [{"prefill_slack": 0.9}, {"kv_low": 0.8}, {"kv_high": 1.1}])
def test_settings_out_of_bounds_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"slacks|kv_low"):
        ControlConfig(**bad)
