"""Percentiles, and how many requests a claim about a percentile needs.

Percentiles are nearest-rank: always a value that was measured, never an interpolation.
The sample-size rule is exact and free of assumptions about the distribution: the number of
requests above the true q-quantile is binomial(n, 1 - q). It is the rule behind the early stopping
of MLPerf Inference. It holds for independent requests, so it is applied to TTFT, TPOT and
end-to-end time, and not to the gaps of one stream.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

CONFIDENCE = 0.99


@dataclass(frozen=True, slots=True)
class Distribution:
    """Summary of measured values, in the unit of the values."""

    count: int
    mean: float
    p50: float
    p90: float
    p99: float
    max: float


def percentile(ordered: Sequence[float], q: float) -> float:
    """Nearest-rank percentile of ascending values; `q` in (0, 100]."""
    # Rounded, because 0.07 * 100 is 7.000000000000001 in binary and would give rank 8.
    rank = math.ceil(round(q / 100 * len(ordered), 9))
    return ordered[max(rank, 1) - 1]


def distribution(values: Sequence[float]) -> Distribution | None:
    """Summarise values; None if there are none."""
    if not values:
        return None
    ordered = sorted(values)
    return Distribution(
        count=len(ordered),
        mean=math.fsum(ordered) / len(ordered),
        p50=percentile(ordered, 50),
        p90=percentile(ordered, 90),
        p99=percentile(ordered, 99),
        max=ordered[-1],
    )


def median(values: Sequence[float]) -> float:
    """Median; the mean of the two middle values of an even number."""
    ordered = sorted(values)
    middle = len(ordered) // 2
    if len(ordered) % 2:
        return ordered[middle]
    return (ordered[middle - 1] + ordered[middle]) / 2


def chance_of_at_most(misses: int, count: int, miss_rate: float) -> float:
    """P(X <= misses) for X ~ binomial(count, miss_rate), summed in logarithms."""
    log_rate, log_rest = math.log(miss_rate), math.log1p(-miss_rate)
    terms = [
        math.lgamma(count + 1)
        - math.lgamma(k + 1)
        - math.lgamma(count - k + 1)
        + k * log_rate
        + (count - k) * log_rest
        for k in range(min(misses, count) + 1)
    ]
    return min(1.0, math.fsum(map(math.exp, terms)))


def proves(misses: int, count: int, q: float, confidence: float = CONFIDENCE) -> bool:
    """Whether `misses` of `count` requests above x prove that the q-th percentile is at most x."""
    return chance_of_at_most(misses, count, 1 - q / 100) <= 1 - confidence


def requests_needed(misses: int, q: float, confidence: float = CONFIDENCE) -> int:
    """Fewest requests of which `misses` may miss x, for q-th percentile <= x to be proven.

    459, 662 and 838 for the 99th percentile and 0, 1 and 2 misses at 99 % confidence.
    """
    low, high = misses + 1, 2 * (misses + 1)
    while not proves(misses, high, q, confidence):
        low, high = high, high * 2
    while low < high:
        middle = (low + high) // 2
        if proves(misses, middle, q, confidence):
            high = middle
        else:
            low = middle + 1
    return low


def proven_bound(values: Sequence[float], q: float, confidence: float = CONFIDENCE) -> float | None:
    """The least measured x for which q-th percentile <= x is proven; None with too few values.

    A request that never finished belongs in `values` as infinity.
    """
    ordered = sorted(values)
    bound = None
    for misses, value in enumerate(reversed(ordered)):
        if not proves(misses, len(ordered), q, confidence):
            break
        bound = value
    return bound
