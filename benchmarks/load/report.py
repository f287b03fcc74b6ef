"""Renders a session as JSON, Markdown and one line of JSON per request. Draws no plot.

The report says what was run, on what, and who else used the machine. Secrets never reach it: the
API key is read from a file whose path alone is recorded.
"""

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.load.compare import Cell, compare
from benchmarks.load.config import BenchConfig
from benchmarks.load.runs import RunResult, RunSpec
from benchmarks.load.slo import Claim
from benchmarks.load.spread import Spread
from benchmarks.load.summary import Summary, summarise

_DIGITS = 4
_COLUMNS = {
    "offered_rps": "offered/s",
    "achieved_rps": "ok/s",
    "goodput_rps": "goodput/s",
    "attainment": "attained",
    "output_tokens_per_s": "tokens/s",
    "ttft_p50_ms": "TTFT p50",
    "ttft_p90_ms": "p90",
    "ttft_p99_ms": "p99",
    "ttft_max_ms": "max",
    "tpot_p50_ms": "TPOT p50",
    "tpot_p90_ms": "p90",
    "tpot_p99_ms": "p99",
    "itl_p50_ms": "ITL p50",
    "itl_p90_ms": "p90",
    "itl_p99_ms": "p99",
    "itl_max_ms": "max gap",
    "e2e_p50_ms": "E2E p50",
    "e2e_p90_ms": "p90",
    "e2e_p99_ms": "p99",
}


@dataclass(slots=True)
class Report:
    """A session so far; written again after each run, so that an interrupted one leaves a report.

    Attributes:
        config: what was asked for.
        command: how it was started.
        machine: where it runs.
        runs: results and their figures, in the order made.
    """

    config: BenchConfig
    command: str
    machine: dict[str, Any]
    runs: list[tuple[RunResult, Summary]] = field(default_factory=list)

    def add(self, result: RunResult) -> Summary:
        """Take a run; returns its figures."""
        summary = summarise(result.planned, result.records, self.config.objectives)
        self.runs.append((result, summary))
        return summary

    @property
    def planned_runs(self) -> int:
        """Runs of a complete session."""
        config = self.config
        return len(config.arms) * len(config.rates) * config.repeats

    def cells(self) -> list[Cell]:
        """Figures per arm and rate."""
        return compare([(result.spec, summary) for result, summary in self.runs])

    def as_json(self) -> str:
        """Everything but the single requests."""
        document = {
            "format": 1,
            "complete": len(self.runs) == self.planned_runs,
            "command": self.command,
            "machine": self.machine,
            "config": dataclasses.asdict(self.config),
            "cells": [dataclasses.asdict(cell) for cell in self.cells()],
            "runs": [_run_json(result, summary) for result, summary in self.runs],
        }
        return json.dumps(_rounded(document), indent=1, default=str) + "\n"

    def as_markdown(self) -> str:
        """The table, and what a reader must know to use it."""
        cells = self.cells()
        lines = [f"# Load test: {', '.join(arm.name for arm in self.config.arms)}", ""]
        lines += _header(self)
        lines += ["", "Milliseconds; latencies count from the intended send time.", ""]
        lines += _table(cells)
        lines += _ratio_table(cells)
        lines += ["", "## Runs", ""]
        for result, summary in self.runs:
            lines += _run_lines(result, summary)
        return "\n".join(lines) + "\n"

    def write(self, folder: Path) -> None:
        """Write report.json, report.md and requests.jsonl."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "report.json").write_text(self.as_json(), encoding="utf-8")
        (folder / "report.md").write_text(self.as_markdown(), encoding="utf-8")
        with (folder / "requests.jsonl").open("w", encoding="utf-8") as file:
            for result, _ in self.runs:
                for record in result.records:
                    row = {"run": result.spec.label, **dataclasses.asdict(record)}
                    file.write(json.dumps(_rounded(row, 6)) + "\n")


def _run_json(result: RunResult, summary: Summary) -> dict[str, Any]:
    return {
        "arm": result.spec.arm.name,
        "rate": result.spec.rate,
        "repeat": result.spec.repeat,
        "seed": result.spec.seed,
        "content_seed": result.spec.content_seed,
        "model": result.model,
        "started_at": result.started_at,
        "cpu": None if result.cpu is None else dataclasses.asdict(result.cpu),
        "valid": not summary.invalid,
        "summary": dataclasses.asdict(summary),
    }


def _rounded(value: Any, digits: int = _DIGITS) -> Any:
    """Round every float of a JSON document; what is not finite becomes null."""
    if isinstance(value, float):
        return round(value, digits) if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _rounded(item, digits) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(item, digits) for item in value]
    return value


def _header(report: Report) -> list[str]:
    config, machine = report.config, report.machine
    objectives = ", ".join(f"{each.measure} <= {each.limit_ms:g} ms" for each in config.objectives)
    return [
        f"- command: `{report.command}`",
        f"- machine: {machine.get('cpu')}, {machine.get('cores')} cores, "
        f"Python {machine.get('python')}, {machine.get('kernel')}; "
        f"generator on cores {machine.get('generator_cores', 'unknown')}",
        f"- objectives: {objectives or 'none: goodput counts every request that ended well'}",
        f"- runs: {len(report.runs)} of {report.planned_runs}, interleaved; "
        "cells are medians over repeats, ranges in brackets",
    ]


def _number(value: float) -> str:
    return f"{value:.2f}" if abs(value) < 100 else f"{value:.0f}"


def _cell_text(spread: Spread | None) -> str:
    if spread is None:
        return "-"
    text = _number(spread.median)
    if spread.count == 1:
        return text
    return f"{text} [{_number(spread.low)}, {_number(spread.high)}]"


def _rows(title: str, rows: Sequence[tuple[str, str, dict[str, Spread]]]) -> list[str]:
    lines = [
        f"| {title} | rate | {' | '.join(_COLUMNS.values())} |",
        "|---" * (len(_COLUMNS) + 2) + "|",
    ]
    for name, rate, figures in rows:
        texts = (_cell_text(figures.get(column)) for column in _COLUMNS)
        lines.append(f"| {name} | {rate} | {' | '.join(texts)} |")
    return lines


def _rate_text(rate: float | None) -> str:
    return "trace" if rate is None else f"{rate:g}"


def _table(cells: Sequence[Cell]) -> list[str]:
    rows = []
    for cell in cells:
        mark = f" (**{cell.invalid_runs} of {cell.runs} invalid**)" if cell.invalid_runs else ""
        rows.append((cell.arm + mark, _rate_text(cell.rate), cell.figures))
    return _rows("arm", rows)


def _ratio_table(cells: Sequence[Cell]) -> list[str]:
    compared = [cell for cell in cells if cell.ratios]
    if not compared:
        return []
    rows = [(cell.arm, _rate_text(cell.rate), cell.ratios) for cell in compared]
    return ["", f"Ratios to {cells[0].arm}, repeat by repeat:", "", *_rows("arm", rows)]


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items())) or "none"


def _claim_text(claim: Claim) -> str:
    text = f"{claim.measure} p{claim.percentile:g} <= {claim.limit_ms:g} ms"
    state = "proven" if claim.proven else "not proven"
    return (
        f"{text}: {state} at 99 % confidence "
        f"({claim.misses} of {claim.requests} missed; {claim.needed} requests needed)"
    )


def _run_lines(result: RunResult, summary: Summary) -> list[str]:
    spec: RunSpec = result.spec
    state = "valid" if not summary.invalid else "**INVALID**"
    late = "-" if summary.lateness_ms is None else f"{summary.lateness_ms.p99:.2f} ms"
    lines = [
        f"- `{spec.label}` ({result.model}): {state}; {summary.planned} planned, "
        f"{_counts(summary.outcomes)}; failures: {_counts(summary.failures)}; "
        f"late sends p99 {late}",
    ]
    lines += [f"  - {reason}" for reason in summary.invalid]
    lines += [f"  - {name}: for example, {text}" for name, text in summary.examples.items()]
    for name, bound in {
        "TTFT": summary.ttft_p99_bound_ms,
        "E2E": summary.e2e_p99_bound_ms,
    }.items():
        if bound is not None:
            lines.append(f"  - p99 of {name} is at most {bound:.1f} ms at 99 % confidence")
    if summary.rejection_ms is not None:
        lines.append(f"  - rejections took {summary.rejection_ms.p99:.1f} ms at p99")
    lines += [f"  - {_claim_text(claim)}" for claim in summary.claims]
    lines += [f"  - {note}" for note in summary.notes]
    if result.cpu is not None:
        advice = "; **noisy: repeat it when the machine is quiet**" if result.cpu.noisy else ""
        lines.append(f"  - CPU of all cores: {result.cpu}{advice}")
    return lines
