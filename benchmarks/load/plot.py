"""Draws a session as one picture: latency distributions, time line and goodput."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.load.compare import Cell
from benchmarks.load.records import RequestRecord
from benchmarks.load.report import Report

_DOTS_PER_INCH = 120
_LOG_ABOVE = 20.0

Values = Callable[[RequestRecord], Sequence[float]]


def _ttft(record: RequestRecord) -> Sequence[float]:
    return [] if record.ttft_s is None else [record.ttft_s]


def _gaps(record: RequestRecord) -> Sequence[float]:
    return record.gaps_s


def _by_label(report: Report) -> Iterator[tuple[str, list[RequestRecord]]]:
    """Records of each arm and rate, all repeats together."""
    grouped: dict[str, list[RequestRecord]] = {}
    for result, _ in report.runs:
        rate = "trace" if result.spec.rate is None else f"{result.spec.rate:g}/s"
        grouped.setdefault(f"{result.spec.arm.name}, {rate}", []).extend(result.records)
    yield from grouped.items()


def _draw_cdf(axes: Axes, report: Report, name: str, values: Values) -> None:
    for label, records in _by_label(report):
        ordered = sorted(1000 * value for record in records for value in values(record))
        shares = [(rank + 1) / len(ordered) for rank in range(len(ordered))]
        if ordered:
            axes.step(ordered, shares, where="post", label=label)
        if ordered and ordered[-1] > _LOG_ABOVE * ordered[0]:
            axes.set_xscale("log")
    axes.set(title=f"{name}, share of samples at most x", xlabel="ms", ylim=(0, 1.01))


def _draw_timeline(axes: Axes, report: Report) -> None:
    for label, records in _by_label(report):
        points = [(r.due_s, 1000 * r.ttft_s) for r in records if r.ttft_s is not None]
        if points:
            axes.plot(*zip(*points, strict=True), ".", markersize=3, label=label)
    axes.set(title="TTFT by intended send time", xlabel="s since start", ylabel="ms")


def _draw_goodput(axes: Axes, cells: Sequence[Cell]) -> None:
    for arm in dict.fromkeys(cell.arm for cell in cells):
        points = sorted(
            (cell.figures["offered_rps"].median, cell.figures["goodput_rps"])
            for cell in cells
            if cell.arm == arm and "goodput_rps" in cell.figures
        )
        offered = [x for x, _ in points]
        middle = [spread.median for _, spread in points]
        below = [spread.median - spread.low for _, spread in points]
        above = [spread.high - spread.median for _, spread in points]
        axes.errorbar(offered, middle, yerr=(below, above), marker="o", capsize=3, label=arm)
    axes.set(title="goodput", xlabel="offered requests/s", ylabel="good requests/s")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)


def draw(report: Report, path: Path) -> None:
    """Write the picture of a report with at least one run as PNG."""
    figure = Figure(figsize=(11, 8), layout="constrained")
    FigureCanvasAgg(figure)
    ((ttft, gaps), (timeline, goodput)) = figure.subplots(2, 2)
    _draw_cdf(ttft, report, "TTFT", _ttft)
    _draw_cdf(gaps, report, "gap between tokens (ITL)", _gaps)
    _draw_timeline(timeline, report)
    _draw_goodput(goodput, report.cells())
    for axes in (ttft, gaps, timeline, goodput):
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[1]:
            axes.legend(loc="best", fontsize="small")
    figure.savefig(path, dpi=_DOTS_PER_INCH)
