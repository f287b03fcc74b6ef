"""Steps side by side: what a synthetic machine costs is found, and real lanes are measured."""

from dataclasses import replace
from itertools import count, product
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.cost import CURVES, LLAMA_8B, PRICES, chunk, decodes, h100, step
from tests.support.green_devices import FakeGreenDevice
from tests.support.lanes import CountedThreads
from tests.support.served_models import write_tiny_model

from twinflow.parallel.partition.backends.base import Place
from twinflow.parallel.partition.backends.greenctx import GreenContexts
from twinflow.parallel.partition.backends.registry import Choice
from twinflow.parallel.partition.layout import Grid
from twinflow.parallel.ranks.base import OneRank
from twinflow.runtime.cost.contention import Contention, Slowdown, fit_contention
from twinflow.runtime.cost.dividers import Parts, Threads, Undivided
from twinflow.runtime.cost.lanes import Lane, LaneTimes
from twinflow.runtime.cost.measure import Rounds, Subject
from twinflow.runtime.cost.measure_pairs import lane_place, measure_pairs, parts_of
from twinflow.runtime.cost.model import CostModel
from twinflow.runtime.cost.pair_fit import Paired, PairMeasurement, fit_pairs
from twinflow.runtime.engine_plan import EngineOptions, EnginePlan, plan_engine
from twinflow.runtime.runner_loading import load_runner

TRUTH = CostModel(LLAMA_8B, PRICES, CURVES, Contention(0.2, 0.07))


def planted(truth: CostModel, sizes: tuple[int, ...]) -> list[PairMeasurement]:
    """Pairs as they would be measured where `truth` holds."""
    found, lanes = [], LaneTimes(truth)
    for rows, batch, share in product(sizes, (1, 8, 64), (0.25, 0.5)):
        prompt = Lane(step(chunk(0, rows)), 1.0 - share)
        decoding = Lane(step(decode=decodes(batch, 2048)), share)
        for lane, other in ((prompt, decoding), (decoding, prompt)):
            times = lanes.seconds(lane), lanes.seconds(lane, other)
            found.append(PairMeasurement(lane, other, *times))
    return found


@pytest.mark.parametrize("planted_one", [Contention(0.2, 0.07), Contention(0.1), Contention(0.0)])
def test_planted_contention_is_found(planted_one: Contention) -> None:
    truth = replace(TRUTH, contention=planted_one)
    paired = Paired("cores", Grid.of(4), planted(truth, (32, 512)), planted(truth, (128,)))
    found, accuracy = fit_pairs(replace(TRUTH, contention=None), paired)
    assert found.contention is not None
    assert found.contention.memory == pytest.approx(planted_one.memory, abs=0.01)
    assert found.contention.compute == pytest.approx(planted_one.compute, abs=0.01)
    assert accuracy.held_out.worst < 0.01 and accuracy.held_out.steps == len(paired.checking)
    assert (accuracy.backend, accuracy.grid) == ("cores", Grid.of(4))


def test_contention_needs_pairs_and_never_helps() -> None:
    with pytest.raises(ValueError, match="there are none"):
        fit_contention([])
    assert fit_contention([Slowdown(0.5, 0.9, 0.8)]) == Contention(0.0)
    with pytest.raises(ValueError, match="no lane makes another one faster"):
        Contention(-0.1)


@settings(deadline=None)
@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_only_what_waits_for_memory_is_stretched_by_traffic(
    use: float, other: float, memory: float, compute: float
) -> None:
    contention = Contention(memory, compute)
    assert contention.stretch(0.0, other) == 1.0 + compute
    assert 1.0 <= contention.stretch(use, other) <= 1.0 + max(memory, compute) + 1e-9
    assert Contention(memory).stretch(use, 0.0) == 1.0


def test_decoding_loses_more_than_a_prompt_beside_it() -> None:
    lanes = LaneTimes(h100())
    decode, prompt = Lane(step(decode=decodes(64, 8192)), 0.4), Lane(step(chunk(0, 512)), 0.6)
    slower = [
        lanes.seconds(one, two) / lanes.seconds(one)
        for one, two in ((decode, prompt), (prompt, decode))
    ]
    assert slower[0] > slower[1] >= 1.0


@pytest.mark.parametrize(("threads", "shares"), [(1, (1.0,)), (4, (1.0, 0.5, 0.25))])
def test_threads_are_halved(threads: int, shares: tuple[float, ...]) -> None:
    assert Threads(threads).shares == shares


def test_parts_are_streams_of_the_layouts() -> None:
    device = FakeGreenDevice()
    parts = Parts(GreenContexts(Place("cuda:0"), device), "a fake")
    assert parts.shares == tuple(sm / 132 for sm in (132, 112, 80, 48, 16))
    for share in parts.shares:
        parts.use(share)
        parts.settle()
    assert [device.sizes[stream] for stream in device.used] == [132, 112, 80, 48, 16]
    assert device.waited == device.used
    parts.close()
    assert device.closed == 1


def test_what_cannot_be_divided_is_measured_whole() -> None:
    assert isinstance(parts_of(lane_place("meta", 0)), Undivided)
    with pytest.raises(ValueError, match="divides nothing"):
        Parts(Choice.undivided("auto", Place("cpu"), "").backend, "cpu")


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> EnginePlan:
    model: Path = write_tiny_model(tmp_path_factory.mktemp("pairs") / "model")
    options = EngineOptions(
        model=model,
        kv_cache_memory=1 << 24,
        max_num_batched_tokens=160,
        max_num_seqs=9,
        max_model_len=192,
    )
    return plan_engine(options, OneRank())


def test_pairs_are_measured_on_a_backends_splits(plan: EnginePlan) -> None:
    runner, backend = load_runner(plan, OneRank()), CountedThreads(Grid(3, (1,)))
    progress: list[float] = []
    ticks = count()
    paired, obstacle = measure_pairs(
        plan,
        runner,
        Choice(backend, "auto"),
        progress=progress.append,
        clock=lambda: float(next(ticks)),
    )
    assert paired is not None and obstacle == ""
    assert progress[-1] == 1.0 and backend.closed
    shares = {round(each.lane.share, 3) for each in paired.fitting}
    assert shares == {0.333, 0.667}  # of a split into one and two
    assert len(paired.fitting) > len(paired.checking) > 0
    for each in (*paired.fitting, *paired.checking):
        assert each.alone > 0 and each.beside > 0
        assert each.lane.share + each.other.share == pytest.approx(1.0)
        kinds = [load.segments[0].prefill.rows > 0 for load in (each.lane.load, each.other.load)]
        assert sorted(kinds) == [False, True]


def test_no_lanes_no_pairs(plan: EnginePlan) -> None:
    runner = load_runner(plan, OneRank())
    choice = Choice.undivided("auto", Place("cpu"), "one core")
    found = measure_pairs(plan, runner, choice, progress=lambda part: None, clock=lambda: 0.0)
    assert found == (None, "one core")


def test_shares_are_measured_on_the_parts_of_a_backend(plan: EnginePlan) -> None:
    runner, backend = load_runner(plan, OneRank()), CountedThreads(Grid.of(3))
    parts = Parts(backend, "cpu")
    rounds = Rounds(Subject(plan, runner, runner.row_tile), parts)
    rounds.advance_to(1)
    assert {each.share for each in rounds.measured().fitting} == {1 / 3, 1.0}
    parts.close()
    assert backend.closed and torch.get_num_threads() == backend.threads
