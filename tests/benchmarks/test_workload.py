"""Arrivals, lengths and plans."""

from pathlib import Path

import numpy as np
import pytest
from benchmarks.load.records import Kind
from benchmarks.load.workload import Workload, make_plan

from twinflow.cluster.simulator.arrivals import Arrivals, Process, arrival_times
from twinflow.cluster.simulator.lengths import Lengths
from twinflow.protos.errors import ConfigError

FIXED = Lengths.parse("fixed:8")


def _gaps(arrivals: Arrivals, count: int = 20000) -> list[float]:
    times = arrival_times(arrivals, count, np.random.default_rng(1))
    return [float(gap) for gap in np.diff([0.0, *times])]


@pytest.mark.parametrize(
    ("arrivals", "cv"),
    [
        (Arrivals(4.0), 1.0),
        (Arrivals(4.0, Process.GAMMA, 1.0), 1.0),
        (Arrivals(4.0, Process.GAMMA, 3.0), 3.0),
        (Arrivals(4.0, Process.CONSTANT), 0.0),
    ],
)
def test_gaps_have_the_mean_and_variation_asked_for(arrivals: Arrivals, cv: float) -> None:
    gaps = _gaps(arrivals)
    assert np.mean(gaps) == pytest.approx(0.25, rel=0.05)
    assert np.std(gaps) / np.mean(gaps) == pytest.approx(cv, rel=0.05, abs=1e-9)


def test_arrivals_ascend_and_start_after_zero() -> None:
    times = arrival_times(Arrivals(100.0), 500, np.random.default_rng(2))
    assert times[0] > 0
    assert times == sorted(times)


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan")])
def test_a_rate_that_is_none_is_refused(rate: float) -> None:
    with pytest.raises(ConfigError, match="--rate"):
        Arrivals(rate)


def test_lengths_follow_their_distribution() -> None:
    rng = np.random.default_rng(3)
    assert Lengths.parse("fixed:7").draw(rng, 3) == [7, 7, 7]
    uniform = Lengths.parse("uniform:2:4").draw(rng, 1000)
    assert set(uniform) == {2, 3, 4}
    # Median of a lognormal is e^mu.
    lognormal = Lengths.parse("lognormal:5:0.5").draw(rng, 20000)
    assert np.median(lognormal) == pytest.approx(np.exp(5), rel=0.03)
    assert min(Lengths.parse("lognormal:-3:1").draw(rng, 1000)) == 1


@pytest.mark.parametrize(
    "text", ["", "fixed", "fixed:0", "fixed:x", "uniform:4:2", "uniform:1", "lognormal:1:-1",
             "zipf:2", "fixed:nan", "fixed:1:2"],
)  # fmt: skip
def test_unusable_length_distributions_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="length distribution"):
        Lengths.parse(text)


def test_lengths_are_written_as_they_are_read() -> None:
    assert str(Lengths.parse("lognormal:8.963:0.679")) == "lognormal:8.963:0.679"


def test_equal_seeds_give_equal_plans_and_others_do_not() -> None:
    workload = Workload(50, Lengths.parse("uniform:1:99"), FIXED)
    first = make_plan(workload, Arrivals(5.0), (1, 0))
    assert first == make_plan(workload, Arrivals(5.0), (1, 0))
    assert first != make_plan(workload, Arrivals(5.0), (1, 1))


def test_a_share_of_disconnects_changes_neither_arrivals_nor_lengths() -> None:
    lengths = Lengths.parse("uniform:1:99")
    plain = make_plan(Workload(200, lengths, FIXED), Arrivals(5.0), (1,))
    mixed = make_plan(
        Workload(200, lengths, FIXED, disconnect_share=0.3, bad_share=0.1), Arrivals(5.0), (1,)
    )
    assert [(r.due_s, r.shape) for r in plain] == [(r.due_s, r.shape) for r in mixed]


def test_shares_are_kept_and_hang_ups_fall_within_the_output() -> None:
    workload = Workload(2000, FIXED, FIXED, disconnect_share=0.1, bad_share=0.05)
    plan = make_plan(workload, Arrivals(5.0), (4,))
    kinds = [request.kind for request in plan]
    assert kinds.count(Kind.DISCONNECT) == pytest.approx(200, rel=0.25)
    assert kinds.count(Kind.BAD) == pytest.approx(100, rel=0.35)
    hang_ups = {r.hang_up_after for r in plan if r.kind is Kind.DISCONNECT}
    assert hang_ups == set(range(1, 8))
    assert all(r.hang_up_after is None for r in plan if r.kind is not Kind.DISCONNECT)


def test_prefixes_are_all_used() -> None:
    workload = Workload(100, FIXED, FIXED, prefixes=3, prefix_tokens=16)
    assert {r.prefix for r in make_plan(workload, Arrivals(5.0), (5,))} == {0, 1, 2}


def _azure(folder: Path) -> Path:
    path = folder / "azure.csv"
    path.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:00:10.0000000,1600,32\n"
        "2023-11-16 18:00:12.5000000,8,64\n"
        "2023-11-16 18:00:13.0000000,320,16\n"
    )
    return path


def test_a_trace_is_scaled_in_length_and_time(tmp_path: Path) -> None:
    workload = Workload(
        3, FIXED, FIXED, trace=_azure(tmp_path), length_scale=1 / 16, time_scale=0.5,
        max_input_tokens=50, max_output_tokens=3,
    )  # fmt: skip
    plan = make_plan(workload, None, (0,))
    assert [r.due_s for r in plan] == [0.0, 1.25, 1.5]
    assert [r.shape.input_tokens for r in plan] == [50, 1, 20]
    assert [r.shape.output_tokens for r in plan] == [2, 3, 1]


def test_a_rate_replaces_the_times_of_a_trace(tmp_path: Path) -> None:
    workload = Workload(2, FIXED, FIXED, trace=_azure(tmp_path))
    plan = make_plan(workload, Arrivals(10.0, Process.CONSTANT), (0,))
    assert [r.due_s for r in plan] == pytest.approx([0.1, 0.2])
    assert [r.shape.input_tokens for r in plan] == [1600, 8]


def test_more_requests_than_the_trace_has_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--requests 4 is more than the 3"):
        make_plan(Workload(4, FIXED, FIXED, trace=_azure(tmp_path)), None, (0,))


def test_a_trace_without_times_needs_a_rate_and_is_sampled(tmp_path: Path) -> None:
    path = tmp_path / "lengths.csv"
    rows = "\n".join(f"{n},1,{n + 1},{n}" for n in range(1, 101))
    path.write_text(f"num_prefill_tokens,num_decode_tokens,num_total_tokens,pd_ratio\n{rows}\n")
    workload = Workload(20, FIXED, FIXED, trace=path)
    with pytest.raises(ConfigError, match="--rate is needed"):
        make_plan(workload, None, (0,))
    drawn = [r.shape.input_tokens for r in make_plan(workload, Arrivals(1.0), (0,))]
    assert len(set(drawn)) == 20
    assert drawn != sorted(drawn)


@pytest.mark.parametrize(
    ("changes", "flag"),
    [
        ({"disconnect_share": 1.5}, "--disconnect-share"),
        ({"bad_share": -0.1}, "--bad-share"),
        ({"disconnect_share": 0.6, "bad_share": 0.6}, "add up"),
        ({"length_scale": 0.0}, "--length-scale"),
        ({"time_scale": -1.0}, "--time-scale"),
        ({"prefix_tokens": 5}, "--prefixes"),
    ],
)
def test_unusable_workloads_name_their_flag(changes: dict[str, float], flag: str) -> None:
    with pytest.raises(ConfigError, match=flag):
        Workload(10, FIXED, FIXED, **changes)  # type: ignore[arg-type]
