"""Prometheus metrics of a gateway and of the workers behind it.

Metrics that mean what vLLM's mean carry vLLM's names, so that dashboards and autoscalers work
unchanged; the others start with `twinflow:`. At every moment

    requests_accepted = request_success (finished or aborted) + request_failures + in flight

in sequences: a request for n completions counts n times. Nothing here serves HTTP.
"""

from collections.abc import Iterable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from twinflow.cluster.gateway.worker_metrics import WorkerCollector
from twinflow.cluster.latency_counts import LatencyCounts
from twinflow.protos.errors import TwinflowError
from twinflow.protos.twinflow.internal.v1 import worker_pb2
from twinflow.runtime.outputs import FinishReason, PhaseTime

_LABEL = "model_name"
_TTFT_BUCKETS = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0),
)
_ITL_BUCKETS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0),
)
_WIDTH = 0.05
_REQUEST_BUCKETS = (
    *(0.01, 0.05, 0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0),
    *(40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0),
)
# Which of a worker's phases vLLM's histograms add up. `decode` begins with the second token.
_QUEUE_PHASES = frozenset({"queue", "preempted"})
_PREFILL_PHASES = frozenset({"prefill", "recompute"})
_DECODE_PHASES = frozenset({"first_decode", "decode"})


class GatewayMetrics:
    """Every metric of one gateway, in one registry.

    Args:
        registry: where they are registered; front doors expose it.
        model_name: value of the label of the same name.

    Attributes:
        first_tokens: times to first tokens, in finer classes than histograms have.
        gaps: times between tokens, likewise.
    """

    def __init__(self, registry: CollectorRegistry, model_name: str) -> None:
        self._registry = registry
        self._model = model_name
        self.first_tokens, self.gaps = LatencyCounts(_WIDTH), LatencyCounts(_WIDTH)
        self._workers = WorkerCollector(model_name)
        registry.register(self._workers)
        self._accepted = self._counter("twinflow:requests_accepted", "Admitted sequences.")
        self._prompt_tokens = self._counter("vllm:prompt_tokens", "Tokens of admitted prompts.")
        self._generation_tokens = self._counter("vllm:generation_tokens", "Tokens delivered.")
        self._finished = self._counters(
            "vllm:request_success", "Sequences that ended, by reason.", "finished_reason"
        )
        self._failed = self._counters(
            "twinflow:request_failures", "Sequences lost to an error, by its code.", "code"
        )
        self._rejected = self._counters(
            "vllm:admission_rejections", "Requests refused at admission, by reason.", "reason"
        )
        self._in_flight = Gauge(
            "twinflow:requests_in_flight",
            "Admitted sequences that have not ended.",
            [_LABEL],
            registry=registry,
        ).labels(model_name)
        self._ttft = self._histogram("vllm:time_to_first_token_seconds", _TTFT_BUCKETS)
        self._itl = self._histogram("vllm:inter_token_latency_seconds", _ITL_BUCKETS)
        self._e2e = self._histogram("vllm:e2e_request_latency_seconds", _REQUEST_BUCKETS)
        self._queue = self._histogram("vllm:request_queue_time_seconds", _REQUEST_BUCKETS)
        self._prefill = self._histogram("vllm:request_prefill_time_seconds", _REQUEST_BUCKETS)
        self._decode = self._histogram("vllm:request_decode_time_seconds", _REQUEST_BUCKETS)
        for reason in FinishReason:  # present from the start, so that rates have a zero
            self._finished.labels(model_name, reason.value)

    @property
    def registry(self) -> CollectorRegistry:
        """Where the metrics are registered."""
        return self._registry

    def accepted(self, sequences: int, prompt_tokens: int) -> None:
        """A request was admitted."""
        self._accepted.inc(sequences)
        self._in_flight.inc(sequences)
        self._prompt_tokens.inc(prompt_tokens)

    def rejected(self, error: TwinflowError) -> None:
        """A request was refused at admission."""
        self._rejected.labels(self._model, error.code).inc()

    def first_token(self, seconds: float) -> None:
        """A sequence's first token left, so long after its request arrived."""
        self._ttft.observe(seconds)
        self.first_tokens.add(seconds)

    def inter_token(self, seconds: float, tokens: int) -> None:
        """Further tokens of a sequence left, so long after those before them."""
        self._itl.observe(seconds)
        self.gaps.add(seconds / tokens, tokens)

    def delivered(self, tokens: int) -> None:
        """Tokens left."""
        self._generation_tokens.inc(tokens)

    def ended(self, reason: FinishReason, seconds: float, phases: Sequence[PhaseTime]) -> None:
        """A sequence finished or was aborted, so long after its request arrived.

        Args:
            reason: why it ended.
            seconds: age of its request.
            phases: where its time on the workers went; none before its first token.
        """
        self._in_flight.dec()
        self._finished.labels(self._model, reason.value).inc()
        if reason is not FinishReason.ABORT:
            self._e2e.observe(seconds)
        self._spent_on_workers(phases)

    def failed(self, code: str, phases: Sequence[PhaseTime] = ()) -> None:
        """A sequence was lost to an error; see `ended`."""
        self._in_flight.dec()
        self._failed.labels(self._model, code).inc()
        self._spent_on_workers(phases)

    def _spent_on_workers(self, phases: Sequence[PhaseTime]) -> None:
        if not phases:
            return
        self._queue.observe(_spent(phases, _QUEUE_PHASES))
        self._prefill.observe(_spent(phases, _PREFILL_PHASES))
        self._decode.observe(_spent(phases, _DECODE_PHASES))

    def observe_worker(self, worker_id: str, role: str, stats: worker_pb2.WorkerStats) -> None:
        """Take over a worker's latest load and counters."""
        self._workers.observe(worker_id, role, stats)

    def lose_worker(self, worker_id: str) -> None:
        """A worker is away: its load is unknown from now on; unknown ones are no error."""
        self._workers.lose(worker_id)

    def forget_worker(self, worker_id: str) -> None:
        """Stop reporting the counters of a worker that is gone; unknown ones are no error."""
        self._workers.forget(worker_id)

    def remove_worker(self, worker_id: str) -> None:
        """Stop reporting a worker that is none any more; unknown ones are no error."""
        self._workers.remove(worker_id)

    def _counter(self, name: str, text: str) -> Counter:
        return self._counters(name, text).labels(self._model)

    def _counters(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, [_LABEL, *labels], registry=self._registry)

    def _histogram(self, name: str, buckets: Iterable[float]) -> Histogram:
        text = f"{name.partition(':')[2].replace('_', ' ').capitalize()}."
        family = Histogram(name, text, [_LABEL], buckets=tuple(buckets), registry=self._registry)
        return family.labels(self._model)


def _spent(phases: Sequence[PhaseTime], names: frozenset[str]) -> float:
    return sum(phase.seconds for phase in phases if phase.name in names)
