"""What came of all faults: a line for each, a matrix, and the same for programs."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any

from twinflow.cluster.chaos.checker import Violation
from twinflow.cluster.chaos.faults import Cell
from twinflow.cluster.chaos.runner import Outcome, totals
from twinflow.cluster.cli.tables import aligned

_TEXT_COLUMNS = 3
_HEADING = (
    *("target", "fault", "moment", "runs", "requests", "succeeded"),
    *("noticed s", "worst", "whole again s", "worst", "violations"),
)


def progress_line(number: int, total: int, outcome: Outcome) -> str:
    """One run."""
    history, wrong = outcome.history, outcome.violations
    noticed = f", noticed after {history.notice_s:.2f} s" if history.notice_s is not None else ""
    whole = f", whole after {history.recovery_s:.1f} s" if history.recovery_s is not None else ""
    told = "".join(f"\n        {line}" for line in _grouped(wrong))
    return (
        f"{number:4d}/{total} seed {outcome.seed} {outcome.fault.cell}: "
        f"{outcome.num_finished} of {len(history.requests)} requests{noticed}{whole}"
        f"{', ' + str(len(wrong)) + ' violations' if wrong else ''}{told}"
    )


def _grouped(violations: Sequence[Violation]) -> list[str]:
    """A line for each kind, with the first of it; some come in dozens."""
    count = Counter(one.kind for one in violations)
    first = {one.kind: one.detail for one in reversed(violations)}
    return [
        f"{kind.value}{f' ({number} times)' if number > 1 else ''}: {first[kind]}"
        for kind, number in count.items()
    ]


def matrix(outcomes: Sequence[Outcome]) -> list[list[str]]:
    """The heading and a row for each target, fault and moment."""
    rows = [list(_HEADING)]
    for cell in sorted({outcome.fault.cell for outcome in outcomes}):
        rows.append(_row(cell, [one for one in outcomes if one.fault.cell == cell]))
    return rows


def lines(outcomes: Sequence[Outcome]) -> list[str]:
    """The matrix and a summary, for people."""
    return [*aligned(matrix(outcomes), _TEXT_COLUMNS), "", summary(outcomes)]


def markdown(outcomes: Sequence[Outcome], title: str) -> str:
    """The same as a document."""
    head, *rows = matrix(outcomes)
    rule = ["---"] * _TEXT_COLUMNS + ["---:"] * (len(head) - _TEXT_COLUMNS)
    table = [f"| {' | '.join(row)} |" for row in (head, rule, *rows)]
    wrong = [
        f"* seed {one.seed}, {one.fault.cell}: {line}"
        for one in outcomes
        for line in _grouped(one.violations)
    ]
    return "\n".join([f"# {title}", "", *table, "", summary(outcomes), "", *wrong]) + "\n"


def summary(outcomes: Sequence[Outcome]) -> str:
    """How many requests survived, and what was wrong."""
    told = totals(outcomes)
    share = told.finished / told.accepted if told.accepted else 1.0
    wrong = sum(len(outcome.violations) for outcome in outcomes)
    return (
        f"{len(outcomes)} faults; {told.finished:.0f} of {told.accepted:.0f} requests succeeded "
        f"({share:.2%}), those of deployments that were ended left out; {wrong} violations."
    )


def as_dict(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Everything that is told, for programs."""
    told = totals(outcomes)
    return {
        "faults": len(outcomes),
        "requests": told.accepted,
        "succeeded": told.finished,
        "runs": [_run(outcome) for outcome in outcomes],
    }


def _row(cell: Cell, runs: Sequence[Outcome]) -> list[str]:
    sent = sum(len(run.history.requests) for run in runs)
    finished = sum(run.num_finished for run in runs)
    noticed = [run.history.notice_s for run in runs if run.fault.loses_a_worker]
    whole = [run.history.recovery_s for run in runs]
    return [
        *(cell.target, cell.action, cell.point, str(len(runs)), str(sent)),
        f"{finished / sent:.1%}" if sent else "-",
        *_spread(noticed, 2),
        *_spread(whole, 1),
        str(sum(len(run.violations) for run in runs)),
    ]


def _spread(seconds: Iterable[float | None], digits: int) -> tuple[str, str]:
    known = [one for one in seconds if one is not None]
    if not known:
        return "-", "-"
    return f"{median(known):.{digits}f}", f"{max(known):.{digits}f}"


def _run(outcome: Outcome) -> Mapping[str, object]:
    fault, history = outcome.fault, outcome.history
    return {
        "seed": outcome.seed,
        "target": fault.target.value,
        "action": fault.action.value,
        "point": fault.point.value,
        "skip": fault.skip,
        "load_seed": fault.seed,
        "requests": len(history.requests),
        "succeeded": outcome.num_finished,
        "notice_s": history.notice_s,
        "recovery_s": history.recovery_s,
        "ends": [
            {"request": one.name, "end": end.kind.value, "detail": end.detail}
            for one in history.requests
            for end in one.ends
            if not one.finished
        ],
        "violations": [{"kind": v.kind.value, "detail": v.detail} for v in outcome.violations],
    }
