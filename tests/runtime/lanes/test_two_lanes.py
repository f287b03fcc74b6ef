"""The threads of two lanes: waiting, being interrupted, dying, ending."""

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from structlog.testing import capture_logs
from tests.support.cost import h100
from tests.support.engines import (
    Collected,
    EngineSpec,
    FakeExecutor,
    create_engine,
    create_request,
    expected_output,
)
from tests.support.lanes import CountedThreads, EveryLayout

from twinflow.parallel.partition.control import Controller, Mode, Reason
from twinflow.parallel.partition.layout import Grid, Layout
from twinflow.parallel.partition.record import DecisionLog, Setup, read_decisions, replay
from twinflow.protos.errors import ConfigError, EngineError
from twinflow.runtime.cost.lanes import LaneTimes
from twinflow.runtime.engine import Engine
from twinflow.runtime.executor import LayersDone, Work
from twinflow.runtime.lanes.division import ControlledDivision
from twinflow.runtime.lanes.fallback import FallbackLanes
from twinflow.runtime.lanes.one import OneLane
from twinflow.runtime.lanes.options import LaneOptions
from twinflow.runtime.lanes.two import TwoLanes
from twinflow.runtime.outputs import SampledRun
from twinflow.runtime.request import Request

GRID = Grid.of(3)


class GatedExecutor(FakeExecutor):
    """Computes prompts only while a gate is open; raises what it is told to."""

    def __init__(self, block_size: int) -> None:
        super().__init__(block_size)
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.raises: BaseException | None = None

    def execute(self, work: Sequence[Work], on_layers: LayersDone | None) -> list[SampledRun]:
        if any(item.group.token_count > 1 for item in work):
            self.entered.set()
            assert self.gate.wait(20)
            if self.raises is not None:
                raise self.raises
        return super().execute(work, on_layers)


class Bench:
    """An engine on two lanes."""

    def __init__(self) -> None:
        self.executor = GatedExecutor(4)
        self.backend = CountedThreads(GRID)
        executors = dict.fromkeys(Mode, self.executor)
        self.two = TwoLanes(executors, self.backend, EveryLayout(GRID), num_layers=4)
        self.lanes = FallbackLanes(self.two, OneLane(self.executor))
        spec = EngineSpec(max_num_batched_tokens=16)
        self.engine, _ = create_engine(
            spec, executor=self.executor, lanes=lambda executor: self.lanes
        )


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.executor.gate.set()
    made.engine.close()
    assert made.backend.closed


def finish(engine: Engine) -> Collected:
    done = Collected()
    while engine.runnable:
        engine.step()
        done.take(engine)
        engine.check_integrity()
    return done


def decode_beside_a_held_prompt(bench: Bench) -> tuple[Request, Request]:
    """A request that decodes, and one whose prompt waits until the gate is open."""
    engine = bench.engine
    short = create_request(4, max_tokens=8)
    engine.add_request(short)
    while not short.output_token_ids:
        engine.step()
    bench.executor.gate.clear()
    long = create_request(12, max_tokens=2)
    engine.add_request(long)
    return short, long


def test_decoding_goes_on_beside_a_prompt_that_takes_long(bench: Bench) -> None:
    engine, executor = bench.engine, bench.executor
    short, long = decode_beside_a_held_prompt(bench)
    while len(short.output_token_ids) < 8:
        engine.step()
    assert not long.output_token_ids
    executor.gate.set()
    done = finish(engine)
    assert done.tokens[long.request_id] == expected_output(long.prompt_token_ids, 2)
    figures = engine.lane_figures
    assert figures is not None
    assert figures.both_seconds > 0


def test_a_wait_is_interrupted(bench: Bench) -> None:
    """An abort need not wait for the step that it concerns."""
    engine, executor = bench.engine, bench.executor
    executor.gate.clear()
    request = create_request(12, max_tokens=2)
    engine.add_request(request)
    waiter = threading.Thread(target=engine.step)
    waiter.start()
    assert executor.entered.wait(20)
    engine.interrupt()
    waiter.join(20)
    assert not waiter.is_alive()
    engine.abort(request.request_id)
    assert engine.blocks.num_quarantined == 3
    executor.gate.set()
    assert finish(engine).tokens == {}
    assert engine.blocks.num_idle == engine.blocks.num_blocks


def test_a_dying_lane_ends_the_engine(bench: Bench) -> None:
    bench.executor.raises = SystemExit("out of memory")
    bench.engine.add_request(create_request(12))
    with pytest.raises(EngineError, match=r"prefill lane has ended: SystemExit: out of memory"):
        bench.engine.step()


def test_a_thread_that_vanishes_is_noticed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("twinflow.runtime.lanes.two._LOOK_S", 0.01)
    bench.two._threads[Mode.PREFILL].close(20)
    bench.engine.add_request(create_request(12))
    with pytest.raises(EngineError, match="the prefill lane has vanished"):
        bench.engine.step()


def test_the_other_lane_ends_its_step_before_there_is_one(bench: Bench) -> None:
    """Meanwhile nothing begins, and an abort of a stranded request is an abort as any other."""
    engine, executor = bench.engine, bench.executor
    short, long = decode_beside_a_held_prompt(bench)

    def refuse(lane: Mode, layout: Layout) -> None:
        if lane is Mode.DECODE:
            raise ConfigError("cores 0,1: Invalid argument")

    bench.backend.on_enter = refuse
    engine.step()
    assert engine.lane_figures is not None and engine.lane_figures.failure
    assert bench.lanes.idle() == () and not bench.backend.closed
    engine.abort(short.request_id)
    executor.gate.set()
    with capture_logs() as logs:
        done = finish(engine)
    assert done.tokens[long.request_id] == expected_output(long.prompt_token_ids, 2)
    assert done.last[short.request_id].finish_reason is None and not done.failures
    assert bench.lanes.idle() == (None,) and bench.backend.closed
    assert ["cores 0,1" in line["reason"] for line in logs] == [True]


def test_a_backend_that_cannot_give_back_either(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise ConfigError("the driver is gone")

    bench.backend.on_enter = refuse
    monkeypatch.setattr(CountedThreads, "close", refuse)
    request = create_request(12)
    bench.engine.add_request(request)
    done = finish(bench.engine)
    assert done.tokens[request.request_id] == expected_output(request.prompt_token_ids, 4)
    bench.backend.closed = True


def test_decisions_of_an_engine_are_made_again(tmp_path: Path) -> None:
    grid = Grid.of(132, 8, 8)
    options = LaneOptions(decisions=tmp_path / "decisions.jsonl")
    control = options.control(grid)
    assert options.decisions is not None
    log = DecisionLog(options.decisions, Setup(control, grid))
    controller = Controller(control, grid, log.write)
    executor = FakeExecutor(4)
    backend = CountedThreads(grid)

    def lanes(fake: FakeExecutor) -> TwoLanes:
        division = ControlledDivision(
            controller, LaneTimes(h100()), lambda: engine.blocks.use(), log.close
        )
        return TwoLanes(dict.fromkeys(Mode, fake), backend, division, num_layers=4)

    engine, _ = create_engine(EngineSpec(num_blocks=120), executor=executor, lanes=lanes)
    for index in range(12):
        engine.add_request(create_request(40 + index, max_tokens=12))
    finish(engine)
    engine.close()
    setup, decisions = read_decisions(options.decisions)
    assert [replay(setup, decision) for decision in decisions] == decisions
    assert len(decisions) == engine.counters.steps
    assert {Reason.NO_DECODE, Reason.NO_PREFILL} < {decision.reason for decision in decisions}
    assert any(decision.alone for decision in decisions)
