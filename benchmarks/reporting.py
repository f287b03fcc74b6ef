"""What reports of benchmarks have in common: the line about the machine, ranges, files.

A report is a heading with command and hardware, a table, the figures for machines, and a picture.
The load generator has a report of its own, of sessions (`load.report`).
"""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.load.machine import machine_facts
from benchmarks.load.spread import Spread

_DOTS_PER_INCH = 120


@dataclass(frozen=True, slots=True)
class Report:
    """One run of a benchmark.

    Attributes:
        heading: command and hardware, in Markdown.
        table: in Markdown.
        figures: for machines.
        draw: makes the picture; not called unless it is written.
    """

    heading: str
    table: str
    figures: Mapping[str, object]
    draw: Callable[[], Figure]

    def publish(self, folder: Path | None) -> None:
        """Print the table; with a folder, also write report.md, report.json and report.png."""
        sys.stdout.write(self._text)
        if folder is not None:
            self.write(folder)

    def write(self, folder: Path) -> None:
        """Write the three files."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "report.md").write_text(self._text, "utf-8")
        content = {"heading": self.heading.splitlines(), **self.figures}
        (folder / "report.json").write_text(json.dumps(content, indent=1) + "\n", "utf-8")
        self.draw().savefig(folder / "report.png", dpi=_DOTS_PER_INCH)

    @property
    def _text(self) -> str:
        return f"{self.heading}\n{self.table}"


def machine_line() -> str:
    """Hardware and versions, without a full stop."""
    facts = machine_facts()
    return (
        f"{facts['cpu']}, {facts['cores']} cores, {facts['memory']}, {facts['kernel']}, "
        f"Python {facts['python']}, torch {torch.__version__}"
    )


def markdown_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of cells."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def new_figure(width: float, height: float) -> Figure:
    """An empty picture, inches wide and high, that needs no display."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def error_bars(
    axes: Axes, at: Sequence[float], found: Sequence[Spread], label: str, color: str | None = None
) -> None:
    """A line through medians, with their ranges."""
    medians = [each.median for each in found]
    axes.errorbar(at, medians, yerr=ranges(found), marker="o", capsize=3, label=label, color=color)


def ranges(found: Sequence[Spread]) -> tuple[list[float], list[float]]:
    """How far ranges reach below and above their medians, as matplotlib wants them."""
    below = [each.median - each.low for each in found]
    return below, [each.high - each.median for each in found]
