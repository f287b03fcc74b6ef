"""The benchmark of the three layouts on sizes that say nothing about speed."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from benchmarks.latent import main
from benchmarks.latents.arms import ARMS, Arm, Sizes, Timing, make_steps, time_arms
from benchmarks.latents.report import as_markdown, cells
from benchmarks.rank_processes import run_ranks

from twinflow.parallel.ranks.base import Seat

CPU = torch.device("cpu")


@pytest.mark.slow
def test_two_ranks_measure_every_size_and_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--contexts", "64", "160", "--heads", "2", "4", "--batch", "2", "--rounds", "3"]
    assert main([*flags, "--device", "cpu", "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert (tmp_path / "report.md").read_text("utf-8") == out
    report = json.loads((tmp_path / "report.json").read_text("utf-8"))
    assert "--contexts 64 160 --heads 2 4" in report["heading"][0]
    found = [(c["sizes"]["heads"], c["sizes"]["context"], c["arm"]) for c in report["cells"]]
    assert found == [(h, c, arm) for h in (2, 4) for c in (64, 160) for arm in ARMS]
    for cell in report["cells"]:
        assert 0 < cell["kernel_ms"]["low"] <= cell["kernel_ms"]["median"]
        assert cell["ms"]["count"] == 3
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")
    assert "4 heads" not in out, "progress is no result"


@pytest.mark.parametrize("context", [1024, 4096])
def test_bytes_of_a_rank_are_those_of_the_papers(context: int) -> None:
    sizes = Sizes(heads=2, context=context, batch=1)
    cached = {kind: Arm(kind, sizes, Seat(1, 2), CPU).cached_bytes for kind in ARMS}
    assert cached["replicated"] == context * 576 * 2
    assert cached["tpla"] * 576 == cached["replicated"] * 320
    assert cached["dcp"] * 2 == cached["replicated"]
    assert cached["tpla exact"] == cached["tpla"]


def test_a_rank_alone_is_timed_without_the_others() -> None:
    """As on a machine with one CUDA device: a seat cannot exchange anything."""
    sizes = Sizes(heads=4, context=96, batch=2)
    steps, cached = make_steps(sizes, Seat(0, 2), CPU, alone=True)
    assert list(steps) == list(cached) == ["replicated", "dcp", "tpla"]
    for step in steps.values():
        timing = step()
        assert timing.kernel > 0
        assert timing.total > 0


def test_layouts_take_turns_and_warming_up_does_not_count() -> None:
    calls: list[str] = []

    def step(kind: str) -> Timing:
        calls.append(kind)
        return Timing(float(len(calls)), float(len(calls)))

    steps = {kind: partial(step, kind) for kind in ARMS}
    found = time_arms(steps, rounds=2, wait=lambda: calls.append("wait"), warm_up=1)
    assert calls == [name for _ in range(3) for kind in ARMS for name in ("wait", kind)]
    assert [timing.total for timing in found["replicated"]] == [10.0, 18.0]


def test_a_round_lasts_as_long_as_its_slowest_rank_and_ratios_are_taken_in_it() -> None:
    def timings(*seconds: float) -> list[Timing]:
        return [Timing(s / 2, s) for s in seconds]

    first = {"replicated": timings(1, 4), "dcp": timings(2, 1), "tpla": timings(1, 1)}
    second = {"replicated": timings(2, 2), "dcp": timings(1, 2), "tpla": timings(1, 3)}
    sizes = Sizes(heads=2, context=64, batch=1)
    found = cells(sizes, {"replicated": 1152, "dcp": 576, "tpla": 640}, [first, second])
    dcp, tpla = found[1], found[2]
    assert (dcp.ms.low, dcp.ms.high) == (2000, 2000)
    assert (dcp.ratio.low, dcp.ratio.high) == (0.5, 1.0)
    assert (tpla.kernel_ms.low, tpla.kernel_ms.high) == (500, 1500)
    assert (tpla.ratio.low, tpla.ratio.high) == (0.5, 0.75)
    assert tpla.bytes_ratio == pytest.approx(320 / 576)
    row = as_markdown(found).splitlines()[-1]
    assert row.startswith("| 2 | 64 | tpla | 1 | 0.556 | 2000.00 [1000.00, 3000.00] | 0.62 [")


def fail(rank: int, size: int, folder: Path, message: str) -> None:
    raise ValueError(f"{message} {rank} of {size}")


@pytest.mark.slow
def test_an_error_of_a_rank_is_raised_where_ranks_are_started() -> None:
    with pytest.raises(ValueError, match="nothing works on rank 0 of 2"):
        run_ranks(2, fail, "nothing works on rank")
