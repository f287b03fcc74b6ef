"""A server's metrics at one moment, and what has happened between two.

Asks nobody and keeps no time of its own.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise

from twinflow.cluster.metrics_page import MetricsPage

UP, DRAINING = "twinflow:worker_up", "twinflow:worker_draining"


@dataclass(frozen=True, slots=True)
class Scrape:
    """One page of metrics.

    Attributes:
        at: when it was read, in seconds of any clock.
        page: what it says.
    """

    at: float
    page: MetricsPage

    @classmethod
    def of(cls, text: str, at: float) -> "Scrape":
        """Of a page in Prometheus' text format."""
        return cls(at, MetricsPage.parse(text))

    def total(self, name: str, **labels: str) -> float | None:
        """See `MetricsPage.total`."""
        return self.page.total(name, **labels)

    def by_worker(self, names: Iterable[str]) -> dict[tuple[str, str], dict[str, float]]:
        """Values of metrics that workers have, by role and worker, in order."""
        found: dict[tuple[str, str], dict[str, float]] = {}
        for name in names:
            for sample in self.page.samples.get(name, ()):
                if "worker" in sample.labels:
                    worker = (sample.labels.get("role", ""), sample.labels["worker"])
                    found.setdefault(worker, {})[name] = sample.value
        return dict(sorted(found.items()))


@dataclass(frozen=True, slots=True)
class Between:
    """What counters have grown by between two scrapes; one that has shrunk has begun anew."""

    first: Scrape
    last: Scrape

    def grown(self, name: str, **labels: str) -> float | None:
        """By how much; None if there is no such counter now."""
        after, before = self.last.total(name, **labels), self.first.total(name, **labels)
        if after is None or before is None or after < before:
            return after
        return after - before

    def per_second(self, name: str, **labels: str) -> float | None:
        """The same for each second; None without a counter or without time between."""
        grown, seconds = self.grown(name, **labels), self.last.at - self.first.at
        return None if grown is None or seconds <= 0 else grown / seconds

    def quantile(self, name: str, share: float) -> float | None:
        """A quantile of a histogram's new observations, None if there are none.

        Interpolated within its bucket, as Prometheus' `histogram_quantile` does; observations
        above the last bound count as that bound.
        """
        bucket = f"{name}_bucket"
        written = {sample.labels["le"] for sample in self.last.page.samples.get(bucket, ())}
        counts = sorted((float(le), self.grown(bucket, le=le) or 0.0) for le in written)
        rank = share * counts[-1][1] if counts else 0.0
        if not rank:
            return None
        for (low, before), (bound, count) in pairwise([(0.0, 0.0), *counts]):
            if count >= rank:
                if math.isinf(bound):
                    return low
                return low + (bound - low) * (rank - before) / max(count - before, 1.0)
        return counts[-1][0]


def state_of(values: Mapping[str, float]) -> str:
    """How a worker is, from its metrics, in a word."""
    if UP not in values:
        return "-"
    if not values[UP]:
        return "lost"
    return "draining" if values.get(DRAINING) else "up"
