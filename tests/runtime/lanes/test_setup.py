"""Which lanes an engine gets, and what is said when it gets one instead of two."""

import os
from dataclasses import replace

import pytest
from structlog.testing import capture_logs
from tests.support.cost import h100
from tests.support.runners import make_model, make_runner
from tests.support.tiny_models import tiny_config

from twinflow.parallel.partition.layout import Grid
from twinflow.runtime.cost.model import CostModel
from twinflow.runtime.kv.block_manager import BlockManager
from twinflow.runtime.lanes.fallback import FallbackLanes
from twinflow.runtime.lanes.one import OneLane
from twinflow.runtime.lanes.options import LaneOptions, LaneReport
from twinflow.runtime.lanes.setup import LaneParts, make_lanes
from twinflow.runtime.model_executor import ModelExecutor
from twinflow.runtime.sampling import Sampler


def parts(*, alone: bool = True, times: CostModel | None = None) -> LaneParts:
    runner = make_runner(make_model(tiny_config(num_layers=1)), num_blocks=4)
    executor = ModelExecutor(runner, Sampler(131), vocab_size=131, layers_per_unit=1)

    def second() -> ModelExecutor:
        return executor.beside(runner.beside(), Sampler(131))

    return LaneParts(
        executor=executor,
        second=second if alone else None,
        obstacle="" if alone else "a worker of several ranks computes one step at a time",
        blocks=BlockManager(4, 16, model_fingerprint="", layout_digest=""),
        times=times,
        num_layers=1,
        device="cpu",
    )


@pytest.mark.parametrize(
    ("options", "alone", "reason"),
    [
        (LaneOptions(), True, ""),
        (LaneOptions(), False, ""),
        (LaneOptions(backend="cores", cores=(0,)), True, "the worker has 1"),
        (LaneOptions(backend="auto", cores=(0, 1)), False, "several ranks"),
    ],
)
def test_one_lane_and_why(options: LaneOptions, alone: bool, reason: str) -> None:
    with capture_logs() as logs:
        lanes, report = make_lanes(options, parts(alone=alone))
    assert isinstance(lanes, OneLane)
    assert (report.wanted, report.backend) == (options.backend, "none")
    assert reason in report.reason
    warned = [line["reason"] for line in logs if line["log_level"] == "warning"]
    assert warned == ([report.reason] if reason else [])


@pytest.mark.parametrize(
    ("times", "rule"),
    [
        (None, "the split stays: step times are not known"),
        (h100(), "slacks 1.5 for prefill"),
        (replace(h100(), contention=None), "slacks 1.5 for prefill"),
        (replace(h100(), curves=None), "the split stays: the profile was measured on the whole"),
    ],
    ids=["unknown", "known", "no pairs", "no shares"],
)
def test_two_lanes_and_by_which_rule(times: CostModel | None, rule: str) -> None:
    cores = tuple(sorted(os.sched_getaffinity(0)))[:2]
    if len(cores) < 2:
        pytest.skip("core sets need two processor cores")
    with capture_logs() as logs:
        lanes, report = make_lanes(LaneOptions(backend="auto", cores=cores), parts(times=times))
    assert isinstance(lanes, FallbackLanes)
    lanes.close()
    noted = [line for line in logs if "side by side" in line["event"]]
    assert bool(noted) == (times is not None and bool(times.curves) and times.contention is None)
    assert report == LaneReport("auto", "cores", report.description)
    assert report.description.startswith(f"2 processor cores; {rule}")


@pytest.mark.parametrize(
    ("grid", "least"),
    [
        (Grid.of(2), 0),
        (Grid.of(4), 1),
        (Grid.of(12), 2),
        (Grid.of(58, 8, 8), 2),
        (Grid.of(132, 8, 8), 2),
    ],
    ids=["2 cores", "4 cores", "12 cores", "L4", "H100"],
)
def test_a_split_changes_by_two_layouts_where_there_are_enough(grid: Grid, least: int) -> None:
    delta, middle = LaneOptions().control(grid).delta, grid.splits[grid.middle]
    changes = [abs(split - middle) for split in grid.splits if split != middle]
    taken = [change for change in changes if change >= delta]
    step = min(changes, default=0)
    assert min(taken, default=0) == least * step
