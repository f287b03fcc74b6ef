"""Draws a fit against what was measured."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from twinflow.runtime.cost.base import StepTimes
from twinflow.runtime.cost.fit import Measurement

_DOTS_PER_INCH = 120


def draw_fit(
    times: StepTimes,
    fitting: Sequence[Measurement],
    checking: Sequence[Measurement],
    path: Path,
) -> None:
    """Write the picture: all steps, prompts by rows, and decode steps by batch, in milliseconds."""
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    both, prompts, decodes = figure.subplots(1, 3)
    _draw_all(both, times, fitting, checking)
    measured = [*fitting, *checking]
    _draw_by_rows(prompts, times, [each for each in measured if not _rows(each)[1]])
    _draw_by_rows(decodes, times, [each for each in measured if not _rows(each)[0]])
    both.set(title="steps", xlabel="measured ms", ylabel="predicted ms")
    prompts.set(title="prompts (line: predicted)", xlabel="rows", ylabel="ms")
    decodes.set(title="decoding (line: predicted)", xlabel="sequences", ylabel="ms")
    for axes in (both, prompts, decodes):
        axes.set(xscale="log", yscale="log")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    figure.savefig(path, dpi=_DOTS_PER_INCH)


def _draw_all(
    axes: Axes,
    times: StepTimes,
    fitting: Sequence[Measurement],
    checking: Sequence[Measurement],
) -> None:
    for label, marker, measurements in (("fitted to", ".", fitting), ("held out", "x", checking)):
        measured = [1000.0 * each.seconds for each in measurements]
        predicted = [1000.0 * times.seconds(each.load, each.share) for each in measurements]
        axes.plot(measured, predicted, marker, markersize=5, label=label)
    ends = sorted(1000.0 * each.seconds for each in fitting)
    axes.plot([ends[0], ends[-1]], [ends[0], ends[-1]], "-", linewidth=0.8, color="gray")


def _draw_by_rows(axes: Axes, times: StepTimes, measurements: Sequence[Measurement]) -> None:
    """A line for each share and context, a point for each measurement."""
    series: dict[tuple[float, int], list[Measurement]] = {}
    for each in measurements:
        rows = sum(_rows(each))
        load = each.load.segments[0]
        context = load.prefill.context + load.decode.context
        before = (context - load.prefill.rows) // rows if load.decode.rows else 0
        series.setdefault((each.share, before), []).append(each)
    for share, context in sorted(series):
        found = sorted(series[share, context], key=lambda each: sum(_rows(each)))
        counts = [sum(_rows(each)) for each in found]
        label = f"{share:.0%} of the device" + (f", {context} tokens" if context else "")
        predicted = [1000.0 * times.seconds(each.load, each.share) for each in found]
        line = axes.plot(counts, predicted, label=label)
        measured = [1000.0 * each.seconds for each in found]
        axes.plot(counts, measured, "o", markersize=3, color=line[0].get_color())


def _rows(measurement: Measurement) -> tuple[int, int]:
    """Prompt rows and decode rows."""
    segments = measurement.load.segments
    return max(s.prefill.rows for s in segments), max(s.decode.rows for s in segments)
