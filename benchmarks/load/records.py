"""What is planned, and what became of it: the data every other part of the generator shares.

All times are seconds since the start of the run. Latencies count from `due_s`, the time at which
the arrival process wanted the request sent, and not from the time at which it was sent: a
generator that is held up by the server would otherwise hide the very stall it should show
("coordinated omission"). This module computes nothing over more than one request.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import pairwise

from twinflow.cluster.simulator.traces import Shape


class Kind(StrEnum):
    """What a request is meant to be."""

    GOOD = "good"
    DISCONNECT = "disconnect"
    BAD = "bad"


class Outcome(StrEnum):
    """How a request ended. Every planned request has exactly one.

    OK: the stream ended properly, with the expected number of tokens.
    REJECTED: the server declined for now: not 200 with Retry-After, or 429.
    DISCONNECTED: the client hung up, as planned.
    BAD_REFUSED: a bad request was answered with a 4xx, as it should be.
    FAILED: anything else; `RequestRecord.failure` names the class.
    """

    OK = "ok"
    REJECTED = "rejected"
    DISCONNECTED = "disconnected"
    BAD_REFUSED = "bad_refused"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class PlannedRequest:
    """One request, decided before the run starts.

    Attributes:
        index: place in the plan, from 0.
        due_s: when to send it.
        shape: its lengths and shared blocks.
        kind: whether it is to succeed, to be hung up on, or to be refused.
        prefix: the shared prefix it starts with; None for none.
        hang_up_after: tokens after which the client closes the connection; None for never.
    """

    index: int
    due_s: float
    shape: Shape
    kind: Kind = Kind.GOOD
    prefix: int | None = None
    hang_up_after: int | None = None


@dataclass(frozen=True, slots=True)
class PreparedRequest:
    """A planned request with the bytes to send.

    Attributes:
        plan: the request.
        request_id: sent as X-Request-Id.
        body: JSON body, or what a bad request sends in its place.
        expected_tokens: the token count a right answer has; None where the server may stop early.
    """

    plan: PlannedRequest
    request_id: str
    body: bytes
    expected_tokens: int | None


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """What happened to one request.

    Attributes:
        index: place in the plan.
        kind: what it was meant to be.
        outcome: how it ended.
        due_s: when it should have been sent; latencies count from here.
        started_s: when the generator started on it.
        finished_s: when its outcome was known.
        input_tokens: prompt length as planned.
        tokens: tokens received: as the server's usage says, else as counted.
        token_times_s: arrival of each chunk that carried at least one token.
        request_id: sent as X-Request-Id.
        failure: class of the failure; empty unless the outcome is FAILED.
        detail: one sentence about a failure or rejection.
        status: HTTP status; None when no response head arrived.
        extra: further facts worth keeping, such as `finish_reason` and `count_source`.
    """

    index: int
    kind: Kind
    outcome: Outcome
    due_s: float
    started_s: float
    finished_s: float
    input_tokens: int = 0
    tokens: int = 0
    token_times_s: tuple[float, ...] = ()
    request_id: str = ""
    failure: str = ""
    detail: str = ""
    status: int | None = None
    extra: Mapping[str, str] = field(default_factory=dict)

    @property
    def lateness_s(self) -> float:
        """How late the generator was; the server has no part in it."""
        return self.started_s - self.due_s

    @property
    def ttft_s(self) -> float | None:
        """Time to first token; None if no token came."""
        return self.token_times_s[0] - self.due_s if self.token_times_s else None

    @property
    def e2e_s(self) -> float:
        """Time until the outcome was known."""
        return self.finished_s - self.due_s

    @property
    def tpot_s(self) -> float | None:
        """Mean time per later token, (last - first) / (tokens - 1); None for fewer than two."""
        if self.tokens < 2 or not self.token_times_s:
            return None
        return (self.token_times_s[-1] - self.token_times_s[0]) / (self.tokens - 1)

    @property
    def gaps_s(self) -> list[float]:
        """Gaps between consecutive chunks that carried tokens."""
        return [later - earlier for earlier, later in pairwise(self.token_times_s)]
