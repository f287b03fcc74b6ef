"""Comparison over repeats, and what the report says."""

import json
from pathlib import Path

import pytest
from benchmarks.load.compare import compare
from benchmarks.load.config import BenchConfig
from benchmarks.load.machine import CpuShares
from benchmarks.load.plot import draw
from benchmarks.load.records import Kind, Outcome
from benchmarks.load.report import Report
from benchmarks.load.runs import Arm, RunResult, RunSpec, list_runs
from benchmarks.load.slo import Objective
from benchmarks.load.summary import summarise
from benchmarks.load.workload import Workload
from tests.support.load import record

from twinflow.cluster.simulator.lengths import Lengths

ARMS = (Arm("base", "http://h:1"), Arm("new", "http://h:2"))
MACHINE = {"cpu": "Test CPU", "cores": 2, "python": "3.11", "kernel": "Linux 6"}


def _config(out: Path | None = None, arms: tuple[Arm, ...] = ARMS) -> BenchConfig:
    workload = Workload(3, Lengths.parse("fixed:8"), Lengths.parse("fixed:3"))
    return BenchConfig(
        arms, workload, rates=(2.0,), repeats=2, objectives=(Objective("ttft", 150.0),), out=out,
        api_key_file=Path("key.txt"),
    )  # fmt: skip


def _result(spec: RunSpec, ttft_s: float, *, late_s: float = 0.0, planned: int = 3) -> RunResult:
    records = [
        record(i, due_s=i * 0.5, late_s=late_s, token_times_s=(ttft_s, ttft_s + 0.1))
        for i in range(3)
    ]
    cpu = CpuShares(0.01, 0.6, 0.2, 0.0)
    return RunResult(spec, "m", "2026-01-01T00:00:00+00:00", 0.0, planned, records, cpu)


def _report(out: Path | None = None, *, late_s: float = 0.0) -> Report:
    report = Report(_config(out), "python -m benchmarks.serve --x", dict(MACHINE))
    ttfts = iter([0.1, 0.2, 0.12, 0.18])
    for spec in list_runs(ARMS, (2.0,), 2, 0):
        report.add(_result(spec, next(ttfts), late_s=late_s if spec.repeat == 1 else 0.0))
    return report


def test_cells_are_medians_with_ranges_and_paired_ratios() -> None:
    base, new = _report().cells()
    assert (base.arm, new.arm, base.runs, new.runs) == ("base", "new", 2, 2)
    ttft = new.figures["ttft_p50_ms"]
    assert (ttft.median, ttft.low, ttft.high) == pytest.approx((190.0, 180.0, 200.0))
    assert base.ratios == {}
    ratio = new.ratios["ttft_p50_ms"]
    # 200/100 in the first repeat, 180/120 in the second.
    assert (ratio.median, ratio.low, ratio.high) == pytest.approx((1.75, 1.5, 2.0))


def test_a_figure_that_one_run_lacks_is_compared_over_the_others() -> None:
    specs = list_runs(ARMS, (None,), 1, 0)
    lost = [record(0, outcome=Outcome.FAILED, failure="closed", token_times_s=())]
    runs = [(specs[0], summarise(1, [record(0)], ())), (specs[1], summarise(1, lost, ()))]
    base, new = compare(runs)
    assert "ttft_p50_ms" in base.figures
    assert "ttft_p50_ms" not in new.figures
    assert "ttft_p50_ms" not in new.ratios
    assert new.figures["goodput_rps"].median == 0.0


def test_ratios_to_nothing_are_left_out() -> None:
    specs = list_runs(ARMS, (None,), 1, 0)
    lost = [record(0, outcome=Outcome.REJECTED, token_times_s=())]
    runs = [(specs[0], summarise(1, lost, ())), (specs[1], summarise(1, [record(0)], ()))]
    _, new = compare(runs)
    assert "goodput_rps" not in new.ratios


def test_the_json_report_holds_every_run() -> None:
    document = json.loads(_report().as_json())
    assert document["complete"] is True
    assert document["command"] == "python -m benchmarks.serve --x"
    assert document["machine"]["cpu"] == "Test CPU"
    assert document["config"]["workload"]["input_tokens"]["name"] == "fixed"
    assert document["config"]["api_key_file"] == "key.txt"
    assert [(run["arm"], run["repeat"]) for run in document["runs"]] == [
        ("base", 0), ("new", 0), ("base", 1), ("new", 1),
    ]  # fmt: skip
    assert document["runs"][0]["summary"]["ttft_ms"]["p50"] == 100.0
    assert document["runs"][0]["cpu"]["others"] == 0.2
    assert len(document["cells"]) == 2


def test_an_interrupted_session_leaves_a_report_that_says_so() -> None:
    report = Report(_config(), "x", dict(MACHINE))
    report.add(_result(list_runs(ARMS, (2.0,), 2, 0)[0], 0.1))
    assert json.loads(report.as_json())["complete"] is False
    assert "runs: 1 of 4" in report.as_markdown()


def _columns(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|\n").split("|")]


def test_the_table_shows_medians_ranges_and_ratios() -> None:
    lines = _report().as_markdown().splitlines()
    header, _, base, new = [line for line in lines if line.startswith("|")][:4]
    ttft = _columns(header).index("TTFT p50")
    assert _columns(base)[:2] == ["base", "2"]
    assert _columns(base)[ttft] == "110 [100, 120]"
    assert _columns(new)[ttft] == "190 [180, 200]"
    ratios = lines[lines.index("Ratios to base, repeat by repeat:") :]
    [row] = [line for line in ratios if line.startswith("| new")]
    assert _columns(row)[ttft] == "1.75 [1.50, 2.00]"


def test_the_text_says_what_a_reader_must_know() -> None:
    text = _report().as_markdown()
    assert "Test CPU, 2 cores" in text
    assert "objectives: ttft <= 150 ms" in text
    assert "3 judged requests are too few for a claim about p99" in text
    assert "ttft p90 <= 150 ms: not proven at 99 % confidence (3 of 3 missed" in text
    assert "others 20%" in text
    assert "noisy" in text


def test_invalid_runs_are_marked_in_table_and_list() -> None:
    text = _report(late_s=0.009).as_markdown()
    assert "base (**1 of 2 invalid**)" in text
    assert "**INVALID**" in text
    assert "late sends: p99 9.0 ms" in text


def test_failures_are_listed_by_class_with_an_example() -> None:
    report = Report(_config(arms=ARMS[:1]), "x", dict(MACHINE))
    [spec] = list_runs(ARMS[:1], (2.0,), 1, 0)
    records = [
        record(0, outcome=Outcome.FAILED, failure="error_frame", token_times_s=()),
        record(1, outcome=Outcome.REJECTED, token_times_s=()),
        record(2, kind=Kind.BAD, outcome=Outcome.BAD_REFUSED, token_times_s=()),
    ]
    report.add(RunResult(spec, "m", "now", 0.0, 3, records))
    text = report.as_markdown()
    assert "3 planned, 1 bad_refused, 1 failed, 1 rejected; failures: 1 error_frame" in text
    assert "error_frame: for example, why error_frame" in text
    assert "Ratios" not in text


def test_files_are_written(tmp_path: Path) -> None:
    report = _report()
    report.write(tmp_path / "deep" / "out")
    draw(report, tmp_path / "deep" / "out" / "report.png")
    folder = tmp_path / "deep" / "out"
    rows = [json.loads(line) for line in (folder / "requests.jsonl").read_text().splitlines()]
    assert len(rows) == 12
    assert rows[0]["run"] == "base-2rps-r0"
    assert rows[0]["token_times_s"] == [0.1, 0.2]
    assert json.loads((folder / "report.json").read_text())["format"] == 1
    assert (folder / "report.md").read_text().startswith("# Load test: base, new\n")
    assert (folder / "report.png").read_bytes().startswith(b"\x89PNG")


def test_a_session_without_any_token_can_be_drawn(tmp_path: Path) -> None:
    report = Report(_config(arms=ARMS[:1]), "x", dict(MACHINE))
    [spec] = list_runs(ARMS[:1], (None,), 1, 0)
    lost = [record(0, outcome=Outcome.FAILED, failure="connect", token_times_s=())]
    report.add(RunResult(spec, "m", "now", 0.0, 1, lost))
    draw(report, tmp_path / "empty.png")
    assert (tmp_path / "empty.png").stat().st_size > 1000
