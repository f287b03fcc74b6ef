"""The benchmark of layered prefill: its schedules, what it counts, and its report."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from benchmarks.layered import main
from benchmarks.layering.arms import BASE, PrefillFirst, arms
from benchmarks.layering.report import SubjectReport
from benchmarks.layering.rounds import one_round
from benchmarks.layering.subjects import (
    PUBLISHED_SKEW,
    QWEN3_30B_A3B,
    SMALL_MOE,
    RealModel,
    SkewedShape,
)
from benchmarks.replay import Replay, Timeline
from tests.support.engines import NUM_LAYERS, EngineSpec, create_engine
from tests.support.schedulers import SchedulerBench

from twinflow.cluster.simulator.traces import Shape
from twinflow.runtime.cost.shape import ModelShape
from twinflow.runtime.schedulers.admission import create_admission
from twinflow.runtime.schedulers.base import SchedulerLimits
from twinflow.runtime.schedulers.orders import create_order
from twinflow.runtime.schedulers.setup import SchedulerSetup

TINY = replace(
    SMALL_MOE,
    hidden_size=32,
    num_layers=3,
    moe=replace(SMALL_MOE.moe, layers=(0, 1, 2), num_experts=8, expert_size=16)
    if SMALL_MOE.moe
    else None,
)
ARRIVALS = [(0.0, Shape(16, 30, 0.0)), (1e-6, Shape(200, 4, 1e-6))]


class TestArms:
    """What is compared."""

    def test_everything_in_tokens_is_scaled(self) -> None:
        full, quarter = arms(1.0), arms(0.25)
        assert full[0].name == BASE
        assert [arm.name for arm in full] == [arm.name for arm in quarter]
        assert [arm.rows for arm in full] == [512, 256, 1024, 8192, 8192]
        assert [arm.rows for arm in quarter] == [128, 64, 256, 2048, 2048]

    def test_prompts_keep_decode_rows_out(self) -> None:
        bench = SchedulerBench()
        limits = SchedulerLimits(8, 16, NUM_LAYERS, 0)
        # Not through the bench: it would not let a decoding request go without a row.
        policy = PrefillFirst(
            SchedulerSetup(
                limits, create_order("fcfs", None), create_admission("aggressive", limits)
            )
        )
        early = bench.running(8)
        plan = policy.plan(bench.state(), 0.0)
        assert [(g.request_id, g.token_count) for g in plan.row_groups] == [(early, 1)]
        late = bench.waiting(40)
        plan = policy.plan(bench.state(), 0.0)
        assert [(g.request_id, g.token_count) for g in plan.row_groups] == [(late, 16)]


class TestTimeline:
    """Time passes while something is computed, and at no other time."""

    def test_a_clock_between_steps_stands_still(self) -> None:
        now = [5.0]
        line = Timeline(lambda: now[0])
        now[0] = 9.0
        assert line() == 0.0
        with line.running():
            now[0] = 11.0
            assert line() == 2.0
        now[0] = 99.0
        line.advance(1.0)
        assert line() == line.now == 2.0
        line.advance(3.5)
        assert line() == 3.5

    def test_an_engine_that_waits_is_asked_when_it_wants_to(self) -> None:
        """Length-aware batching waits for company: nothing to do, and still somebody there."""
        line = Timeline(lambda: 0.0)
        engine, _ = create_engine(EngineSpec(scheduler="laps"), clock=line)
        replay = Replay(engine, [(0.0, Shape(4, 2, 0.0)), (0.5, Shape(4, 1, 0.5))], line, 50)
        found = replay.run()
        assert found.ttft == pytest.approx([0.006, 0.006])
        assert len(found.gaps) == 1
        assert len(found.e2e) == 2


def test_layers_read_the_experts_of_a_prompt_once() -> None:
    subject = RealModel("tiny", TINY)
    chosen = [arm for arm in arms(1 / 16) if arm.name in (BASE, "layered", "prefill-first")]
    found = one_round(subject, chosen, ARRIVALS, 512)
    chunked, layered, first = (found[arm.name] for arm in chosen)
    # 200 tokens are 7 chunks of at most 31 and a decode row; decode rows need 4 of 8 experts.
    assert layered.expert_gb < 0.7 * chunked.expert_gb
    assert first.expert_gb < 0.8 * chunked.expert_gb
    assert 0 < layered.experts < chunked.experts < 8
    assert all(one.e2e_p99 >= one.ttft_p99 > 0 and one.cpu_s > 0 for one in found.values())


def test_popular_experts_are_covered_as_published() -> None:
    shape = ModelShape.of(QWEN3_30B_A3B, element_bytes=2)
    even = SkewedShape(**asdict(shape), skew=0.0)
    skewed = SkewedShape(**asdict(shape), skew=PUBLISHED_SKEW)
    assert even.experts_hit(64) == pytest.approx(shape.experts_hit(64))
    coverage = {rows: skewed.experts_hit(rows) / 128 for rows in (1, 16, 32, 64, 128, 4096)}
    assert coverage[1] == pytest.approx(8 / 128)
    assert coverage[16] < 0.5
    assert coverage[32] == pytest.approx(0.55, abs=0.03)
    assert coverage[64] == pytest.approx(0.70, abs=0.01)
    assert coverage[128] == pytest.approx(0.863, abs=0.01)
    assert coverage[4096] == pytest.approx(1.0, abs=0.001)


def test_a_simulated_round_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--subjects", "skewed", "--requests", "6", "--rounds", "2", "--out", str(tmp_path)]
    assert main(flags) == 0
    out = capsys.readouterr().out
    assert (tmp_path / "report.md").read_text("utf-8").splitlines()[4:] == out.splitlines()[4:]
    (subject,) = json.loads((tmp_path / "report.json").read_text("utf-8"))["subjects"]
    assert len(subject["rounds"]) == 2
    for found in subject["rounds"]:
        assert found["layered"]["expert_gb"] < 0.65 * found[BASE]["expert_gb"]
        assert found["layered"]["tbt_p99"] < found[BASE]["tbt_p99"]
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")


def test_a_model_without_experts_has_no_ratio_of_their_bytes() -> None:
    dense = RealModel("dense", replace(TINY, architecture="Qwen3ForCausalLM", moe=None))
    found = one_round(dense, arms(1 / 16)[:1], ARRIVALS, 512)
    report = SubjectReport("dense", dense.expert_bytes, 1.0, [found])
    assert dense.expert_bytes == 0
    assert report.ratio(BASE, lambda one: one.expert_gb) is None
    assert "| chunked-512 | 0.0 |  | 0.0 |" in report.as_markdown()
