"""Medians, ranges and ratios over the repeats of a comparison. Pure; drops no run."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.load.runs import RunSpec
from benchmarks.load.spread import Spread, spread
from benchmarks.load.stats import Distribution
from benchmarks.load.summary import Summary


@dataclass(frozen=True, slots=True)
class Cell:
    """One arm at one rate.

    Attributes:
        arm: name of the arm.
        rate: requests per second; None if a trace sets the times.
        runs: how many runs it had.
        invalid_runs: how many of them must not be used.
        figures: each headline figure over the repeats.
        ratios: each figure against the first arm's in the same repeat, so that what the two
            runs have in common cancels; empty for the first arm.
    """

    arm: str
    rate: float | None
    runs: int
    invalid_runs: int
    figures: dict[str, Spread]
    ratios: dict[str, Spread]


def _part(
    pick: Callable[[Summary], Distribution | None], part: Callable[[Distribution], float]
) -> Callable[[Summary], float | None]:
    def figure(summary: Summary) -> float | None:
        found = pick(summary)
        return None if found is None else part(found)

    return figure


def _latency(
    name: str, pick: Callable[[Summary], Distribution | None]
) -> dict[str, Callable[[Summary], float | None]]:
    return {
        f"{name}_p50_ms": _part(pick, lambda found: found.p50),
        f"{name}_p90_ms": _part(pick, lambda found: found.p90),
        f"{name}_p99_ms": _part(pick, lambda found: found.p99),
        f"{name}_max_ms": _part(pick, lambda found: found.max),
    }


FIGURES: dict[str, Callable[[Summary], float | None]] = {
    "offered_rps": lambda summary: summary.offered_rps,
    "achieved_rps": lambda summary: summary.achieved_rps,
    "goodput_rps": lambda summary: summary.goodput_rps,
    "attainment": lambda summary: summary.attainment,
    "output_tokens_per_s": lambda summary: summary.output_tokens_per_s,
    **_latency("ttft", lambda summary: summary.ttft_ms),
    **_latency("tpot", lambda summary: summary.tpot_ms),
    **_latency("itl", lambda summary: summary.itl_ms),
    **_latency("e2e", lambda summary: summary.e2e_ms),
}


def compare(runs: Sequence[tuple[RunSpec, Summary]]) -> list[Cell]:
    """One cell per arm and rate, in the order in which they first ran."""
    keys = list(dict.fromkeys((spec.rate, spec.arm.name) for spec, _ in runs))
    return [_cell(rate, arm, runs) for rate, arm in keys]


def _cell(rate: float | None, arm: str, runs: Sequence[tuple[RunSpec, Summary]]) -> Cell:
    own = _by_repeat(rate, arm, runs)
    first = runs[0][0].arm.name
    base = {} if arm == first else _by_repeat(rate, first, runs)
    return Cell(
        arm=arm,
        rate=rate,
        runs=len(own),
        invalid_runs=sum(bool(summary.invalid) for summary in own.values()),
        figures=_spreads([{n: get(s) for n, get in FIGURES.items()} for s in own.values()]),
        ratios=_spreads([_ratios(own[r], base[r]) for r in own if r in base]),
    )


def _by_repeat(
    rate: float | None, arm: str, runs: Sequence[tuple[RunSpec, Summary]]
) -> dict[int, Summary]:
    return {spec.repeat: s for spec, s in runs if spec.rate == rate and spec.arm.name == arm}


def _ratios(own: Summary, base: Summary) -> dict[str, float | None]:
    ratios: dict[str, float | None] = {}
    for name, get in FIGURES.items():
        mine, theirs = get(own), get(base)
        ratios[name] = mine / theirs if mine is not None and theirs else None
    return ratios


def _spreads(rows: Sequence[dict[str, float | None]]) -> dict[str, Spread]:
    found = {}
    for name in FIGURES:
        values = [value for row in rows if (value := row.get(name)) is not None]
        if values:
            found[name] = spread(values)
    return found
