"""Histories of a fault that went as it should, and every way in which one can lie."""

import random
from collections.abc import Callable
from dataclasses import replace

from twinflow.cluster.chaos.checker import Bounds, Case, Kind
from twinflow.cluster.chaos.faults import Action, Fault, Target
from twinflow.cluster.chaos.history import (
    Counters,
    End,
    EndKind,
    HealthAnswer,
    History,
    RequestRecord,
    Span,
)
from twinflow.workers.fault_points import Point

BEGAN, STRUCK, NOTICED, READY, RESTORED, OVER = 100.0, 105.0, 105.5, 110.0, 112.0, 120.0
_PATHS = ("/health", "/ready")
Lie = Callable[[History, random.Random], History]


def killing() -> Fault:
    """A decode worker is killed while it decodes."""
    return Fault(target=Target.DECODE, action=Action.KILL, point=Point.DECODE)


def corrupting() -> Fault:
    """A block is corrupted on the way."""
    return Fault(target=Target.LINK, action=Action.CORRUPT, point=Point.HAND_OFF)


def case_of(fault: Fault, rng: random.Random) -> Case:
    """What four asks are answered."""
    expected = {n: [rng.randrange(400) for _ in range(rng.randint(2, 12))] for n in range(4)}
    return Case(fault, expected, Bounds())


def honest_history(case: Case, rng: random.Random) -> History:
    """A history in which nothing is wrong, with a loss that was mended in time."""
    requests = [_request(n, case, rng) for n in range(rng.randint(2, 10))]
    finished = sum(request.finished for request in requests)
    lost = case.fault is not None and case.fault.loses_a_worker
    return History(
        began=BEGAN,
        struck=STRUCK,
        noticed=NOTICED if lost else None,
        restored=RESTORED,
        requests=requests,
        health=[_answer(path, at, lost) for at in range(100, 121) for path in _PATHS],
        incomplete=[Span(STRUCK, READY)] if lost else [],
        counters=Counters(
            accepted=len(requests), finished=finished, failed=len(requests) - finished
        ),
        refused_digests=1,
        lost=["decode-0 is lost"] if lost else [],
    )


def _request(number: int, case: Case, rng: random.Random) -> RequestRecord:
    """The first one succeeds; of the others some fail, and say so."""
    ask, sent_at = rng.randrange(4), rng.uniform(BEGAN, OVER - 1)
    tokens, fails = list(case.expected[ask]), number > 0 and rng.random() < 0.2
    if fails:
        del tokens[rng.randrange(len(tokens)) :]
    kind = EndKind.FAILED if fails else EndKind.FINISHED
    times = [sent_at + 0.01 * n for n in range(len(tokens))]
    return RequestRecord(
        name=f"request-{number}",
        ask=ask,
        sent_at=sent_at,
        tokens=tokens,
        token_times=times,
        ends=[End(sent_at + 0.5, kind, "", len(tokens))],
        reported=None if fails else len(tokens),
    )


def _answer(path: str, at: float, lost: bool) -> HealthAnswer:
    whole = path == "/health" or not lost or not STRUCK <= at <= RESTORED
    return HealthAnswer(path, at, at + 0.1, 200 if whole else 503)


def _with_first(history: History, **changes: object) -> History:
    """Another history, whose first request, which finished, is another one."""
    first, *others = history.requests
    return replace(history, requests=[replace(first, **changes), *others])  # type: ignore[arg-type]  # its own fields


def _ends_with(kind: EndKind) -> Lie:
    def lie(history: History, _rng: random.Random) -> History:
        first = history.requests[0]
        return _with_first(history, ends=[End(OVER, kind, "", len(first.tokens))])

    return lie


def _hangs(history: History, _rng: random.Random) -> History:
    return _with_first(history, ends=[])


def _ends_twice(history: History, _rng: random.Random) -> History:
    first = history.requests[0]
    again = End(OVER, EndKind.FAILED, "", len(first.tokens))
    return _with_first(history, ends=[*first.ends, again])


def _changes_a_token(history: History, rng: random.Random) -> History:
    tokens = list(history.requests[0].tokens)
    tokens[rng.randrange(len(tokens))] += 1
    return _with_first(history, tokens=tokens)


def _repeats_a_token(history: History, rng: random.Random) -> History:
    tokens = list(history.requests[0].tokens)
    place = rng.randrange(len(tokens))
    tokens.insert(place, tokens[place])
    ends = [End(OVER, EndKind.FINISHED, "", len(tokens))]
    return _with_first(history, tokens=tokens, ends=ends, reported=len(tokens))


def _drops_a_token(history: History, rng: random.Random) -> History:
    tokens = list(history.requests[0].tokens)
    del tokens[rng.randrange(len(tokens))]
    ends = [End(OVER, EndKind.FINISHED, "", len(tokens))]
    return _with_first(history, tokens=tokens, ends=ends, reported=len(tokens))


def _goes_on_behind_its_end(history: History, _rng: random.Random) -> History:
    first = history.requests[0]
    return _with_first(history, ends=[replace(first.ends[0], num_tokens=len(first.tokens) - 1)])


def _counts_usage_wrongly(history: History, _rng: random.Random) -> History:
    return _with_first(history, reported=len(history.requests[0].tokens) + 1)


def _keeps_blocks(history: History, rng: random.Random) -> History:
    return replace(history, held={"decode-0 blocks": float(rng.randint(1, 9))})


def _loses_count(history: History, rng: random.Random) -> History:
    counters = history.counters
    assert counters is not None
    return replace(history, counters=replace(counters, accepted=counters.accepted + 1))


def _says(path: str, status: int, begin: float, end: float) -> Lie:
    def lie(history: History, rng: random.Random) -> History:
        at = rng.uniform(begin, end)
        return replace(history, health=[*history.health, HealthAnswer(path, at, at + 0.1, status)])

    return lie


def _with(**changes: object) -> Lie:
    return lambda history, _rng: replace(history, **changes)  # type: ignore[arg-type]  # its own fields


# What is wrong with a history that tells of a worker that was killed, and who must find it.
LIES: list[tuple[Kind, Lie]] = [
    (Kind.NO_OUTCOME, _hangs),
    (Kind.NO_OUTCOME, _ends_with(EndKind.SILENCE)),
    (Kind.SEVERAL_OUTCOMES, _ends_twice),
    (Kind.SEVERAL_OUTCOMES, _goes_on_behind_its_end),
    (Kind.SILENT_END, _ends_with(EndKind.SILENT)),
    (Kind.UNEXPLAINED_FAILURE, _ends_with(EndKind.BROKEN)),
    (Kind.SERVED_NONSENSE, lambda history, _rng: _with_first(history, bad=True)),
    (Kind.WRONG_TOKENS, _changes_a_token),
    (Kind.WRONG_TOKENS, _repeats_a_token),
    (Kind.WRONG_TOKENS, _drops_a_token),
    (Kind.WRONG_USAGE, _counts_usage_wrongly),
    (Kind.HELD, _keeps_blocks),
    (Kind.MISCOUNTED, _loses_count),
    (Kind.FALSE_READY, _says("/ready", 200, STRUCK + 2.1, READY - 0.2)),
    (Kind.FALSE_UNREADY, _says("/ready", 503, BEGAN, STRUCK - 0.2)),
    (Kind.FALSE_UNREADY, _says("/ready", 503, RESTORED + 3.1, OVER)),
    (Kind.FALSE_HEALTH, _says("/health", 503, BEGAN, OVER)),
    (Kind.FALSE_HEALTH, _says("/health", 0, BEGAN, OVER)),
    (Kind.UNNOTICED, _with(noticed=None)),
    (Kind.LATE_NOTICE, _with(noticed=STRUCK + 1.01)),
    (Kind.NOT_RESTORED, _with(restored=None)),
    (Kind.LATE_RECOVERY, _with(restored=STRUCK + 15.1)),
    (Kind.LEFT_BEHIND, _with(left=["prefill-1 (4711)"])),
    (Kind.MISSED, _with(struck=None)),
]
# And likewise where a block was corrupted, for which nobody may be lost.
LIES_OF_LINKS: list[tuple[Kind, Lie]] = [
    (Kind.CORRUPTION_USED, _with(refused_digests=0)),
    (Kind.LOST_FOR_NOTHING, _with(lost=["prefill-0 is lost"])),
    (Kind.WRONG_TOKENS, _changes_a_token),
]
