"""What happened while a fault was done, as clients and operators saw it. Values only.

All times are Unix time in seconds: what a process of the deployment notes and what is seen from
outside are compared, on one machine.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum


class EndKind(Enum):
    """How a request ended for its client."""

    FINISHED = "finished"
    """With a reason to finish, and `[DONE]` where it streamed."""

    REFUSED = "refused"
    """With a status of its own, before the first token."""

    FAILED = "failed"
    """With an error in the stream."""

    BROKEN = "broken"
    """The connection was reset, or could not be made."""

    SILENT = "silent"
    """The stream ended in good order, and without saying why."""

    SILENCE = "silence"
    """Nothing came for as long as the client waits."""

    LEFT = "left"
    """The client went away."""


@dataclass(frozen=True, slots=True)
class End:
    """One end of a request.

    Attributes:
        at: when.
        kind: how.
        detail: what the server said.
        num_tokens: that had come by then.
    """

    at: float
    kind: EndKind
    detail: str = ""
    num_tokens: int = 0


@dataclass(slots=True)
class RequestRecord:
    """One request.

    Attributes:
        name: of its own, and part of its cache salt.
        ask: number of what was asked for.
        sent_at: when it was sent.
        tokens: token ids, in the order in which they came.
        token_times: when each came.
        ends: all that looked like an end; there should be one.
        reported: tokens that its usage counts; None if it had none.
        bad: no server should serve it.
    """

    name: str
    ask: int
    sent_at: float
    tokens: list[int] = field(default_factory=list)
    token_times: list[float] = field(default_factory=list)
    ends: list[End] = field(default_factory=list)
    reported: int | None = None
    bad: bool = False

    @property
    def as_meant(self) -> bool:
        """Whether it ended as its client wanted, or deserved."""
        if len(self.ends) != 1:
            return False
        kind, refused = self.ends[0].kind, self.ends[0].detail.startswith("4")
        return refused if self.bad else kind in (EndKind.FINISHED, EndKind.LEFT)

    @property
    def finished(self) -> bool:
        """Whether it ended well."""
        return len(self.ends) == 1 and self.ends[0].kind is EndKind.FINISHED


@dataclass(frozen=True, slots=True)
class HealthAnswer:
    """One answer to a question about health.

    Attributes:
        path: `/health` or `/ready`.
        asked_at: when it was asked.
        answered_at: when it was answered.
        status: of the answer; 0 if there was none.
        detail: what it said.
    """

    path: str
    asked_at: float
    answered_at: float
    status: int
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of time; without an end, it goes on."""

    begin: float
    end: float = float("inf")


@dataclass(frozen=True, slots=True, kw_only=True)
class Counters:
    """Totals of the deployment's metrics.

    Attributes:
        accepted: sequences that were admitted.
        finished: that ran to their end.
        aborted: whose clients went away.
        failed: that were lost to an error.
        in_flight: that are not over.
    """

    accepted: float = 0
    finished: float = 0
    aborted: float = 0
    failed: float = 0
    in_flight: float = 0


@dataclass(slots=True, kw_only=True)
class History:
    """Everything that is known of one fault.

    Attributes:
        began: when the load began.
        struck: when the fault was done; None if its moment did not come.
        noticed: when the deployment first treated the victim as lost.
        restored: when everything was as wanted again.
        requests: of the load.
        health: what was answered meanwhile.
        incomplete: when a worker was missing for certain, so that the deployment was not whole.
        absent: when the gateway could not answer for certain.
        held: what requests still hold when all are over, by worker and kind.
        counters: at the end; None if nobody was left to ask.
        refused_digests: pages that receivers refused.
        left: processes that should have ended.
        lost: workers that were given up, as their events have it.
    """

    began: float
    struck: float | None = None
    noticed: float | None = None
    restored: float | None = None
    requests: Sequence[RequestRecord] = ()
    health: Sequence[HealthAnswer] = ()
    incomplete: Sequence[Span] = ()
    absent: Sequence[Span] = ()
    held: Mapping[str, float] = field(default_factory=dict)
    counters: Counters | None = None
    refused_digests: float = 0
    left: Sequence[str] = ()
    lost: Sequence[str] = ()

    @property
    def notice_s(self) -> float | None:
        """From the fault until it was noticed."""
        return _between(self.struck, self.noticed)

    @property
    def recovery_s(self) -> float | None:
        """From the fault until everything was as wanted again."""
        return _between(self.struck, self.restored)


def _between(begin: float | None, end: float | None) -> float | None:
    return None if begin is None or end is None else end - begin
