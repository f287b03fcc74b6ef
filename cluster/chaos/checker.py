"""What must not be in a history. Pure: reads no clock, asks nobody.

The rules are those of linearizability checkers translated to a server of token streams: a request
has one outcome; what it brought is what it would have brought without the fault, or the beginning
of that, followed by an explicit error; whatever was taken is given back; and whoever says that all
is well is right.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import Enum

from twinflow.cluster.chaos.faults import Action, Fault
from twinflow.cluster.chaos.history import EndKind, History, RequestRecord, Span
from twinflow.workers.fault_points import Point


class Kind(Enum):
    """What is wrong."""

    NO_OUTCOME = "no outcome"
    SEVERAL_OUTCOMES = "several outcomes"
    SILENT_END = "silent end"
    WRONG_TOKENS = "wrong tokens"
    WRONG_USAGE = "wrong usage"
    SERVED_NONSENSE = "served nonsense"
    UNEXPLAINED_FAILURE = "unexplained failure"
    HELD = "held"
    MISCOUNTED = "miscounted"
    FALSE_READY = "false ready"
    FALSE_UNREADY = "false unready"
    FALSE_HEALTH = "false health"
    UNNOTICED = "unnoticed"
    LATE_NOTICE = "late notice"
    NOT_RESTORED = "not restored"
    LATE_RECOVERY = "late recovery"
    LOST_FOR_NOTHING = "lost for nothing"
    CORRUPTION_USED = "corruption used"
    LEFT_BEHIND = "left behind"
    MISSED = "missed"
    GROWTH = "growth"


@dataclass(frozen=True, slots=True)
class Violation:
    """One thing that must not be.

    Attributes:
        kind: of it.
        detail: what, in words.
    """

    kind: Kind
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """How long things may take, in seconds.

    Attributes:
        sudden_notice_s: until a process that has ended is noticed.
        silent_notice_s: until one that stands still or is cut off is noticed.
        start_up_notice_s: the same for one that does not serve yet.
        recovery_s: until everything is as wanted again.
        stale_ready_s: how old the proof behind an answer of `/ready` may be.
        settle_s: what `/ready` may take to notice that all is well again.
    """

    sudden_notice_s: float = 1.0
    silent_notice_s: float = 5.0
    start_up_notice_s: float = 25.0
    recovery_s: float = 15.0
    stale_ready_s: float = 2.0
    settle_s: float = 3.0

    def times(self, factor: float) -> "Bounds":
        """The same for a machine that is slower by a factor."""
        return Bounds(**{name: value * factor for name, value in asdict(self).items()})

    def notice_s(self, fault: Fault) -> float:
        """Until a fault is noticed."""
        if fault.is_sudden:
            return self.sudden_notice_s
        starting = fault.point is Point.START_UP
        return self.start_up_notice_s if starting else self.silent_notice_s

    def whole_s(self, fault: Fault) -> float:
        """Until everything is as wanted again, where a worker is lost."""
        if fault.point is Point.DRAINING:
            return float("inf")  # its successor serves already
        late = fault.point is Point.START_UP and not fault.is_sudden
        return self.recovery_s + (self.start_up_notice_s if late else 0.0)


@dataclass(frozen=True, slots=True)
class Case:
    """What a history is judged by.

    Attributes:
        fault: what was done; None for nothing.
        expected: tokens of each ask without faults, by its number.
        bounds: of times.
    """

    fault: Fault | None
    expected: Mapping[int, Sequence[int]]
    bounds: Bounds


Rule = Callable[[History, Case], Iterator[Violation]]


def check(history: History, case: Case) -> list[Violation]:
    """Everything that is wrong with a history."""
    return [violation for rule in _RULES for violation in rule(history, case)]


def _outcomes(history: History, case: Case) -> Iterator[Violation]:
    """Every request has one, and it is explicit."""
    fatal = case.fault is not None and case.fault.is_fatal
    for request in history.requests:
        ends = request.ends
        if not ends or ends[0].kind is EndKind.SILENCE:
            yield Violation(Kind.NO_OUTCOME, f"{request.name} hangs")
        elif len(ends) > 1:
            kinds = ", ".join(end.kind.value for end in ends)
            yield Violation(Kind.SEVERAL_OUTCOMES, f"{request.name}: {kinds}")
        elif ends[0].kind is EndKind.SILENT:
            yield Violation(Kind.SILENT_END, f"{request.name} after {len(request.tokens)} tokens")
        elif request.bad and ends[0].kind is not EndKind.REFUSED:
            yield Violation(Kind.SERVED_NONSENSE, f"{request.name}: {ends[0].kind.value}")
        elif ends[0].kind is EndKind.BROKEN and not fatal:
            yield Violation(Kind.UNEXPLAINED_FAILURE, f"{request.name}: {ends[0].detail}")


def _tokens(history: History, case: Case) -> Iterator[Violation]:
    """What came is what would have come, or the beginning of it before an error."""
    for request in history.requests:
        expected = list(case.expected[request.ask])
        whole = request.finished
        wanted = expected if whole else expected[: len(request.tokens)]
        if request.tokens != wanted:
            yield Violation(Kind.WRONG_TOKENS, f"{request.name}: {_difference(request, expected)}")
        if request.ends and request.ends[0].num_tokens != len(request.tokens):
            yield Violation(Kind.SEVERAL_OUTCOMES, f"{request.name}: tokens behind its end")
        if whole and request.reported not in (None, len(request.tokens)):
            counted = f"{request.reported} for {len(request.tokens)} tokens"
            yield Violation(Kind.WRONG_USAGE, f"{request.name}: {counted}")


def _difference(request: RequestRecord, expected: Sequence[int]) -> str:
    pairs = zip(request.tokens, expected, strict=False)
    first = next((n for n, (found, wanted) in enumerate(pairs) if found != wanted), None)
    if first is None:
        return f"{len(request.tokens)} tokens instead of {len(expected)}"
    return f"token {first} is {request.tokens[first]} instead of {expected[first]}"


def _conservation(history: History, _case: Case) -> Iterator[Violation]:
    """What was taken is given back, and everything that was counted in is counted out."""
    for name, amount in history.held.items():
        if amount:
            yield Violation(Kind.HELD, f"{name}: {amount:g}")
    told = history.counters
    if told is not None:
        over = told.finished + told.aborted + told.failed + told.in_flight
        if told.accepted != over:
            yield Violation(Kind.MISCOUNTED, f"{told.accepted:g} accepted, {over:g} accounted for")
    for process in history.left:
        yield Violation(Kind.LEFT_BEHIND, process)


def _health(history: History, case: Case) -> Iterator[Violation]:
    """Whoever says that all is well is right, and so is whoever says that it is not."""
    if case.fault is not None and history.struck is None:
        return  # what was to bring the moment about may have broken something
    stale_s, settle_s = case.bounds.stale_ready_s, case.bounds.settle_s
    for answer in history.health:
        excused = any(
            span.begin - settle_s <= answer.answered_at and answer.asked_at <= span.end + settle_s
            for span in history.absent
        )
        when = f"asked {answer.asked_at - history.began:.1f} s into the run"
        if answer.path == "/health":
            if answer.status != 200 and not excused:
                yield Violation(Kind.FALSE_HEALTH, f"{answer.status} {answer.detail}, {when}")
            continue
        for span in history.incomplete:
            inside = span.begin + stale_s < answer.asked_at and answer.answered_at < span.end
            if answer.status == 200 and inside:
                yield Violation(Kind.FALSE_READY, when)
        broken = _broken(history)
        whole = answer.answered_at < broken.begin or answer.asked_at > broken.end + settle_s
        if answer.status != 200 and whole and not excused:
            yield Violation(Kind.FALSE_UNREADY, f"{answer.status} {answer.detail}, {when}")


def _broken(history: History) -> Span:
    """From the first thing that was wrong to when all was well again."""
    starts = [span.begin for span in (*history.incomplete, *history.absent)]
    if history.struck is not None:
        starts.append(history.struck)
    if not starts:
        return Span(float("inf"), float("-inf"))
    return Span(min(starts), history.restored or float("inf"))


def _times(history: History, case: Case) -> Iterator[Violation]:
    """A loss is noticed and mended in time; nobody is lost for nothing."""
    fault, bounds = case.fault, case.bounds
    if fault is None:
        return
    if history.struck is None:
        yield Violation(Kind.MISSED, f"no request came to {fault.point.value} there")
        return
    if history.restored is None:
        yield Violation(Kind.NOT_RESTORED, "not everything was as wanted again")
    elif fault.loses_a_worker and (history.recovery_s or 0.0) > bounds.whole_s(fault):
        yield Violation(Kind.LATE_RECOVERY, f"after {history.recovery_s:.1f} s")
    if fault.loses_a_worker:
        if history.notice_s is None:
            yield Violation(Kind.UNNOTICED, f"{fault.target.value} {fault.action.value}")
        elif history.notice_s > bounds.notice_s(fault):
            yield Violation(Kind.LATE_NOTICE, f"after {history.notice_s:.2f} s")
    elif history.lost and not fault.is_fatal:
        yield Violation(Kind.LOST_FOR_NOTHING, "; ".join(history.lost))


def _corruption(history: History, case: Case) -> Iterator[Violation]:
    """A page that was corrupted on the way is refused."""
    corrupt = case.fault is not None and case.fault.action is Action.CORRUPT
    if corrupt and history.struck is not None and not history.refused_digests:
        yield Violation(Kind.CORRUPTION_USED, "no receiver refused a digest")


_RULES: tuple[Rule, ...] = (_outcomes, _tokens, _conservation, _health, _times, _corruption)
