"""The race: rates follow from times, contestants take turns, and the table says what happened."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from benchmarks.peers.child import Answer, PeerError
from benchmarks.peers.limits import Rates
from benchmarks.peers.model_size import ModelSize
from benchmarks.peers.race import DECODE, PREFILL, Found, Plan, race
from benchmarks.peers.report import RaceReport, Started, limit_rate

PLAN = Plan(batches=(2,), prompts=(10,), tokens=4, rounds=3)


class Steady:
    """Takes so many seconds for each prompt token and each further step; counts its orders."""

    def __init__(self, name: str, seconds: float, lasts: int = 1000) -> None:
        self.name = name
        self.orders = 0
        self._seconds = seconds
        self._lasts = lasts

    def generate(self, prompts: Sequence[Sequence[int]], count: int) -> Answer:
        self.orders += 1
        if self.orders > self._lasts:
            raise PeerError(f"{self.name}: tired")
        seconds = self._seconds * (len(prompts[0]) + count - 1)
        return Answer(2 * seconds, seconds, [[int(self._seconds)] * count for _ in prompts])


def run(*runners: Steady) -> Found:
    rates = iter([Rates(5.0, 1.0), Rates(4.0, 9.0), Rates(3.0, 2.0), Rates(1.0, 1.0)])
    return race(runners, PLAN, lambda: next(rates), lambda text: None)


def test_rates_and_leads_follow_from_times() -> None:
    found = run(Steady("fast", 1.0), Steady("slow", 2.0))
    rates = {
        (cell.arm, cell.phase): (cell.per_cpu.median, cell.per_wall.median, cell.lead.median)
        for cell in found.cells()
    }
    assert rates == {
        ("fast", DECODE): (2.0, 1.0, 1.0),
        ("slow", DECODE): (1.0, 0.5, 2.0),
        ("fast", PREFILL): (1.0, 0.5, 1.0),
        ("slow", PREFILL): (0.5, 0.25, 2.0),
    }
    assert all(cell.per_cpu.count == PLAN.rounds for cell in found.cells())
    assert found.limits == Rates(5.0, 9.0)
    assert (found.same_tokens("fast"), found.same_tokens("slow")) == (16, 0)


def test_who_fails_falls_out_and_the_others_go_on() -> None:
    found = run(Steady("fast", 1.0), Steady("weak", 1.0, lasts=7))
    assert found.gone == {"weak": "weak: tired"}
    counts = {(c.arm, c.phase): c.per_cpu.count for c in found.cells()}
    # One order tells the first tokens, three are the round that warms up, three the first one.
    assert counts == {
        ("fast", DECODE): 3,
        ("fast", PREFILL): 3,
        ("weak", DECODE): 1,
        ("weak", PREFILL): 1,
    }


def test_the_limit_is_memory_for_few_rows_and_products_for_many() -> None:
    size, limits = ModelSize(layers=90, head=10), Rates(read_bytes=200.0, flop=2000.0)
    # 100 elements of 2 bytes are read in a second, in which 10 rows can be multiplied.
    assert limit_rate(DECODE, 1, size, 16, limits) == pytest.approx(1.0)
    assert limit_rate(DECODE, 5, size, 16, limits) == pytest.approx(5.0)
    assert limit_rate(DECODE, 40, size, 16, limits) == pytest.approx(10.0)
    # A prompt needs the head once.
    assert limit_rate(PREFILL, 100, size, 16, limits) == pytest.approx(100 / (2 * 9010 / 2000))


def test_the_report_has_every_contestant_and_those_who_are_missing(tmp_path: Path) -> None:
    found = run(Steady("fast", 1.0), Steady("weak", 1.0, lasts=7))
    report = RaceReport(
        "a heading",
        ModelSize(90, 10),
        found,
        {"fast": Started("1.0", 2.0, 3 << 20)},
        {"absent": "absent: not installed"},
    )
    report.report().write(tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "| decode | 2 | fast | 2.0 | 1.0 | 1.00 |" in text
    assert "| fast | 1.0 | 2.0 | 3 | 16 |" in text
    assert "absent did not take part: absent: not installed" in text
    assert "weak fell out: weak: tired" in text
    figures = json.loads((tmp_path / "report.json").read_text())
    assert figures["missing"] == {"absent": "absent: not installed", "weak": "weak: tired"}
    assert (tmp_path / "report.png").stat().st_size > 1000
