"""Medians over seeds, ratios, table and picture of `benchmarks.lanes`."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.lanes.simulated import Figures
from benchmarks.load.spread import Spread, ratios, spread
from benchmarks.reporting import error_bars, markdown_table, new_figure


@dataclass(frozen=True, slots=True)
class Cell:
    """One arm at one load.

    Attributes:
        arm: its name.
        load: offered, as a part of what the base arm can serve.
        figures: over the seeds, by name.
        ratios: each against the base arm's with the same seed; of the base arm itself 1.
    """

    arm: str
    load: float
    figures: dict[str, Spread]
    ratios: dict[str, Spread]


def make_cell(arm: str, load: float, own: Sequence[Figures], base: Sequence[Figures]) -> Cell:
    """Summarise the seeds of an arm; `base` has those of the base arm in the same order."""
    figures, relative = {}, {}
    for field in fields(Figures):
        values = [float(getattr(each, field.name)) for each in own]
        figures[field.name] = spread(values)
        theirs = [float(getattr(each, field.name)) for each in base]
        if all(theirs):
            relative[field.name] = ratios(values, theirs)
    return Cell(arm, load, figures, relative)


def as_json(cells: Sequence[Cell]) -> list[dict[str, object]]:
    """For machines."""
    return [asdict(cell) for cell in cells]


def as_markdown(cells: Sequence[Cell]) -> str:
    """The table: medians over seeds, ratios with their range."""
    heads = (
        "load",
        "arm",
        "TTFT mean, ms",
        "of base",
        "TTFT p99, ms",
        "TBT mean, ms",
        "of base",
        "TBT p50, ms",
        "TBT p99, ms",
        "of base",
        "E2E mean, ms",
        "requests/s",
        "changes",
    )
    return markdown_table(heads, [_row(cell) for cell in cells])


def _row(cell: Cell) -> list[str]:
    figures = cell.figures
    return [
        f"{cell.load:.0%}",
        cell.arm,
        f"{figures['ttft_mean'].median:.0f}",
        cell.ratios["ttft_mean"].text(),
        f"{figures['ttft_p99'].median:.0f}",
        f"{figures['tbt_mean'].median:.1f}",
        cell.ratios["tbt_mean"].text(),
        f"{figures['tbt_p50'].median:.1f}",
        f"{figures['tbt_p99'].median:.1f}",
        cell.ratios["tbt_p99"].text(),
        f"{figures['e2e_mean'].median:.0f}",
        f"{figures['rate'].median:.2f}",
        f"{figures['switches'].median:.0f}",
    ]


def draw(cells: Sequence[Cell]) -> Figure:
    """Mean TTFT and p99 TBT of each arm by load."""
    figure = new_figure(11, 4.5)
    ttft, tbt = figure.subplots(1, 2)
    _draw(ttft, cells, "ttft_mean")
    ttft.set(title="mean TTFT", yscale="log")
    _draw(tbt, cells, "tbt_p99")
    tbt.set(title="p99 of gaps between tokens", yscale="log")
    tbt.legend(fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def _draw(axes: Axes, cells: Sequence[Cell], name: str) -> None:
    for number, arm in enumerate(dict.fromkeys(cell.arm for cell in cells)):
        own = [cell for cell in cells if cell.arm == arm]
        loads, found = [cell.load for cell in own], [cell.figures[name] for cell in own]
        error_bars(axes, loads, found, label=arm, color=f"C{number}")
    axes.set(xlabel="offered load, of what the base arm can serve", ylabel="ms")
    axes.grid(alpha=0.3)
