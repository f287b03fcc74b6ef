"""What `/metrics` of a gateway says about resources and outcomes."""

from dataclasses import dataclass

from twinflow.cluster.chaos.history import Counters
from twinflow.cluster.metrics_page import MetricsPage

# Gauges that are zero when nothing runs, and counters of sequences that ended.
_LOADS = (
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "twinflow:num_requests_receiving",
    "twinflow:waiting_prompt_tokens",
    "twinflow:kv_blocks_leased",
    "twinflow:kv_blocks_quarantined",
)
_FREE, _TOTAL = "twinflow:kv_blocks_free", "twinflow:kv_blocks_total"
_IN_FLIGHT = "twinflow:requests_in_flight"
_REFUSED_DIGESTS = "twinflow:handoff_digests_refused_total"


@dataclass(frozen=True, slots=True)
class Scrape:
    """One scrape.

    Attributes:
        page: its samples.
    """

    page: MetricsPage

    @classmethod
    def parse(cls, text: str) -> "Scrape":
        """Read Prometheus' text format."""
        return cls(MetricsPage.parse(text))

    def value(self, name: str, **labels: str) -> float:
        """The sum of the samples with this name and these labels among theirs."""
        return self.page.total(name, **labels) or 0.0

    @property
    def workers(self) -> frozenset[str]:
        """Ids of the workers that have reported."""
        return frozenset(sample.labels["worker"] for sample in self.page.samples.get(_TOTAL, ()))

    def held(self) -> dict[str, float]:
        """What requests hold now, by worker and kind; empty when nothing is held."""
        found = {_IN_FLIGHT: self.value(_IN_FLIGHT)}
        for worker in self.workers:
            for name in _LOADS:
                found[f"{worker} {name}"] = self.value(name, worker=worker)
            total, free = self.value(_TOTAL, worker=worker), self.value(_FREE, worker=worker)
            found[f"{worker} blocks"] = total - free
        return {name: value for name, value in found.items() if value}

    @property
    def accepted(self) -> float:
        """Sequences admitted so far."""
        return self.value("twinflow:requests_accepted_total")

    @property
    def finished(self) -> float:
        """Sequences that ran to their end so far."""
        name = "vllm:request_success_total"
        return sum(self.value(name, finished_reason=reason) for reason in ("stop", "length"))

    @property
    def aborted(self) -> float:
        """Sequences whose client went away so far."""
        return self.value("vllm:request_success_total", finished_reason="abort")

    @property
    def failed(self) -> float:
        """Sequences lost to an error so far."""
        return self.value("twinflow:request_failures_total")

    @property
    def digests_refused(self) -> float:
        """Pages that receivers refused so far."""
        return self.value(_REFUSED_DIGESTS)

    @property
    def counters(self) -> Counters:
        """Totals of sequences."""
        return Counters(
            accepted=self.accepted,
            finished=self.finished,
            aborted=self.aborted,
            failed=self.failed,
            in_flight=self.value(_IN_FLIGHT),
        )
