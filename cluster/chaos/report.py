"""What came of all faults: a line for each, tables, and the same for programs."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from statistics import median

import msgspec

from twinflow.cluster.chaos.verdict import Verdict, Wrong
from twinflow.cluster.cli.tables import aligned

_FIGURES = ("requests", "succeeded", "noticed s", "worst", "whole again s", "worst", "violations")
_CELLS = ("target", "fault", "moment", "runs", *_FIGURES)
_FAULTS = ("target", "fault", "moments", "runs", *_FIGURES)


class Report(msgspec.Struct, frozen=True):
    """A matrix so far, as it is kept in a file.

    Attributes:
        settings: of the deployment and the load; runs of others do not belong to it.
        faults: how many were done.
        requests: of deployments that went on.
        succeeded: of them.
        runs: every fault.
    """

    settings: Mapping[str, str]
    faults: int
    requests: int
    succeeded: int
    runs: Sequence[Verdict]

    @classmethod
    def of(cls, settings: Mapping[str, str], runs: Sequence[Verdict]) -> "Report":
        """Of what was done."""
        sent, succeeded = survived(runs)
        return cls(settings, len(runs), sent, succeeded, runs)

    def encode(self) -> str:
        """As JSON."""
        return msgspec.json.format(msgspec.json.encode(self), indent=1).decode() + "\n"


def survived(runs: Iterable[Verdict]) -> tuple[int, int]:
    """Requests of all runs whose deployment went on, and how many of them succeeded."""
    lasting = [run for run in runs if not run.is_fatal]
    return sum(run.requests for run in lasting), sum(run.succeeded for run in lasting)


def progress_line(number: int, total: int, run: Verdict, left_s: float) -> str:
    """One run, and about how long the rest will take."""
    noticed = f", noticed after {run.notice_s:.2f} s" if run.notice_s is not None else ""
    whole = f", whole after {run.recovery_s:.1f} s" if run.recovery_s is not None else ""
    told = "".join(f"\n        {line}" for line in _grouped(run.violations))
    wrong = f", {len(run.violations)} violations" if run.violations else ""
    left = f" ({left_s / 60:.0f} min left)" if left_s else ""
    return (
        f"{number:4d}/{total} seed {run.seed} {run.cell}: "
        f"{run.succeeded} of {run.requests} requests{noticed}{whole}{wrong}{left}{told}"
    )


def _grouped(violations: Sequence[Wrong]) -> list[str]:
    """A line for each kind, with the first of it; some come in dozens."""
    count = Counter(one.kind for one in violations)
    first = {one.kind: one.detail for one in reversed(violations)}
    return [
        f"{kind}{f' ({number} times)' if number > 1 else ''}: {first[kind]}"
        for kind, number in count.items()
    ]


def matrix(runs: Sequence[Verdict]) -> list[list[str]]:
    """The heading and a row for each target, fault and moment."""
    return _rows(_CELLS, runs, lambda run: (run.target, run.action, run.point))


def overview(runs: Sequence[Verdict]) -> list[list[str]]:
    """The heading and a row for each target and fault, of all moments."""
    return _rows(_FAULTS, runs, lambda run: (run.target, run.action))


def _rows(
    heading: Sequence[str], runs: Sequence[Verdict], key: Callable[[Verdict], tuple[str, ...]]
) -> list[list[str]]:
    rows = [list(heading)]
    for words, group in groupby(sorted(runs, key=key), key):
        own = list(group)
        moments = [str(len({run.point for run in own}))] if "moments" in heading else []
        rows.append([*words, *moments, *_figures(own)])
    return rows


def _figures(runs: Sequence[Verdict]) -> list[str]:
    sent, finished = (sum(getattr(run, n) for run in runs) for n in ("requests", "succeeded"))
    return [
        *(str(len(runs)), str(sent)),
        f"{finished / sent:.1%}" if sent else "-",
        *_spread((run.notice_s for run in runs if run.loses_a_worker), 2),
        *_spread((run.recovery_s for run in runs), 1),
        str(sum(len(run.violations) for run in runs)),
    ]


def lines(runs: Sequence[Verdict]) -> list[str]:
    """The overview and a summary, for people."""
    return [*aligned(overview(runs), 2), "", summary(runs)]


def markdown(report: Report, title: str) -> str:
    """Everything as a document."""
    runs = report.runs
    wrong = [
        f"* seed {one.seed}, {one.cell}: {line}"
        for one in runs
        for line in _grouped(one.violations)
    ]
    given = [f"* `{name}`: {value}" for name, value in sorted(report.settings.items())]
    parts = [[f"# {title}"], given, _table(overview(runs), 2), [summary(runs)], wrong]
    parts += [["## Every moment"], _table(matrix(runs), 3)]
    return "\n\n".join("\n".join(part) for part in parts if part) + "\n"


def _table(rows: Sequence[Sequence[str]], text: int) -> list[str]:
    """As Markdown; so many columns are text."""
    head, *rest = rows
    rule = ["---"] * text + ["---:"] * (len(head) - text)
    return [f"| {' | '.join(row)} |" for row in (head, rule, *rest)]


def summary(runs: Sequence[Verdict]) -> str:
    """How many requests survived, and what was wrong."""
    sent, succeeded = survived(runs)
    share = succeeded / sent if sent else 1.0
    wrong = sum(len(run.violations) for run in runs)
    loads = _spread((run.machine_load for run in runs), 1)
    return (
        f"{len(runs)} faults in {sum(run.seconds for run in runs) / 60:.0f} minutes; "
        f"{succeeded} of {sent} requests succeeded ({share:.2%}), those of deployments that were "
        f"ended left out; {wrong} violations. Load of the machine: {loads[0]}, at most {loads[1]}."
    )


def _spread(seconds: Iterable[float | None], digits: int) -> tuple[str, str]:
    known = [one for one in seconds if one is not None]
    if not known:
        return "-", "-"
    return f"{median(known):.{digits}f}", f"{max(known):.{digits}f}"
