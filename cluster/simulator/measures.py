"""What is measured: latencies of requests, gaps between tokens, use of devices.

Gaps are counted in classes 0.5 % wide, because a run of a million requests has hundreds of
millions of them; everything else is kept value by value.
"""

import math
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from twinflow.cluster.latency_counts import LatencyCounts
from twinflow.protos.errors import ConfigError
from twinflow.workers.role import Role


@dataclass(slots=True)
class Progress:
    """A request on its way.

    Attributes:
        arrival: when it came.
        tokens: that it has.
        first: when the first token came.
        latest: when the latest one came.
        worst_gap: longest time between two tokens.
    """

    arrival: float
    tokens: int = 0
    first: float = 0.0
    latest: float = 0.0
    worst_gap: float = 0.0

    @property
    def ttft(self) -> float:
        """Time to first token."""
        return self.first - self.arrival

    @property
    def tpot(self) -> float | None:
        """Mean time per later token; None for a single token."""
        return (self.latest - self.first) / (self.tokens - 1) if self.tokens > 1 else None

    @property
    def e2e(self) -> float:
        """Time to the last token."""
        return self.latest - self.arrival


_MEASURES: dict[str, Callable[[Progress], float | None]] = {
    "ttft": lambda request: request.ttft,
    "tpot": lambda request: request.tpot,
    "e2e": lambda request: request.e2e,
    "gap": lambda request: request.worst_gap,
}


@dataclass(frozen=True, slots=True)
class Objective:
    """An upper bound on one measure of a request.

    Attributes:
        measure: `ttft`, `tpot`, `e2e` or `gap` (the longest gap between tokens).
        limit_ms: the bound in milliseconds.
    """

    measure: str
    limit_ms: float

    @classmethod
    def parse(cls, text: str) -> "Objective":
        """Read `measure:milliseconds`.

        Raises:
            ConfigError: it is written in another way.
        """
        measure, _, limit = text.partition(":")
        try:
            limit_ms = float(limit)
        except ValueError:
            limit_ms = -1.0
        if measure not in _MEASURES or not limit_ms > 0:
            raise ConfigError(
                f"--slo {text!r}: write it like ttft:500, in milliseconds; the measures are "
                f"{', '.join(_MEASURES)}"
            )
        return cls(measure, limit_ms)

    def met_by(self, request: Progress) -> bool:
        """Whether a finished request stayed within the bound."""
        value = _MEASURES[self.measure](request)
        return value is None or value * 1000.0 <= self.limit_ms


class Measures:
    """Everything that a simulation measures.

    Args:
        objectives: what a good request keeps to.

    Attributes:
        arrived: when each finished request came; the others go with it, by position.
        ttft: times to first tokens.
        tpot: mean times per later token; NaN for single tokens.
        e2e: times to last tokens.
        gaps: between tokens.
        first_tokens: times to first tokens of all requests that have one, finished or not.
        good: finished requests that met all objectives.
        rejected: requests that found the queue full.
        failed: requests that ended with an error.
        output_tokens: generated.
        kv_transfers: prompts that one worker computed for another one.
        busy_s: seconds of whole devices in use, by role.
        kv_s: the same, each second counted by the part of the KV memory that was in use.
        begin_s: when the first request came; infinite before it did.
        end_s: when the last token came.
    """

    def __init__(self, objectives: Sequence[Objective] = ()) -> None:
        self._objectives = tuple(objectives)
        self.arrived, self.ttft = array("d"), array("d")
        self.tpot, self.e2e = array("d"), array("d")
        self.gaps, self.first_tokens = LatencyCounts(), LatencyCounts()
        self.good = 0
        self.rejected = 0
        self.failed = 0
        self.output_tokens = 0
        self.kv_transfers = 0
        self.busy_s: dict[Role, float] = {}
        self.kv_s: dict[Role, float] = {}
        self.begin_s, self.end_s = math.inf, 0.0

    @property
    def finished(self) -> int:
        """Requests that ended well."""
        return len(self.ttft)

    @property
    def duration_s(self) -> float:
        """From the first arrival on to the last token; 0 without one."""
        return max(self.end_s - self.begin_s, 0.0)

    def arrive(self, now: float) -> None:
        """A request came."""
        self.begin_s = min(self.begin_s, now)

    def busy(self, role: Role, seconds: float, kv_use: float) -> None:
        """A worker's device was in use, and a part of its KV memory."""
        self.busy_s[role] = self.busy_s.get(role, 0.0) + seconds
        self.kv_s[role] = self.kv_s.get(role, 0.0) + kv_use * seconds

    def token(self, request: Progress, now: float) -> None:
        """A request got a token."""
        if request.tokens:
            gap = now - request.latest
            self.gaps.add(gap)
            request.worst_gap = max(request.worst_gap, gap)
        else:
            request.first = now
            self.first_tokens.add(request.ttft)
        request.tokens += 1
        request.latest = now

    def finish(self, request: Progress) -> None:
        """A request has its last token."""
        self.arrived.append(request.arrival)
        self.ttft.append(request.ttft)
        self.tpot.append(math.nan if request.tpot is None else request.tpot)
        self.e2e.append(request.e2e)
        self.output_tokens += request.tokens
        self.end_s = max(self.end_s, request.latest)
        self.good += all(objective.met_by(request) for objective in self._objectives)

    def latencies(self) -> Mapping[str, Sequence[float]]:
        """Values of finished requests by measure, in seconds."""
        tpot = [value for value in self.tpot if not math.isnan(value)]
        return {"ttft": self.ttft, "tpot": tpot, "e2e": self.e2e}
