"""The replay of traces: the same requests for every arm, and auto among them."""

import json
from pathlib import Path

import pytest
from benchmarks.autoscaling import main, starting_at

from twinflow.cluster.simulator.traces import Shape


def trace(path: Path, requests: int) -> Path:
    """One request every other second, in Azure's format."""
    rows = [
        f"2023-11-16 18:{2 * number // 60:02}:{2 * number % 60:02}.0000000,300,20"
        for number in range(requests)
    ]
    path.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + "\n".join(rows) + "\n")
    return path


def test_every_arm_gets_every_request_and_auto_comes_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    azure = trace(tmp_path / "quiet.csv", 30)
    out = tmp_path / "out"
    assert main([str(azure), "--places", "3", "--arms", "1P1D", "2P1D", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    lines = [line for line in printed.splitlines() if line.startswith("| quiet")]
    assert lines[0].startswith("| quiet | auto |")
    outcomes = json.loads((out / "report.json").read_text())["outcomes"]
    assert {one["arm"] for one in outcomes} == {"auto", "1P1D", "2P1D"}
    assert {one["good"] for one in outcomes} == {30}
    fixed = {one["arm"]: one for one in outcomes}
    assert fixed["2P1D"]["device_hours"] == pytest.approx(1.5 * fixed["1P1D"]["device_hours"])
    # Nothing needs three workers here, and auto begins with them.
    assert fixed["1P1D"]["device_hours"] <= fixed["auto"]["device_hours"]
    assert fixed["auto"]["device_hours"] < fixed["2P1D"]["device_hours"] + 0.01
    assert (out / "report.png").exists()


def test_a_trace_begins_where_it_is_asked_to() -> None:
    shapes = [Shape(input_tokens=1, output_tokens=1, at_s=at) for at in (3.0, 5.0, 9.0)]
    assert [shape.at_s for shape in starting_at(shapes, 1)] == [0.0, 4.0]
