"""The benchmark of lanes on loads that say nothing about them."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from benchmarks.lanes.__main__ import TBT_GOAL, Tuning, main
from benchmarks.lanes.arms import BASE, deadline_aware
from benchmarks.lanes.mixed import mixed
from benchmarks.lanes.real import REAL_ARMS
from benchmarks.lanes.report import as_markdown, make_cell
from benchmarks.lanes.simulated import Device, Figures
from tests.support.served_models import write_tiny_model

FIGURES = Figures(100.0, 400.0, 9.0, 8.0, 20.0, 900.0, 5.0, 0)


def test_lengths_are_those_of_two_kinds_of_requests() -> None:
    shapes = mixed(4000, seed=1)
    assert shapes == mixed(4000, seed=1)
    assert shapes != mixed(4000, seed=2)
    assert max(shape.input_tokens for shape in shapes) == 9817
    assert min(shape.output_tokens for shape in shapes) >= 1
    long = sum(shape.input_tokens > 1367 for shape in shapes) / len(shapes)
    assert 0.37 < long < 0.43


def test_more_load_makes_prompts_wait_and_capacity_is_above_both() -> None:
    device = Device()
    calm, busy = (device.run(BASE, 60, rate, 0) for rate in (2.0, 8.0))
    assert calm.ttft_mean < busy.ttft_mean
    assert calm.rate < busy.rate < device.capacity(BASE, 60, 0)


def test_deadlines_shorten_gaps_and_the_best_keeps_the_goal() -> None:
    tuning = Tuning(Device(), 60, 8.0)
    goal = TBT_GOAL * tuning.base.tbt_p99 / 1000.0
    found = tuning.best([deadline_aware(part * goal) for part in (10.0, 0.9, 0.5)])
    assert found == 1, "the first breaks the goal, the last makes prompts wait for no gain"


def test_ratios_are_taken_seed_by_seed() -> None:
    slower = replace(FIGURES, ttft_mean=200.0)
    cell = make_cell("arm", 0.9, [FIGURES, slower], [slower, slower])
    ratio = cell.ratios["ttft_mean"]
    assert (ratio.low, ratio.high, ratio.count) == (0.5, 1.0, 2)
    assert "switches" not in cell.ratios
    assert "| 90% | arm | 150 | 0.75 [0.50, 1.00] |" in as_markdown([cell])


@pytest.mark.slow
def test_a_run_reports_every_arm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--loads", "0.5", "--requests", "20", "--seeds", "1", "--out", str(tmp_path)]
    assert main(["simulated", *flags]) == 0
    out = capsys.readouterr().out
    assert (tmp_path / "report.md").read_text("utf-8") == out
    report = json.loads((tmp_path / "report.json").read_text("utf-8"))
    assert [cell["arm"][0] for cell in report["cells"]] == list("BABBBBEFGH")
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two lanes need two cores")
def test_real_arms_serve_every_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_tiny_model(tmp_path / "tiny")
    flags = ["--loads", "0.5", "--requests", "6", "--seeds", "1", "--length-scale", "0.02"]
    assert main(["real", str(model), *flags]) == 0
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if "| 50%" in line]
    assert [row[1] for row in rows] == [arm.name for arm in REAL_ARMS]
    assert all(float(row[4]) > 0 for row in rows)
