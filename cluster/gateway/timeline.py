"""Where the time of a request went.

    ├─ validate ─┼─ tokenize ─┼─ admit ─┼─ the worker's phases … ─┼─ wire ─┤
    received                                                             ended

The phases follow one another and add up to the total. `wire` is what is left when everybody has
said what they measured: the way to the workers and back, the reader's own delays, and whatever an
earlier attempt on a worker that was lost has cost. Nothing here reads a clock.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from twinflow.runtime.outputs import PhaseTime


@dataclass(frozen=True, slots=True)
class Timeline:
    """Consecutive phases of a request.

    Attributes:
        phases: in order; a name may come twice, after a preemption for instance.
        total_seconds: from the request's arrival to its last token.
    """

    phases: tuple[PhaseTime, ...]
    total_seconds: float


@dataclass(slots=True)
class Milestones:
    """When a request reached what, in seconds of one monotonic clock.

    Attributes:
        received: its headers were read.
        validated: its fields were checked.
        tokenized: its prompts were rendered and tokenised.
        admitted: room for it was reserved.
    """

    received: float
    validated: float = 0.0
    tokenized: float = 0.0
    admitted: float = 0.0


def prolonged(phases: Sequence[PhaseTime], seconds: float) -> tuple[PhaseTime, ...]:
    """Phases of which the last one has gone on since they were told."""
    if not phases:
        return ()
    *ended, current = phases
    return (*ended, replace(current, seconds=current.seconds + seconds))


def timeline(milestones: Milestones, worker: Sequence[PhaseTime], ended: float) -> Timeline:
    """Put together what the gateway and a worker measured.

    Args:
        milestones: the gateway's own.
        worker: phases of the sequence that ended last.
        ended: when the last token left.
    """
    m = milestones
    after = ended - m.admitted
    spent = sum(phase.seconds for phase in worker)
    # Both clocks count seconds, but not the same ones: a worker may not have had more than there
    # were.
    scale = min(1.0, after / spent) if spent > 0 else 1.0
    phases = (
        PhaseTime("validate", m.validated - m.received),
        PhaseTime("tokenize", m.tokenized - m.validated),
        PhaseTime("admit", m.admitted - m.tokenized),
        *(PhaseTime(phase.name, phase.seconds * scale) for phase in worker),
        PhaseTime("wire", max(0.0, after - spent)),
    )
    return Timeline(phases, ended - m.received)
