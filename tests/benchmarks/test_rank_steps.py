"""The benchmark of steps on ranks, at sizes that say nothing about speed."""

import json
from pathlib import Path

import pytest
from benchmarks.rank_report import PHASES, SIZES, as_markdown, cells
from benchmarks.rank_steps import main


@pytest.mark.slow
def test_every_arm_is_measured_and_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--hidden", "64", "--layers", "2", "--chunk", "32", "--batch", "2", "--rounds", "3"]
    assert main([*flags, "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert (tmp_path / "report.md").read_text("utf-8") == out
    report = json.loads((tmp_path / "report.json").read_text("utf-8"))
    assert "--hidden 64" in report["heading"][0]
    found = [(cell["ranks"], cell["phase"]) for cell in report["cells"]]
    assert found == [(size, phase) for size in SIZES for phase in PHASES]
    for cell in report["cells"]:
        assert cell["ms"]["count"] == 3
        assert 0 < cell["ms"]["low"] <= cell["ms"]["median"]
        assert 0 < cell["sums"]["low"] <= cell["sums"]["high"] < 1
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")


def test_a_round_takes_as_long_as_its_slowest_rank() -> None:
    def times(seconds: float) -> dict[tuple[int, str], list[tuple[float, float]]]:
        return {(size, phase): [(seconds, seconds / 4)] for size in SIZES for phase in PHASES}

    found = cells([times(1.0), times(2.0), times(3.0), times(4.0)])
    assert [cell.ms.median for cell in found] == [1000, 1000, 2000, 2000, 4000, 4000]
    assert {cell.sums.median for cell in found} == {0.25}
    assert "| 4 | decode | 4000.0 | 4.00 | 25% |" in as_markdown(found)
