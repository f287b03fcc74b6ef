"""Condenses the records of one run. Pure: records in, figures out.

TTFT and gaps come from every stream that delivered a token, also from those that failed or were
hung up on later; TPOT and end-to-end time from requests that ended well. Nothing is trimmed.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from benchmarks.load.records import Outcome, RequestRecord
from benchmarks.load.slo import Claim, Objective, claims, good_requests, judged
from benchmarks.load.stats import Distribution, distribution, proven_bound, requests_needed

LATENESS_LIMIT_MS = 5.0


@dataclass(frozen=True, slots=True)
class Summary:
    """Figures of one run. Distributions are in milliseconds, rates per second.

    Attributes:
        planned: requests in the plan.
        outcomes: how many ended in each way.
        failures: failed requests by class.
        examples: one detail of each class.
        duration_s: from the start to the last outcome.
        offered_rps: planned requests / time of the last planned arrival.
        sent_rps: requests sent / time of the last send; differs only if the generator was late.
        achieved_rps: requests that ended well / duration.
        goodput_rps: judged requests that met every objective / duration.
        attainment: the same as a share of judged requests; None if none was judged.
        output_tokens_per_s: tokens received / duration.
        tokens_per_chunk: above 1 if the server sends several tokens at once.
        count_sources: where token counts come from: usage, token_ids or chunks.
        lateness_ms: actual minus intended send time; the generator's own fault.
        ttft_ms, tpot_ms, itl_ms, e2e_ms: latencies from the intended send time.
        rejection_ms: how long a rejected request waited for its rejection.
        ttft_p99_bound_ms, e2e_p99_bound_ms: what the 99th percentile is proven, at 99 %
            confidence, not to exceed; None if there are too few requests or too many failures.
        claims: what is proven about the objectives.
        invalid: why the run must not be used; empty for a valid run.
        notes: what a reader must know.
    """

    planned: int
    outcomes: dict[str, int]
    failures: dict[str, int]
    examples: dict[str, str]
    duration_s: float
    offered_rps: float
    sent_rps: float
    achieved_rps: float
    goodput_rps: float
    attainment: float | None
    output_tokens_per_s: float
    tokens_per_chunk: float | None
    count_sources: dict[str, int]
    lateness_ms: Distribution | None
    ttft_ms: Distribution | None
    tpot_ms: Distribution | None
    itl_ms: Distribution | None
    e2e_ms: Distribution | None
    rejection_ms: Distribution | None
    ttft_p99_bound_ms: float | None
    e2e_p99_bound_ms: float | None
    claims: list[Claim] = field(default_factory=list)
    invalid: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def _in_ms(values: Sequence[float | None]) -> Distribution | None:
    return distribution([1000 * value for value in values if value is not None])


def _bound_ms(values: Sequence[float | None]) -> float | None:
    """Proven bound of the 99th percentile; a value that never came counts as infinite."""
    bound = proven_bound([math.inf if value is None else 1000 * value for value in values], 99)
    return None if bound is None or math.isinf(bound) else bound


def _invalid(
    planned: int, records: Sequence[RequestRecord], late: Distribution | None
) -> list[str]:
    reasons = []
    if len(records) != planned:
        reasons.append(f"{planned - len(records)} planned requests were never sent")
    if late is not None and late.p99 > LATENESS_LIMIT_MS:
        reasons.append(
            f"late sends: p99 {late.p99:.1f} ms is above {LATENESS_LIMIT_MS:g} ms; "
            "the generator could not keep up"
        )
    return reasons


def _notes(records: Sequence[RequestRecord], sources: Counter[str]) -> list[str]:
    notes = []
    count, needed = len(judged(records)), requests_needed(0, 99)
    if count < needed:
        notes.append(
            f"{count} judged requests are too few for a claim about p99 at 99 % confidence: "
            f"{needed} are needed if none misses"
        )
    if sources["chunks"]:
        notes.append("the server sends neither usage nor token ids: chunks are counted as tokens")
    return notes


def summarise(
    planned: int, records: Sequence[RequestRecord], objectives: Sequence[Objective]
) -> Summary:
    """Figures of one run.

    Args:
        planned: how many requests the plan had.
        records: what became of those that were sent.
        objectives: what a good request keeps to.
    """
    duration_s = max((record.finished_s for record in records), default=0.0) or math.inf
    well = [record for record in records if record.outcome is Outcome.OK]
    candidates = judged(records)
    good = good_requests(records, objectives)
    late = _in_ms([record.lateness_s for record in records])
    tokens = sum(record.tokens for record in records)
    chunks = sum(len(record.token_times_s) for record in records)
    sources = Counter(r.extra["count_source"] for r in records if "count_source" in r.extra)
    return Summary(
        planned=planned,
        outcomes=dict(Counter(str(record.outcome) for record in records)),
        failures=dict(Counter(record.failure for record in records if record.failure)),
        examples={record.failure: record.detail for record in records if record.failure},
        duration_s=duration_s,
        offered_rps=_rate(records, [record.due_s for record in records]),
        sent_rps=_rate(records, [record.started_s for record in records]),
        achieved_rps=len(well) / duration_s,
        goodput_rps=good / duration_s,
        attainment=good / len(candidates) if candidates else None,
        output_tokens_per_s=tokens / duration_s,
        tokens_per_chunk=tokens / chunks if chunks else None,
        count_sources=dict(sources),
        lateness_ms=late,
        ttft_ms=_in_ms([record.ttft_s for record in records]),
        tpot_ms=_in_ms([record.tpot_s for record in well]),
        itl_ms=_in_ms([gap for record in records for gap in record.gaps_s]),
        e2e_ms=_in_ms([record.e2e_s for record in well]),
        rejection_ms=_in_ms([r.e2e_s for r in records if r.outcome is Outcome.REJECTED]),
        ttft_p99_bound_ms=_bound_ms([record.ttft_s for record in candidates]),
        e2e_p99_bound_ms=_bound_ms(
            [record.e2e_s if record.outcome is Outcome.OK else None for record in candidates]
        ),
        claims=claims(records, objectives),
        invalid=_invalid(planned, records, late),
        notes=_notes(records, sources),
    )


def _rate(records: Sequence[RequestRecord], times: Sequence[float]) -> float:
    span = max(times, default=0.0)
    return len(records) / span if span > 0 else 0.0
