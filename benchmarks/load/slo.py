"""Service-level objectives, goodput and what the sample size allows to be claimed about them.

Goodput follows DistServe (OSDI'24): a request is good if it met every objective. Requests that
were rejected, failed or had the wrong token count are misses, else dropping work would look good.
Planned disconnects and bad requests are not judged.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from benchmarks.load.records import Kind, Outcome, RequestRecord
from benchmarks.load.stats import proves, requests_needed
from twinflow.protos.errors import ConfigError

# A one-token output has no later token and no gap: it meets those objectives.
_MEASURES: dict[str, Callable[[RequestRecord], float | None]] = {
    "ttft": lambda record: record.ttft_s,
    "tpot": lambda record: record.tpot_s,
    "e2e": lambda record: record.e2e_s,
    "gap": lambda record: max(record.gaps_s, default=None),
}
CLAIMED_PERCENTILES = (90.0, 99.0)


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
        """Read `measure:milliseconds`."""
        measure, _, limit = text.partition(":")
        if measure not in _MEASURES:
            raise ConfigError(f"--slo {text!r}: the measures are {', '.join(_MEASURES)}")
        try:
            limit_ms = float(limit)
        except ValueError:
            limit_ms = -1.0
        if not limit_ms > 0:
            raise ConfigError(f"--slo {text!r} needs milliseconds above 0, as in ttft:500")
        return cls(measure, limit_ms)

    def met_by(self, record: RequestRecord) -> bool:
        """Whether a request ended well and stayed within the bound."""
        if record.outcome is not Outcome.OK:
            return False
        value = _MEASURES[self.measure](record)
        return value is None or value * 1000 <= self.limit_ms


@dataclass(frozen=True, slots=True)
class Claim:
    """Whether a run proves that a percentile meets an objective, at 99 % confidence.

    Attributes:
        measure: as in Objective.
        limit_ms: as in Objective.
        percentile: 90 or 99.
        misses: judged requests that missed the objective.
        requests: judged requests.
        needed: requests that would be needed with that many misses.
        proven: requests >= needed.
    """

    measure: str
    limit_ms: float
    percentile: float
    misses: int
    requests: int
    needed: int
    proven: bool


def judged(records: Iterable[RequestRecord]) -> list[RequestRecord]:
    """The requests that were to succeed."""
    return [record for record in records if record.kind is Kind.GOOD]


def good_requests(records: Iterable[RequestRecord], objectives: Sequence[Objective]) -> int:
    """How many judged requests ended well and met every objective."""
    return sum(
        record.outcome is Outcome.OK and all(each.met_by(record) for each in objectives)
        for record in judged(records)
    )


def claims(records: Iterable[RequestRecord], objectives: Sequence[Objective]) -> list[Claim]:
    """One claim per objective and percentile."""
    candidates = judged(records)
    found = []
    for objective in objectives:
        misses = sum(not objective.met_by(record) for record in candidates)
        for q in CLAIMED_PERCENTILES:
            found.append(
                Claim(
                    measure=objective.measure,
                    limit_ms=objective.limit_ms,
                    percentile=q,
                    misses=misses,
                    requests=len(candidates),
                    needed=requests_needed(misses, q),
                    proven=proves(misses, len(candidates), q) if candidates else False,
                )
            )
    return found
