"""Medians, ratios, tables and picture of `benchmarks.layered`."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.layering.arms import BASE
from benchmarks.layering.rounds import Outcome
from benchmarks.load.spread import Spread, ratios, spread
from benchmarks.reporting import markdown_table, new_figure, ranges

Figures = Callable[[Outcome], float]

# A column of the table: its heading, the figure, its digits, and whether ratios are given.
_COLUMNS: tuple[tuple[str, Figures, int, bool], ...] = (
    ("experts read, GB", lambda one: one.expert_gb, 1, True),
    ("experts a layer and step", lambda one: one.experts, 1, False),
    ("steps", lambda one: one.steps, 0, False),
    ("TTFT p50, s", lambda one: one.ttft_p50, 2, False),
    ("p99", lambda one: one.ttft_p99, 2, False),
    ("TBT p50, ms", lambda one: 1000 * one.tbt_p50, 0, False),
    ("p99", lambda one: 1000 * one.tbt_p99, 0, True),
    ("E2E p50, s", lambda one: one.e2e_p50, 2, False),
    ("p99", lambda one: one.e2e_p99, 2, False),
    ("computing, s", lambda one: one.wall_s, 0, False),
    ("CPU, s", lambda one: one.cpu_s, 0, False),
)
_PANELS: tuple[tuple[str, Figures], ...] = (
    ("experts read, of chunked-512", lambda one: one.expert_gb),
    ("TTFT p50, of chunked-512", lambda one: one.ttft_p50),
    ("TBT p99, of chunked-512", lambda one: one.tbt_p99),
    ("E2E p50, of chunked-512", lambda one: one.e2e_p50),
)


@dataclass(frozen=True, slots=True)
class SubjectReport:
    """What was measured of one subject.

    Attributes:
        name: of the subject.
        expert_bytes: of all its experts.
        rate: requests per second.
        rounds: outcomes by the names of the schedules.
    """

    name: str
    expert_bytes: float
    rate: float
    rounds: list[dict[str, Outcome]]

    def figure(self, arm: str, of: Figures) -> Spread:
        """Of a schedule, over the rounds."""
        return spread([of(found[arm]) for found in self.rounds])

    def ratio(self, arm: str, of: Figures) -> Spread | None:
        """The same against the base, round by round; None where that has none of it."""
        base = [of(found[BASE]) for found in self.rounds]
        return ratios([of(found[arm]) for found in self.rounds], base) if all(base) else None

    def as_markdown(self) -> str:
        """The table: medians, ranges in brackets, and ratios to the base."""
        heads = ["schedule"]
        for head, _, _, compared in _COLUMNS:
            heads += [head, f"of {BASE}"] if compared else [head]
        title = (
            f"\n{self.name}: experts of {self.expert_bytes / 1e6:.0f} MB, "
            f"{self.rate:.3g} requests a second\n\n"
        )
        return title + markdown_table(heads, [self._row(arm) for arm in self.rounds[0]])

    def _row(self, arm: str) -> list[str]:
        cells = [arm]
        for _, of, digits, compared in _COLUMNS:
            cells.append(self.figure(arm, of).text(digits))
            if compared:
                ratio = None if arm == BASE else self.ratio(arm, of)
                cells.append("" if ratio is None else ratio.text())
        return cells

    def as_json(self) -> dict[str, object]:
        """For machines: every outcome."""
        return {
            "name": self.name,
            "expert_bytes": self.expert_bytes,
            "rate": self.rate,
            "rounds": [
                {arm: asdict(outcome) for arm, outcome in found.items()} for found in self.rounds
            ],
        }


def draw(reports: Sequence[SubjectReport]) -> Figure:
    """Ratios to the base: a row for each subject, a picture for each figure."""
    figure = new_figure(4 * len(_PANELS), 3.2 * len(reports))
    rows = figure.subplots(len(reports), len(_PANELS), squeeze=False)
    for report, row in zip(reports, rows, strict=True):
        for (title, of), axes in zip(_PANELS, row, strict=True):
            _bars(axes, report, of)
            axes.set(title=title, xlabel=report.name)
    return figure


def _bars(axes: Axes, report: SubjectReport, of: Figures) -> None:
    found = {arm: report.ratio(arm, of) for arm in report.rounds[0]}
    bars = {arm: ratio for arm, ratio in found.items() if ratio is not None}
    medians = [ratio.median for ratio in bars.values()]
    if bars:
        axes.barh(list(bars), medians, xerr=ranges(list(bars.values())), capsize=3)
        axes.axvline(1.0, color="black", linewidth=0.8)
    axes.invert_yaxis()
