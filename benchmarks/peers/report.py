"""Table and picture of a race."""

from dataclasses import asdict, dataclass
from typing import Any

from matplotlib.figure import Figure

from benchmarks.peers.contestants import CONTESTANTS
from benchmarks.peers.limits import Rates
from benchmarks.peers.model_size import ModelSize
from benchmarks.peers.race import DECODE, PREFILL, Cell, Found
from benchmarks.reporting import Report, error_bars, markdown_table, new_figure


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

    def report(self) -> Report:
        """The same for readers and for machines."""
        return Report(self.heading, self._text(), self._figures(), self._draw)

    def _text(self) -> str:
        limits = self.found.limits
        absent = [f"\n{name} did not take part: {why}\n" for name, why in self.missing.items()]
        gone = [f"\n{name} fell out: {why}\n" for name, why in self.found.gone.items()]
        return (
            f"\nOne core reads {limits.read_bytes / 1e9:.1f} GB/s and multiplies "
            f"{limits.flop / 1e9:.0f} GFLOP/s in float32 (best of the rounds).\n\n"
            f"{self._rates()}\n{self._contestants()}{''.join((*absent, *gone))}"
        )

    def _figures(self) -> dict[str, Any]:
        cells = [asdict(cell) | {"limit_share": self._share(cell)} for cell in self.found.cells()]
        return {
            "limits": asdict(self.found.limits),
            "model": asdict(self.model),
            "cells": cells,
            "contestants": {name: asdict(each) for name, each in self.started.items()},
            "missing": self.missing | self.found.gone,
        }

    def _rates(self) -> str:
        first = next(iter(self.found.first_tokens), "")
        heads = ("phase", "size", "engine", "tokens per core-second", "tokens/s", f"{first} by it")
        rows = [
            (
                cell.phase,
                str(cell.size),
                cell.arm,
                cell.per_cpu.text(1),
                cell.per_wall.text(1),
                cell.lead.text(),
                f"{self._share(cell):.0%}",
            )
            for cell in self.found.cells()
        ]
        return markdown_table((*heads, "of the limit"), rows)

    def _share(self, cell: Cell) -> float:
        bits = CONTESTANTS[cell.arm].weight_bits if cell.arm in CONTESTANTS else 16
        limit = limit_rate(cell.phase, cell.size, self.model, bits, self.found.limits)
        return cell.per_cpu.median / limit

    def _contestants(self) -> str:
        heads = ("engine", "version", "ready after, s", "peak memory, MiB", "same first tokens")
        rows = []
        for name, each in self.started.items():
            same = str(self.found.same_tokens(name)) if name in self.found.first_tokens else "-"
            memory = f"{each.peak_bytes / 2**20:.0f}"
            rows.append((name, each.version, f"{each.start_s:.1f}", memory, same))
        return markdown_table(heads, rows)

    def _draw(self) -> Figure:
        figure, cells = new_figure(10, 4.5), self.found.cells()
        labels = {DECODE: "sequences", PREFILL: "tokens of the prompt"}
        for axes, (phase, label) in zip(figure.subplots(1, 2), labels.items(), strict=True):
            for arm in dict.fromkeys(cell.arm for cell in cells):
                own = [cell for cell in cells if (cell.arm, cell.phase) == (arm, phase)]
                error_bars(axes, [c.size for c in own], [c.per_cpu for c in own], label=arm)
            axes.set(title=phase, xlabel=label, ylabel="tokens per core-second")
            axes.set(xscale="log", yscale="log")
            axes.legend(loc="best", fontsize="x-small")
        return figure


def limit_rate(phase: str, size: int, model: ModelSize, bits: float, limits: Rates) -> float:
    """Tokens per second that the machine allows: each step reads every matrix once and multiplies
    every row with it, whichever takes longer. Attention and what is no matrix cost nothing here."""
    rows = size
    multiplied = model.layers * rows + model.head * (rows if phase == DECODE else 1)
    read_s = (model.layers + model.head) * bits / 8 / limits.read_bytes
    return rows / max(read_s, 2 * multiplied / limits.flop)
