"""Simulated deployments: times done by hand, nothing lost, the same again, and many at once."""

from dataclasses import replace
from typing import Any

import pytest
from msgspec.structs import replace as replace_struct
from tests.support.cost import chunk, decodes, step
from tests.support.simulations import (
    DYNAMIC,
    OBJECTIVES,
    STATIC,
    TIMES,
    TOKEN_BYTES,
    Setting,
    at,
    poisson,
)

from twinflow.cluster.dispatch.admission import AdmissionLimits
from twinflow.cluster.simulator.config import Link, Partition
from twinflow.cluster.simulator.fleet import Fleet
from twinflow.cluster.simulator.traces import Shape
from twinflow.cluster.simulator.workload import Workload
from twinflow.parallel.partition.control import Decision
from twinflow.runtime.cost.base import StepLoad
from twinflow.runtime.snapshot import EngineSnapshot

SETTINGS = {
    "mixed": Setting(),
    "pools": Setting("1P2D"),
    "all roles": Setting("1P1D1M"),
    "replicas": Setting("2M", replicas=3),
    "static lanes": Setting(partition=STATIC),
    "dynamic lanes": Setting(partition=DYNAMIC),
}
settings = pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS.keys())


def seconds(load: StepLoad) -> float:
    """Of a step on a whole H100."""
    return TIMES.times.seconds(load)


def test_one_request_takes_what_its_steps_take() -> None:
    measures = Setting().run(at((0.0, 500, 3))).measures
    prefill, first, second = (
        seconds(step(chunk(0, 500))),
        seconds(step(decode=decodes(1, 501))),
        seconds(step(decode=decodes(1, 502))),
    )
    assert measures.ttft[0] == pytest.approx(prefill)
    assert measures.e2e[0] == pytest.approx(prefill + first + second)
    assert measures.tpot[0] == pytest.approx((first + second) / 2)
    assert measures.busy_s["mixed"] == pytest.approx(measures.e2e[0])


def test_rates_count_from_the_first_arrival_on() -> None:
    early, late = (
        Setting().run(at((start, 500, 3), (start + 1.0, 500, 3))) for start in (0.0, 60.0)
    )
    one, other = early.report(), late.report()
    assert other.duration_s == pytest.approx(one.duration_s)
    assert other.request_rate == pytest.approx(2 / one.duration_s)
    assert other.device_use["mixed"] == pytest.approx(one.device_use["mixed"])


def test_the_mean_gap_is_that_of_all_gaps() -> None:
    gaps = [seconds(step(decode=decodes(1, context))) for context in range(501, 521)]
    report = Setting().run(at((0.0, 500, 21))).report()
    assert report.latencies["TBT"].mean == pytest.approx(1000 * sum(gaps) / len(gaps))


def test_a_long_prompt_is_computed_in_chunks_beside_decodes() -> None:
    fleet = Setting().run(at((0.0, 16, 40), (0.05, 3000, 2)), max_num_batched_tokens=1024)
    chunks = [seconds(step(chunk(start, 1023))) for start in (0, 1023)]
    assert fleet.measures.ttft[0] >= sum(chunks)
    worst = fleet.measures.gaps.percentile(100)
    assert worst == pytest.approx(seconds(step(chunk(1023, 1023), decodes(1, 25))), rel=0.02)


def test_a_hand_off_costs_its_transfer() -> None:
    """The first token does not wait for the KV, the second one does."""
    slow = Link(bytes_per_s=1e9, latency_s=0.01, units=4)
    fleet = replace(SETTINGS["pools"], link=slow).run(at((0.0, 1000, 3)))
    prefill = seconds(step(chunk(0, 1000)))
    transfer = max(1000 * TOKEN_BYTES / 1e9, prefill + 250 * TOKEN_BYTES / 1e9) + 0.01
    decode = [seconds(step(decode=decodes(1, context))) for context in (1001, 1002)]
    assert fleet.measures.ttft[0] == pytest.approx(prefill)
    assert fleet.measures.e2e[0] == pytest.approx(transfer + sum(decode))
    assert fleet.report().kv_transfers == 1


def test_transfers_of_one_worker_follow_each_other() -> None:
    slow = Link(bytes_per_s=1e8, latency_s=0.0)
    fleet = replace(SETTINGS["pools"], link=slow).run(at(*[(0.0, 1000, 2)] * 3))
    each = 1000 * TOKEN_BYTES / 1e8
    assert max(fleet.measures.e2e) == pytest.approx(3 * each, rel=0.1)
    assert min(fleet.measures.e2e) == pytest.approx(each, rel=0.1)


@settings
def test_nothing_is_lost_and_every_token_is_counted(setting: Setting) -> None:
    workload = poisson(150, 20.0 * setting.replicas)
    fleet = setting.run(workload)
    measures, report = fleet.measures, fleet.report()
    expected = [shape.output_tokens for _, shape in workload.arrivals(setting.seed)]
    assert measures.finished == 150
    assert measures.output_tokens == sum(expected)
    assert int(measures.gaps.counts.sum()) == sum(expected) - 150
    assert report.rejected == report.failed == 0
    assert 0.0 < max(report.device_use.values()) <= 1.0 + 1e-9
    assert {w.engine.blocks.num_idle for w in fleet.workers} == {4095}


def assert_running_ahead_changes_nothing(
    setting: Setting, workload: Workload, **engine: Any
) -> Fleet:
    quick, slow = (
        replace(setting, run_ahead=ahead).run(workload, **engine) for ahead in (True, False)
    )
    for name in ("ttft", "tpot", "e2e", "arrived"):
        one, other = getattr(quick.measures, name), getattr(slow.measures, name)
        assert list(one) == pytest.approx(list(other), rel=1e-9, nan_ok=True)
    assert quick.measures.busy_s == pytest.approx(slow.measures.busy_s)
    for q in (50, 99):
        gaps = [fleet.measures.gaps.percentile(q) for fleet in (quick, slow)]
        assert gaps[0] == pytest.approx(gaps[1], rel=0.011)
    assert quick.report().preemptions == slow.report().preemptions
    return quick


@pytest.mark.slow
@settings
def test_running_ahead_changes_nothing(setting: Setting) -> None:
    assert_running_ahead_changes_nothing(setting, poisson(40, 8.0 * setting.replicas))


def test_running_ahead_changes_nothing_where_memory_decides_who_gets_a_request() -> None:
    """Gateways hear of the blocks that a worker has left in the middle of a run."""
    fleet = assert_running_ahead_changes_nothing(
        Setting("1P3D"),
        poisson(60, 10.0, "300:300"),
        num_blocks=200,
        max_model_len=2048,
        watermark=0.0,
    )
    assert fleet.report().preemptions > 0


def test_a_report_in_the_middle_of_a_run_is_of_that_moment() -> None:
    def reports(*, ahead: bool) -> list[EngineSnapshot]:
        fleet, found = Fleet(Setting(run_ahead=ahead).config()), list[EngineSnapshot]()
        fleet.every(0.1, lambda: found.append(fleet.workers[0].report()))
        fleet.run(at((0.0, 500, 200), (0.55, 500, 100)))
        return found

    for one, other in zip(reports(ahead=True), reports(ahead=False), strict=True):
        assert one.busy_seconds == pytest.approx(other.busy_seconds)
        assert replace_struct(one, busy_seconds=other.busy_seconds) == other


@settings
def test_equal_seeds_give_equal_outcomes(setting: Setting) -> None:
    one, two, other = (
        replace(setting, seed=seed).run(poisson(30, 15.0)).report().as_dict() for seed in (1, 1, 2)
    )
    assert one == two != other


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mixed", "pools", "dynamic lanes"])
def test_too_little_memory_preempts_and_still_ends_everything(name: str) -> None:
    fleet = SETTINGS[name].run(
        poisson(40, 60.0, "300:300"), num_blocks=130, max_model_len=2048, watermark=0.0
    )
    report = fleet.report()
    assert report.finished == 40
    assert report.preemptions > 0


def test_a_full_queue_rejects_and_goodput_counts_it() -> None:
    setting = Setting(admission=AdmissionLimits(max_requests=4))
    report = setting.run(at(*[(0.0, 4000, 2)] * 10)).report()
    assert (report.finished, report.rejected) == (4, 6)
    assert report.attainment <= 0.4


def test_what_can_never_be_served_fails() -> None:
    report = Setting().run(at((0.0, 20_000, 2), (0.1, 100, 2))).report()
    assert (report.finished, report.failed) == (1, 1)


def test_shared_prefixes_are_found_and_sent_where_they_are() -> None:
    blocks = tuple(range(8))
    shapes = [Shape(4096, 2, 2.0 * i, (*blocks, 100 + i)) for i in range(6)]
    cold = Setting("2M").run(Workload(6, shapes))
    warm = Setting("2M").run(Workload(6, shapes), enable_prefix_caching=True)
    assert warm.measures.ttft[0] == pytest.approx(cold.measures.ttft[0])
    assert max(list(warm.measures.ttft)[1:]) < 0.3 * min(cold.measures.ttft)


def test_lanes_shield_decodes_from_prompts() -> None:
    """The reason for lanes: the tail of the gaps is that of decoding, not that of chunks."""
    workload = poisson(100, 10.0, "2000:100")
    chunked = Setting().run(workload).report().latencies["TBT"]
    lanes = Setting(partition=DYNAMIC).run(workload).report().latencies["TBT"]
    assert lanes.p99 < 0.75 * chunked.p99


def test_lanes_overlap_and_the_controller_moves() -> None:
    decisions: list[tuple[str, Decision]] = []
    fleet = Fleet(Setting(partition=DYNAMIC).config(), OBJECTIVES, lambda *d: decisions.append(d))
    fleet.run(poisson(100, 10.0))
    assert fleet.report().switches > 0
    assert any(decision.times for _, decision in decisions)
    assert {worker_id for worker_id, _ in decisions} == {"mixed-0-0"}


def test_pools_may_differ_in_policy_but_not_in_blocks() -> None:
    """Each worker has its pool's engine; blocks that are handed over are of one size."""
    config = Setting("1P1D").config()
    laps = replace(config.engine, scheduler="laps", max_num_seqs=8)
    fleet = Fleet(replace(config, engines={"prefill": laps}), OBJECTIVES)
    assert [w.engine.config for w in fleet.workers] == [laps, config.engine]
    fleet.run(poisson(50, 5.0))
    fleet.check_integrity()
    assert fleet.report().kv_transfers == 50
    with pytest.raises(ValueError, match="block_size of the prefill pool"):
        replace(config, engines={"prefill": replace(laps, block_size=32)})


def test_load_makes_everything_wait() -> None:
    calm, busy = (Setting().run(poisson(150, rate)).report() for rate in (2.0, 60.0))
    assert busy.latencies["TTFT"].p99 > 2 * calm.latencies["TTFT"].p99
    assert busy.device_use["mixed"] > calm.device_use["mixed"]
    assert calm.attainment == 1.0


@pytest.mark.parametrize("partition", [None, DYNAMIC], ids=["whole", "lanes"])
@pytest.mark.parametrize(
    "policy",
    [
        {"scheduler": "layered"},
        {"prefill_order": "spf", "ttft_objective": 1.0},
        {"admission": "past-future"},
        {"tbt_objective": 0.03},
    ],
    ids=lambda policy: "-".join(map(str, policy.values())),
)
def test_policies_serve_under_virtual_time(
    policy: dict[str, Any], partition: Partition | None
) -> None:
    fleet = Setting(partition=partition).run(poisson(40, 10.0), **policy)
    assert fleet.report().finished == 40


class TestAllowances:
    """Requests that may get more tokens than they do."""

    def test_outputs_end_where_the_trace_says(self) -> None:
        workload = poisson(60, 8.0)
        exact = Setting().run(workload)
        generous = Setting().run(replace(workload, allowance=3000))
        assert list(generous.measures.e2e) == list(exact.measures.e2e)

    def test_conservative_admission_goes_by_what_is_allowed(self) -> None:
        """Room for one request at its longest, and for all as they turn out."""
        workload = replace(at(*[(0.0, 100, 20)] * 3), allowance=1500)
        fits, waits = (
            Setting().run(workload, num_blocks=110, max_model_len=1744, admission=name)
            for name in ("aggressive", "conservative")
        )
        assert max(fits.measures.ttft) < min(fits.measures.e2e)
        assert sorted(waits.measures.ttft)[1] > min(waits.measures.e2e)
        assert waits.report().preemptions == 0

    def test_use_of_memory_is_that_of_the_steps(self) -> None:
        """A prompt of 63 blocks, one more for its outputs, of 4095."""
        for setting in (Setting(), Setting(run_ahead=False)):
            report = setting.run(at((0.0, 1000, 9))).report()
            assert report.kv_use["mixed"] == pytest.approx(63 / 4095)
