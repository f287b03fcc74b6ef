"""Medians, table and picture of `benchmarks.rank_steps`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from benchmarks.load.spread import Spread, spread
from benchmarks.reporting import markdown_table, new_figure, ranges

SIZES = (1, 2, 4)
PHASES = ("prefill", "decode")

# Seconds of a step, and of the sums in it, of every round by size and phase.
Times = Mapping[tuple[int, str], list[tuple[float, float]]]


@dataclass(frozen=True, slots=True)
class Cell:
    """One phase on one number of ranks; the share of sums is of each round."""

    ranks: int
    phase: str
    ms: Spread
    sums: Spread


def cells(ranks: Sequence[Times]) -> list[Cell]:
    """A cell for each arm, from what each rank has measured."""
    result = []
    for size in SIZES:
        for phase in PHASES:
            rounds = [max(r) for r in zip(*(t[size, phase] for t in ranks[:size]), strict=True)]
            ms = spread([1000 * total for total, _ in rounds])
            result.append(Cell(size, phase, ms, spread([sums / total for total, sums in rounds])))
    return result


def as_markdown(found: Sequence[Cell]) -> str:
    """The table: medians, and the range of the rounds in brackets."""
    base = {cell.phase: cell.ms.median for cell in found if cell.ranks == 1}
    rows = [
        (
            str(cell.ranks),
            cell.phase,
            cell.ms.text(1),
            f"{cell.ms.median / base[cell.phase]:.2f}",
            f"{cell.sums.median:.0%}",
        )
        for cell in found
    ]
    return markdown_table(("ranks", "phase", "step, ms", "of one rank", "sums"), rows)


def draw(found: Sequence[Cell]) -> Figure:
    """Step times by ranks, the sums shaded."""
    figure = new_figure(9, 4)
    for axes, phase in zip(figure.subplots(1, 2), PHASES, strict=True):
        own = [cell for cell in found if cell.phase == phase]
        names, times = [str(cell.ranks) for cell in own], [cell.ms.median for cell in own]
        errors = ranges([cell.ms for cell in own])
        axes.bar(names, times, yerr=errors, capsize=3, color="C0", label="step")
        sums = [cell.ms.median * cell.sums.median for cell in own]
        axes.bar(names, sums, color="C1", label="of which sums over ranks")
        axes.set(title=phase, xlabel="ranks", ylabel="ms")
        axes.legend(loc="best", fontsize="small")
    return figure
