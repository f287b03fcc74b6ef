"""Draws the outcome of a simulation: distributions of TTFT and TBT, and TTFT over time."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from twinflow.cluster.simulator.measures import Measures

_DOTS_PER_INCH = 120
_MOST_POINTS = 20_000


def draw(measures: Measures, path: Path) -> None:
    """Write the picture, in the format that the name says."""
    figure = Figure(figsize=(12, 4), layout="constrained")
    FigureCanvasAgg(figure)
    ttft, gaps, timeline = figure.subplots(1, 3)
    ordered = sorted(1000.0 * seconds for seconds in measures.ttft)
    _steps(ttft, ordered, [(rank + 1) / len(ordered) for rank in range(len(ordered))])
    lengths, shares = measures.gaps.distribution()
    _steps(gaps, [1000.0 * seconds for seconds in lengths], list(shares))
    ttft.set(title="TTFT, share of requests at most x", xlabel="ms", ylim=(0, 1.01))
    gaps.set(title="TBT, share of gaps at most x", xlabel="ms", ylim=(0, 1.01))
    every = max(1, len(measures.ttft) // _MOST_POINTS)
    times, values = measures.arrived[::every], measures.ttft[::every]
    timeline.plot(times, [1000.0 * seconds for seconds in values], ".", markersize=2)
    timeline.set(title="TTFT by arrival", xlabel="s", ylabel="ms")
    for axes in (ttft, gaps, timeline):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=_DOTS_PER_INCH)


def _steps(axes: Axes, values: list[float], shares: list[float]) -> None:
    if values:
        axes.step(values, shares, where="post")
        axes.set_xscale("log")
