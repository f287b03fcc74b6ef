"""Medians over seeds, ratios, table and picture of `benchmarks.lanes`."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.lanes.simulated import Figures
from benchmarks.load.compare import Spread, spread

_DOTS_PER_INCH = 120


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
    figures, ratios = {}, {}
    for field in fields(Figures):
        values = [float(getattr(each, field.name)) for each in own]
        figures[field.name] = spread(values)
        theirs = [float(getattr(each, field.name)) for each in base]
        if all(theirs):
            ratios[field.name] = spread([a / b for a, b in zip(values, theirs, strict=True)])
    return Cell(arm, load, figures, ratios)


def as_json(cells: Sequence[Cell]) -> list[dict[str, object]]:
    """For machines."""
    return [asdict(cell) for cell in cells]


def as_markdown(cells: Sequence[Cell]) -> str:
    """The table: medians over seeds, ratios with their range."""
    lines = [
        "| load | arm | TTFT mean, ms | of base | TTFT p99, ms | TBT p50, ms | TBT p99, ms "
        "| of base | E2E mean, ms | requests/s | changes |",
        "|--:|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for cell in cells:
        figures = cell.figures
        parts = [
            f"{cell.load:.0%}",
            cell.arm,
            f"{figures['ttft_mean'].median:.0f}",
            _ratio(cell.ratios["ttft_mean"]),
            f"{figures['ttft_p99'].median:.0f}",
            f"{figures['tbt_p50'].median:.1f}",
            f"{figures['tbt_p99'].median:.1f}",
            _ratio(cell.ratios["tbt_p99"]),
            f"{figures['e2e_mean'].median:.0f}",
            f"{figures['rate'].median:.2f}",
            f"{figures['switches'].median:.0f}",
        ]
        lines.append(f"| {' | '.join(parts)} |")
    return "\n".join(lines) + "\n"


def save_picture(cells: Sequence[Cell], path: Path) -> None:
    """Draw mean TTFT and p99 TBT of each arm by load, as PNG."""
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    ttft, tbt = figure.subplots(1, 2)
    _draw(ttft, cells, "ttft_mean")
    ttft.set(title="mean TTFT", yscale="log")
    _draw(tbt, cells, "tbt_p99")
    tbt.set(title="p99 of gaps between tokens", yscale="log")
    tbt.legend(fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.savefig(path, dpi=_DOTS_PER_INCH)


def _draw(axes: Axes, cells: Sequence[Cell], name: str) -> None:
    for number, arm in enumerate(dict.fromkeys(cell.arm for cell in cells)):
        own = [cell for cell in cells if cell.arm == arm]
        spreads = [cell.figures[name] for cell in own]
        axes.errorbar(
            [cell.load for cell in own],
            [each.median for each in spreads],
            yerr=(
                [each.median - each.low for each in spreads],
                [each.high - each.median for each in spreads],
            ),
            marker="o",
            capsize=3,
            label=arm,
            color=f"C{number}",
        )
    axes.set(xlabel="offered load, of what the base arm can serve", ylabel="ms")
    axes.grid(alpha=0.3)


def _ratio(values: Spread) -> str:
    return f"{values.median:.2f} [{values.low:.2f}, {values.high:.2f}]"
