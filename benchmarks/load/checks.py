"""The checks of a calibration: what the generator measured against what the stub did. Pure.

Two references are used. The nominal one is what the stub is told to do: first token after 20 ms,
a token every 2 ms. The logged one is what the stub's own clock says it did, which on Linux is the
generator's clock too; it takes the stub's timers and a busy machine out of the comparison, so that
also tails can be compared. Every check allows 10 % and a fixed allowance:

    0.5 ms   p50 and p90 of TTFT against the log: HTTP and the kernel
    0.2 ms   p50 and p90 of gaps against the log
    1 ms     p99 against the log: the same, waiting for a core of a busy machine
    2 ms     TTFT against the nominal value: timers of 1 ms on both sides
    0.3 ms   gaps against the nominal value

A freeze of the stub must show in the 99th percentile: a generator that waits for answers before
it sends (a closed loop) would send too little meanwhile and report a p99 of milliseconds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from benchmarks.load.prompts import Api
from benchmarks.load.runs import RunResult
from benchmarks.load.stats import Distribution, distribution
from benchmarks.load.stub_server import FREEZE_S, ITL_S, TTFT_S
from benchmarks.load.summary import LATENESS_LIMIT_MS, Summary, summarise
from twinflow.protos.errors import Unavailable

TOLERANCE = 0.10
ALLOWANCE_MS = 0.5
GAP_ALLOWANCE_MS = 0.2
TAIL_ALLOWANCE_MS = 1.0
NOMINAL_TTFT_ALLOWANCE_MS = 2.0
NOMINAL_ITL_ALLOWANCE_MS = 0.3

# Receipt and writes of one request as the stub logged them.
Truths = dict[str, tuple[float, list[float]]]


@dataclass(frozen=True, slots=True)
class Case:
    """One behaviour of the stub.

    Attributes:
        name: how the table calls it.
        model: the stub's behaviour.
        api: endpoint.
        rate: requests per second.
        requests: how many.
        freeze_after: measured requests before the stub freezes; 0 for never.
    """

    name: str
    model: str
    api: Api
    rate: float = 10.0
    requests: int = 150
    freeze_after: int = 0


@dataclass(frozen=True, slots=True)
class Check:
    """One figure against its reference.

    Attributes:
        case: name of the case.
        what: name of the figure.
        truth: the reference.
        measured: what the generator says.
        low: least value that passes.
        high: largest value that passes.
    """

    case: str
    what: str
    truth: float
    measured: float
    low: float
    high: float

    @property
    def passed(self) -> bool:
        """Whether the figure is within its bounds."""
        return self.low <= self.measured <= self.high

    def row(self) -> str:
        """A line of the table."""
        verdict = "pass" if self.passed else "**FAIL**"
        bounds = f"{self.low:.2f} to {self.high:.2f}"
        return (
            f"| {self.case} | {self.what} | {self.truth:.2f} | {self.measured:.2f} "
            f"| {bounds} | {verdict} |"
        )


def near(case: str, what: str, truth: float, measured: float, allowance: float) -> Check:
    """A figure that must agree with its reference within 10 % and the allowance."""
    slack = TOLERANCE * truth + allowance
    return Check(case, what, truth, measured, truth - slack, truth + slack)


def checks_of(case: Case, result: RunResult, truths: Truths) -> list[Check]:
    """Every check of one case.

    Raises:
        Unavailable: no token arrived, so there is nothing to check.
    """
    summary = summarise(result.planned, result.records, ())
    seen = _seen(summary)
    logged = _logged(result, truths)
    every = case.requests
    checks = [
        Check(case.name, "ended well", every, summary.outcomes.get("ok", 0), every, every),
        Check(case.name, "late sends p99, ms", 0.0, seen.late.p99, 0.0, LATENESS_LIMIT_MS),
    ]
    if case.freeze_after:
        return checks + _freeze_checks(case.name, summary, seen, logged)
    return checks + _nominal_checks(case.name, seen) + _log_checks(case.name, seen, logged)


@dataclass(frozen=True, slots=True)
class _Seen:
    """What the generator reports, in milliseconds."""

    late: Distribution
    ttft: Distribution
    itl: Distribution
    tpot: Distribution


@dataclass(frozen=True, slots=True)
class _Logged:
    """What the stub's log says, in milliseconds."""

    ttft: Distribution
    itl: Distribution


def _known(found: Distribution | None, what: str) -> Distribution:
    if found is None:
        raise Unavailable(f"the calibration has no {what}: no token arrived")
    return found


def _seen(summary: Summary) -> _Seen:
    return _Seen(
        late=_known(summary.lateness_ms, "send times"),
        ttft=_known(summary.ttft_ms, "TTFT"),
        itl=_known(summary.itl_ms, "gaps"),
        tpot=_known(summary.tpot_ms, "TPOT"),
    )


def _logged(result: RunResult, truths: Truths) -> _Logged:
    """TTFT from the intended send time to the stub's first write, and the gaps of its writes."""
    ttfts: list[float] = []
    gaps: list[float] = []
    for record in result.records:
        _, writes = truths[record.request_id]
        ttfts.append(1000 * (writes[0] - result.origin_s - record.due_s))
        gaps += [1000 * (later - earlier) for earlier, later in pairwise(writes)]
    return _Logged(
        ttft=_known(distribution(ttfts), "logged TTFT"),
        itl=_known(distribution(gaps), "logged gaps"),
    )


def _nominal_checks(case: str, seen: _Seen) -> list[Check]:
    ttft, itl = 1000 * TTFT_S, 1000 * ITL_S
    return [
        near(case, "TTFT p50, nominal, ms", ttft, seen.ttft.p50, NOMINAL_TTFT_ALLOWANCE_MS),
        near(case, "ITL p50, nominal, ms", itl, seen.itl.p50, NOMINAL_ITL_ALLOWANCE_MS),
        near(case, "TPOT p50, nominal, ms", itl, seen.tpot.p50, NOMINAL_ITL_ALLOWANCE_MS),
    ]


def _log_checks(case: str, seen: _Seen, logged: _Logged) -> list[Check]:
    ttft, itl = logged.ttft, logged.itl
    return [
        near(case, "TTFT p50, logged, ms", ttft.p50, seen.ttft.p50, ALLOWANCE_MS),
        near(case, "TTFT p99, logged, ms", ttft.p99, seen.ttft.p99, TAIL_ALLOWANCE_MS),
        near(case, "ITL p50, logged, ms", itl.p50, seen.itl.p50, GAP_ALLOWANCE_MS),
        near(case, "ITL p90, logged, ms", itl.p90, seen.itl.p90, GAP_ALLOWANCE_MS),
        near(case, "ITL p99, logged, ms", itl.p99, seen.itl.p99, TAIL_ALLOWANCE_MS),
    ]


def _freeze_checks(case: str, summary: Summary, seen: _Seen, logged: _Logged) -> list[Check]:
    frozen = 1000 * FREEZE_S
    ttft = logged.ttft
    return [
        # Poisson arrivals: the third-longest wait of 200 is less than the freeze by two gaps.
        Check(case, "freeze in TTFT p99, ms", frozen, seen.ttft.p99, 0.75 * frozen, 1.25 * frozen),
        near(case, "TTFT p99, logged, ms", ttft.p99, seen.ttft.p99, TAIL_ALLOWANCE_MS),
        near(case, "TTFT p90, logged, ms", ttft.p90, seen.ttft.p90, ALLOWANCE_MS),
        near(case, "sent requests/s", summary.offered_rps, summary.sent_rps, 0.0),
    ]


def render(checks: Sequence[Check], discarded: int = 0) -> str:
    """The table, and the verdict in its last line.

    Args:
        checks: what to show.
        discarded: attempts that failed while others used the machine, and were made again.
    """
    failed = sum(not check.passed for check in checks)
    verdict = (
        f"{failed} of {len(checks)} checks FAILED" if failed else f"{len(checks)} checks passed"
    )
    again = f"; {discarded} attempts on a noisy machine were repeated" if discarded else ""
    return "\n".join(
        [
            "| case | figure | truth | measured | allowed | verdict |",
            "|---|---|---|---|---|---|",
            *(check.row() for check in checks),
            "",
            f"calibration: {verdict}{again}",
        ]
    )
