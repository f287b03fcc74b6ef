"""A real engine on a time line of its own."""

from collections.abc import Sequence
from itertools import count
from pathlib import Path

import pytest
from benchmarks.engine_replay import fitted, run_engine, simulation_of
from benchmarks.replay import Timeline
from benchmarks.simulator import compare, simulate
from tests.support.cost import LLAMA_8B
from tests.support.engines import ManualClock
from tests.support.served_models import write_tiny_model
from torch import Tensor

from twinflow.cluster.simulator.traces import Shape
from twinflow.parallel.ranks.base import OneRank
from twinflow.runtime.build import assemble_engine, build_engine
from twinflow.runtime.cost.measure import Rounds, Subject
from twinflow.runtime.cost.model import CostModel, Prices
from twinflow.runtime.engine_plan import EngineOptions, plan_engine
from twinflow.runtime.executor import LayersDone
from twinflow.runtime.layer_traffic import LayerTraffic
from twinflow.runtime.model_runner import ModelRunner, SequenceRows
from twinflow.runtime.runner_loading import load_runner


class SharedMachine:
    """A clock, and how dear a step is while others use the machine too."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.slowdown = 1.0


class RunnerOnIt:
    """Computes, and takes a second a step and a tenth of one a row, or more on a busy machine."""

    def __init__(self, runner: ModelRunner, machine: SharedMachine) -> None:
        self.kv_cache = runner.kv_cache
        self._runner = runner
        self._machine = machine

    def forward(
        self,
        rows: Sequence[SequenceRows],
        on_layers: LayersDone | None = None,
        layers_per_unit: int = 0,
    ) -> Tensor:
        """See `Runner.forward`."""
        count = sum(len(group.token_ids) for group in rows)
        self._machine.clock.advance(self._machine.slowdown * (1.0 + 0.1 * count))
        return self._runner.forward(rows, on_layers, layers_per_unit)

    def take_traffic(self) -> Sequence[LayerTraffic]:
        """See `Runner.take_traffic`."""
        return self._runner.take_traffic()

    def forget(self, sequence: str) -> bool:
        """See `Runner.forget`."""
        return self._runner.forget(sequence)


def options_of(model: Path) -> EngineOptions:
    """A small engine."""
    return EngineOptions(
        model=model,
        max_num_batched_tokens=32,
        max_num_seqs=4,
        max_model_len=128,
        kv_cache_memory=1 << 22,
        enable_prefix_caching=False,
        scheduler="chunked",
    )


def test_steps_that_all_take_a_second(tmp_path: Path) -> None:
    """With a clock that ticks once a step, engine and simulation must agree to the last digit."""
    built = build_engine(options_of(write_tiny_model(tmp_path)), clock=lambda: 0.0)
    requests = [(0.0, 40, 5), (0.5, 10, 3), (2.5, 70, 4), (40.0, 5, 6), (40.0, 8, 1), (41.2, 9, 2)]
    arrivals = [(at, Shape(inputs, outputs, at)) for at, inputs, outputs in requests]
    ticks = count()
    run = run_engine(built, arrivals, Timeline(lambda: float(next(ticks))))
    assert len(run.ttft) == 6
    assert len(run.gaps) == sum(outputs - 1 for _, _, outputs in requests)
    measures = simulate(run, simulation_of(built, CostModel(LLAMA_8B, Prices(step=1.0))))
    assert sorted(measures.ttft) == pytest.approx(sorted(run.ttft))
    assert all(each.error == pytest.approx(0.0, abs=0.005) for each in compare(run, measures))
    built.engine.check_integrity()


def test_a_machine_that_others_begin_to_use_is_measured_while_they_do(tmp_path: Path) -> None:
    """What was measured before is of another machine, and more so if requests queue up."""
    plan, machine = plan_engine(options_of(write_tiny_model(tmp_path)), OneRank()), SharedMachine()
    runner = load_runner(plan, OneRank())
    own = runner.apart(plan.rank_layout, plan.config.num_blocks, 32)
    subject = Subject(plan, RunnerOnIt(own, machine), runner.row_tile)
    timeline = Timeline(machine.clock)
    built = assemble_engine(plan, RunnerOnIt(runner, machine), clock=timeline)
    before, meanwhile = (Rounds(subject, clock=machine.clock) for _ in range(2))
    before.advance_to(1)
    machine.slowdown = 1.5
    arrivals = [(8.0 * n, Shape(10 + 7 * n % 50, 3 + n % 5, 8.0 * n)) for n in range(24)]
    run = run_engine(built, arrivals, timeline, meanwhile)
    assert meanwhile.done > 1
    outdated, found = (
        compare(run, simulate(run, simulation_of(built, fitted(rounds))))
        for rounds in (before, meanwhile)
    )
    assert all(each.holds for each in found)
    assert all(each.error < -0.3 for each in outdated if each.q == 50)
    assert timeline.now < machine.clock.now  # what measuring takes is no part of serving
    built.engine.check_integrity()
