"""Table and picture of a race."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.load.compare import Spread
from benchmarks.peers.contestants import CONTESTANTS
from benchmarks.peers.limits import Rates
from benchmarks.peers.model_size import ModelSize
from benchmarks.peers.race import DECODE, PREFILL, Cell, Found


@dataclass(frozen=True, slots=True)
class Started:
    """How a contestant came up.

    Attributes:
        version: of its engine.
        start_s: seconds until it was ready.
        peak_bytes: most memory that its process had resident.
    """

    version: str
    start_s: float
    peak_bytes: int


@dataclass(frozen=True, slots=True)
class RaceReport:
    """A race that is over.

    Attributes:
        heading: what was run, where.
        model: its size.
        found: what was measured.
        started: contestants that started.
        missing: those that did not, and why.
    """

    heading: str
    model: ModelSize
    found: Found
    started: dict[str, Started]
    missing: dict[str, str]

    def as_markdown(self) -> str:
        """Heading, rates, contestants."""
        limits = self.found.limits
        lines = [
            self.heading,
            "",
            f"One core reads {limits.read_bytes / 1e9:.1f} GB/s and multiplies "
            f"{limits.flop / 1e9:.0f} GFLOP/s in float32 (best of the rounds).",
            "",
            *self._rates(),
            "",
            *self._contestants(),
        ]
        lines += [f"\n{name} did not take part: {why}" for name, why in self.missing.items()]
        lines += [f"\n{name} fell out: {why}" for name, why in self.found.gone.items()]
        return "\n".join(lines) + "\n"

    def as_json(self) -> dict[str, Any]:
        """Everything that the table is made of."""
        return {
            "heading": self.heading.splitlines(),
            "limits": asdict(self.found.limits),
            "model": asdict(self.model),
            "cells": [asdict(cell) | {"limit_share": self._share(cell)} for cell in self._cells],
            "contestants": {name: asdict(each) for name, each in self.started.items()},
            "missing": self.missing | self.found.gone,
        }

    @property
    def _cells(self) -> list[Cell]:
        return self.found.cells()

    def _rates(self) -> list[str]:
        first = next(iter(self.found.first_tokens), "")
        lines = [
            f"| phase | size | engine | tokens per core-second | tokens/s | {first} by it | "
            "of the limit |",
            "|---|--:|---|--:|--:|--:|--:|",
        ]
        for cell in self._cells:
            lines.append(
                f"| {cell.phase} | {cell.size} | {cell.arm} | {_text(cell.per_cpu, 1)} | "
                f"{_text(cell.per_wall, 1)} | {_text(cell.lead, 2)} | {self._share(cell):.0%} |"
            )
        return lines

    def _share(self, cell: Cell) -> float:
        bits = CONTESTANTS[cell.arm].weight_bits if cell.arm in CONTESTANTS else 16
        return limit_rate(cell.phase, cell.size, self.model, bits, self.found.limits) ** -1 * (
            cell.per_cpu.median
        )

    def _contestants(self) -> list[str]:
        lines = [
            "| engine | version | ready after, s | peak memory, MiB | first tokens that agree |",
            "|---|---|--:|--:|--:|",
        ]
        for name, each in self.started.items():
            agree = self.found.same_tokens(name) if name in self.found.first_tokens else "-"
            lines.append(
                f"| {name} | {each.version} | {each.start_s:.1f} | {each.peak_bytes / 2**20:.0f} "
                f"| {agree} |"
            )
        return lines

    def draw(self) -> Figure:
        """Rates by size, with the range of the rounds."""
        figure = Figure(figsize=(10, 4.5), layout="constrained")
        FigureCanvasAgg(figure)
        labels = {DECODE: "sequences", PREFILL: "tokens of the prompt"}
        for axes, (phase, label) in zip(figure.subplots(1, 2), labels.items(), strict=True):
            for arm in dict.fromkeys(cell.arm for cell in self._cells):
                own = [c for c in self._cells if (c.arm, c.phase) == (arm, phase)]
                _line(axes, arm, own)
            axes.set(title=phase, xlabel=label, ylabel="tokens per core-second")
            axes.set(xscale="log", yscale="log")
            axes.legend(fontsize="x-small")
        return figure


def limit_rate(phase: str, size: int, model: ModelSize, bits: float, limits: Rates) -> float:
    """Tokens per second that the machine allows: each step reads every matrix once and multiplies
    every row with it, whichever takes longer. Attention and what is no matrix cost nothing here."""
    rows = size
    multiplied = model.layers * rows + model.head * (rows if phase == DECODE else 1)
    read_s = (model.layers + model.head) * bits / 8 / limits.read_bytes
    return rows / max(read_s, 2 * multiplied / limits.flop)


def _line(axes: Any, arm: str, own: Sequence[Cell]) -> None:
    medians = [cell.per_cpu.median for cell in own]
    below = [cell.per_cpu.median - cell.per_cpu.low for cell in own]
    above = [cell.per_cpu.high - cell.per_cpu.median for cell in own]
    sizes = [cell.size for cell in own]
    axes.errorbar(sizes, medians, yerr=[below, above], marker="o", capsize=3, label=arm)


def _text(spread: Spread, digits: int) -> str:
    low, high = f"{spread.low:.{digits}f}", f"{spread.high:.{digits}f}"
    return f"{spread.median:.{digits}f} [{low}, {high}]"
