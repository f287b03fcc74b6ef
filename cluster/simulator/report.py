"""What a simulation came to, as text and as values.

Says nothing about how good the prediction is: that is the profile's to say.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from twinflow.cluster.simulator.config import SimulationConfig
from twinflow.cluster.simulator.measures import Measures

PERCENTILES = (50, 90, 99)


@dataclass(frozen=True, slots=True)
class Spread:
    """Summary of one measure, in milliseconds.

    Attributes:
        mean: of all values.
        p50: median.
        p90: 90th percentile.
        p99: 99th percentile.
    """

    mean: float
    p50: float
    p90: float
    p99: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> "Spread | None":
        """Summarise values in seconds, if there are any; percentiles are nearest-rank."""
        if not len(seconds):
            return None
        values = 1000.0 * np.asarray(seconds)
        ranks = np.percentile(values, PERCENTILES, method="inverted_cdf")
        return cls(float(values.mean()), *map(float, ranks))


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The outcome of a simulation.

    Attributes:
        workers: simulated.
        finished: requests that ended well.
        rejected: requests that found their gateway's queue full.
        failed: requests that ended with an error, or never.
        duration_s: from the first arrival on to the last token.
        request_rate: finished requests per second.
        token_rate: tokens per second.
        goodput: requests per second that met all objectives.
        attainment: share of all requests that did.
        latencies: TTFT, TPOT, TBT (each gap between tokens) and end to end.
        device_use: share of the time in which devices computed, by role.
        kv_use: share of the KV memory in use while they did, by role.
        preemptions: of requests.
        kv_transfers: prompts that one worker computed for another one.
        switches: changes of the division of devices.
    """

    workers: int
    finished: int
    rejected: int
    failed: int
    duration_s: float
    request_rate: float
    token_rate: float
    goodput: float
    attainment: float
    latencies: Mapping[str, Spread]
    device_use: Mapping[str, float]
    kv_use: Mapping[str, float]
    preemptions: int
    kv_transfers: int
    switches: int

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)

    def lines(self) -> list[str]:
        """For people."""
        total = self.finished + self.rejected + self.failed
        rows = [("", "mean", *(f"p{q}" for q in PERCENTILES))]
        for name, spread in self.latencies.items():
            values = (spread.mean, spread.p50, spread.p90, spread.p99)
            rows.append((f"{name} ms", *(f"{v:.2f}" for v in values)))
        return [
            f"requests   {total}: {self.finished} finished, {self.rejected} rejected, "
            f"{self.failed} failed; {self.preemptions} preemptions, "
            f"{self.kv_transfers} KV transfers",
            f"time       {self.duration_s:.1f} s simulated on {self.workers} workers",
            f"rate       {self.request_rate:.3f} requests/s, {self.token_rate:.1f} tokens/s",
            f"goodput    {self.goodput:.3f} requests/s, {self.attainment:.1%} of all requests",
            "use        "
            + ", ".join(
                f"{role} {share:.1%} with {self.kv_use[role]:.1%} of its KV memory"
                for role, share in self.device_use.items()
            )
            + (f"; {self.switches} changes of division" if self.switches else ""),
            *("{:<10} {:>10} {:>10} {:>10} {:>10}".format(*row) for row in rows),
        ]


def make_report(
    config: SimulationConfig, measures: Measures, preemptions: int, switches: int
) -> Report:
    """Summarise a simulation.

    Args:
        config: what was simulated.
        measures: what came of it.
        preemptions: of all engines.
        switches: of all controllers.
    """
    total = measures.finished + measures.rejected + measures.failed
    duration = measures.duration_s or 1.0
    spreads = {name.upper(): Spread.of(values) for name, values in measures.latencies().items()}
    gaps = (measures.gaps.mean, *map(measures.gaps.percentile, PERCENTILES))
    found = [1000.0 * gap for gap in gaps if gap is not None]
    spreads["TBT"] = Spread(*found) if found else None
    deployment = config.deployment
    return Report(
        workers=deployment.num_workers,
        finished=measures.finished,
        rejected=measures.rejected,
        failed=measures.failed,
        duration_s=measures.duration_s,
        request_rate=measures.finished / duration,
        token_rate=measures.output_tokens / duration,
        goodput=measures.good / duration,
        attainment=measures.good / max(total, 1),
        latencies={name: spread for name, spread in spreads.items() if spread is not None},
        device_use={
            role: busy / (duration * deployment.pools[role] * deployment.replicas)
            for role, busy in measures.busy_s.items()
        },
        kv_use={role: measures.kv_s[role] / busy for role, busy in measures.busy_s.items() if busy},
        preemptions=preemptions,
        kv_transfers=measures.kv_transfers,
        switches=switches,
    )
