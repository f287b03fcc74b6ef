"""Agenda, workloads, measures and configuration on their own."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinflow.cluster.latency_counts import LatencyCounts
from twinflow.cluster.simulator.agenda import Agenda
from twinflow.cluster.simulator.config import Deployment
from twinflow.cluster.simulator.lengths import Lengths
from twinflow.cluster.simulator.measures import Measures, Objective, Progress
from twinflow.cluster.simulator.report import Spread
from twinflow.cluster.simulator.run_ahead import Run
from twinflow.cluster.simulator.traces import Shape
from twinflow.cluster.simulator.workload import Workload, prompt_tokens
from twinflow.protos.errors import ConfigError

TRACE = [Shape(100, 10, 0.0), Shape(200, 20, 1.0), Shape(300, 30, 4.0)]


def test_events_happen_in_order_and_may_make_more() -> None:
    agenda, seen = Agenda(), list[tuple[str, float]]()

    def note(name: str) -> None:
        agenda.at(agenda.now, lambda now: seen.append((name, now)))

    agenda.at(2.0, lambda now: note("late"))
    agenda.at(1.0, lambda now: note("early"))
    agenda.run([(0.5, lambda now: note("first")), (2.0, lambda now: seen.append(("tie", now)))])
    assert seen == [("first", 0.5), ("early", 1.0), ("tie", 2.0), ("late", 2.0)]
    with pytest.raises(ValueError, match="past"):
        agenda.at(1.0, lambda now: None)


def test_a_trace_is_repeated_with_its_own_times() -> None:
    arrivals = list(Workload(7, TRACE).arrivals(0))
    assert [shape for _, shape in arrivals] == [*TRACE, *TRACE, TRACE[0]]
    times = [time for time, _ in arrivals]
    assert times[:3] == [0.0, 1.0, 4.0]
    assert all(a < b for a, b in pairwise(times))


def test_a_rate_overrides_the_times() -> None:
    times = [time for time, _ in Workload(4000, TRACE, rate=50.0).arrivals(3)]
    assert times[-1] == pytest.approx(80.0, rel=0.1)
    assert times == [time for time, _ in Workload(4000, TRACE, rate=50.0).arrivals(3)]
    assert times != [time for time, _ in Workload(4000, TRACE, rate=50.0).arrivals(4)]


def test_lengths_are_scaled_and_bounded() -> None:
    shapes = [s for _, s in Workload(3, TRACE, length_scale=0.5, max_tokens=100).arrivals(0)]
    assert [(s.input_tokens, s.output_tokens) for s in shapes] == [(50, 5), (90, 10), (85, 15)]


def test_drawn_lengths() -> None:
    lengths = Lengths.parse("uniform:5:9")
    workload = Workload(50, input_tokens=lengths, output_tokens=lengths, rate=1.0)
    found = [shape for _, shape in workload.arrivals(0)]
    assert len(found) == 50
    assert {s.input_tokens for s in found} == set(range(5, 10))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Workload(1), "--trace"),
        (lambda: Workload(0, TRACE), "--requests"),
        (lambda: Workload(1, [Shape(1, 1)]), "--rate"),
        (lambda: Workload(2, [Shape(1, 1, 0.0)]), "should come again"),
        (lambda: Deployment.parse("2X"), "1P2D"),
        (lambda: Deployment.parse("2P"), "decode worker"),
        (lambda: Deployment.parse("0M"), "at least one"),
        (lambda: Deployment.parse("1M", 0), "at least one"),
        (lambda: Objective.parse("ttft"), "ttft:500"),
        (lambda: Objective.parse("speed:5"), "measures"),
    ],
)
def test_what_makes_no_sense_is_refused(build: object, message: str) -> None:
    assert callable(build)
    with pytest.raises(ConfigError, match=message):
        build()


def test_deployments_are_read() -> None:
    found = Deployment.parse("1P2D1M", 3)
    assert found.pools == {"prefill": 1, "decode": 2, "mixed": 1}
    assert found.num_workers == 12


def test_equal_blocks_have_equal_tokens() -> None:
    one = prompt_tokens(Shape(10, 1, None, (7, 8)), 4)
    two = prompt_tokens(Shape(10, 1, None, (7, 9)), 4)
    assert len(one) == len(two) == 10
    assert one[:4] == two[:4]
    assert one[4:8] != two[4:8]
    assert prompt_tokens(Shape(3, 1), 4) == (0, 0, 0)


@given(st.floats(1e-3, 1.0), st.floats(0.0, 1e-3), st.integers(1, 500), st.floats(0.0, 1.0))
def test_a_run_is_noticed_at_the_end_of_a_step(
    first: float, growth: float, steps: int, part: float
) -> None:
    run = Run(10.0, first, growth, steps)
    time = 10.0 + part * (run.end(steps) - 10.0)
    found = run.steps_until(time)
    assert 1 <= found <= steps
    assert run.end(found) >= time * (1 - 1e-12)
    assert found == 1 or run.end(found - 1) < time
    each = [run.end(n) - run.end(n - 1) for n in range(1, steps + 1)]
    assert each[-1] == pytest.approx(run.last(steps), rel=1e-6)


@given(st.lists(st.floats(1e-4, 10.0), min_size=1, max_size=50), st.sampled_from([50, 90, 99]))
def test_percentiles_of_gaps_are_within_a_class(values: list[float], q: int) -> None:
    counts = LatencyCounts()
    for value in values:
        counts.add(value)
    rank = max(-(-q * len(values) // 100), 1)
    assert counts.percentile(q) == pytest.approx(sorted(values)[rank - 1], rel=0.005)
    assert counts.mean == pytest.approx(sum(values) / len(values))
    lengths, shares = counts.distribution()
    assert shares[-1] == pytest.approx(1.0)
    assert list(lengths) == sorted(lengths)


def test_runs_of_growing_gaps_are_spread() -> None:
    counts = LatencyCounts()
    counts.add_run(1.0, 2.0, 101, 3)
    counts.add_run(1.0, 1.0001, 10, 1)
    assert int(counts.counts.sum()) == 313
    assert counts.percentile(50) == pytest.approx(1.5, rel=0.02)
    assert counts.mean == pytest.approx((303 * 1.5 + 10 * 1.00005) / 313)
    assert LatencyCounts().percentile(50) is LatencyCounts().mean is None


def test_measures_of_a_request() -> None:
    measures = Measures([Objective("gap", 1500.0), Objective("ttft", 1000.0)])
    for gap in (1.0, 2.0):
        request = Progress(arrival=5.0)
        for now in (5.5, 5.6, 5.6 + gap):
            measures.token(request, now)
        measures.finish(request)
    assert (request.ttft, request.tpot, request.e2e) == pytest.approx((0.5, 1.05, 2.6))
    assert (measures.finished, measures.good, measures.output_tokens) == (2, 1, 6)
    assert Progress(0.0, 1, 1.0, 1.0).tpot is None


def test_spreads_are_nearest_rank() -> None:
    spread = Spread.of([n / 1000 for n in range(1, 101)])
    assert spread == Spread(50.5, 50.0, 90.0, 99.0)
    assert Spread.of([]) is None
