"""The benchmark of one process's decode and prefill: what it makes of times, and a small run."""

import json
from pathlib import Path

import pytest
from benchmarks import decode
from benchmarks.decode import Plan, main, measure
from tests.support.checkpoints import write_checkpoint
from tests.support.kernels import native_library

PLAN = Plan(batches=(2,), prompts=(10,), tokens=4, rounds=3)


def test_rates_and_ratios_follow_from_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that only the arms move: a second a prompt token, or two; as many a decode step."""
    now = 0.0

    class Clock:
        @staticmethod
        def process_time() -> float:
            return now

    def arm(seconds: float) -> decode.Arm:
        def generate(prompts: list[list[int]], count: int) -> None:
            nonlocal now
            now += seconds * (len(prompts[0]) + count - 1)

        return generate

    monkeypatch.setattr(decode, "time", Clock)
    found = measure({"fast": arm(1.0), "slow": arm(2.0)}, PLAN)
    rates = {(cell.arm, cell.phase): (cell.rate.median, cell.ratio.median) for cell in found}
    assert rates == {
        ("fast", "decode"): (2.0, 2.0),
        ("slow", "decode"): (1.0, 1.0),
        ("fast", "prefill"): (1.0, 2.0),
        ("slow", "prefill"): (0.5, 1.0),
    }
    assert all(cell.rate.count == 3 for cell in found)


@pytest.mark.slow
def test_a_small_run_leaves_table_figures_and_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    native_library()
    monkeypatch.setattr(decode, "_BANDWIDTH_BYTES", 1 << 20)
    model, out = write_checkpoint(tmp_path / "model"), tmp_path / "out"
    sizes = ["--batches", "2", "--prompts", "9", "--tokens", "2", "--rounds", "1"]
    assert main([str(model), *sizes, "--out", str(out)]) == 0
    cells = json.loads((out / "report.json").read_text())["cells"]
    assert [cell["arm"] for cell in cells] == [
        "twinflow, native",
        "twinflow, torch",
        "transformers",
    ] * 2
    assert all(cell["rate"]["median"] > 0 for cell in cells)
    assert "| decode | 2 | twinflow, native |" in (out / "report.md").read_text()
    assert (out / "report.png").stat().st_size > 1000
