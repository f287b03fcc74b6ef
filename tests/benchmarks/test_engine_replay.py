"""A real engine on a time line of its own."""

from itertools import count
from pathlib import Path

import pytest
from benchmarks.engine_replay import run_engine, simulation_of
from benchmarks.replay import Timeline
from benchmarks.simulator import compare, simulate
from tests.support.cost import LLAMA_8B
from tests.support.served_models import write_tiny_model

from twinflow.cluster.simulator.traces import Shape
from twinflow.runtime.build import build_engine
from twinflow.runtime.cost.model import CostModel, Prices
from twinflow.runtime.engine_plan import EngineOptions


def test_steps_that_all_take_a_second(tmp_path: Path) -> None:
    """With a clock that ticks once a step, engine and simulation must agree to the last digit."""
    options = EngineOptions(
        model=write_tiny_model(tmp_path),
        max_num_batched_tokens=32,
        max_num_seqs=4,
        max_model_len=128,
        kv_cache_memory=1 << 22,
        enable_prefix_caching=False,
        scheduler="chunked",
    )
    built = build_engine(options, clock=lambda: 0.0)
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
