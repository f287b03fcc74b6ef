"""The workers' load and counters, as their latest `WorkerStats` tell them.

Counters live in the workers; a scrape reads the last value that each of them sent. A worker that
restarts begins at zero, which Prometheus takes for the counter reset that it is. Gauges of a worker
that is lost say nothing any more and end; `twinflow:worker_up` says that it is lost.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from twinflow.parallel.partition.backends.names import NONE
from twinflow.protos.twinflow.internal.v1.worker_pb2 import (
    ExpertLayerStats,
    LaneStats,
    WorkerStats,
)

_LABELS = ("model_name", "worker", "role")
_UP = "twinflow:worker_up"


@dataclass(frozen=True, slots=True)
class _Metric:
    family: type[GaugeMetricFamily] | type[CounterMetricFamily]
    name: str
    text: str
    value: Callable[[WorkerStats], float]


@dataclass(frozen=True, slots=True)
class _LabelledMetric:
    """One sample of a worker for each value of a further label."""

    family: type[GaugeMetricFamily] | type[CounterMetricFamily]
    name: str
    text: str
    label: str
    values: Callable[[WorkerStats], Iterable[tuple[str, float]]]


@dataclass(slots=True)
class _Worker:
    """What is known of a worker; its stats until they are too old to be worth anything."""

    role: str
    stats: WorkerStats | None
    up: bool

    def reports(self, family: type[GaugeMetricFamily] | type[CounterMetricFamily]) -> bool:
        """Whether what is known is still true: counters are, of a lost worker too."""
        return self.up or family is CounterMetricFamily


def _divided(stats: WorkerStats) -> bool:
    return stats.HasField("lanes") and not stats.lanes.failure


def _kv_usage(stats: WorkerStats) -> float:
    return 1.0 - stats.free_blocks / stats.total_blocks if stats.total_blocks else 0.0


def _gauge(name: str, text: str, value: Callable[[WorkerStats], float]) -> _Metric:
    return _Metric(GaugeMetricFamily, name, text, value)


def _counter(name: str, text: str, value: Callable[[WorkerStats], float]) -> _Metric:
    return _Metric(CounterMetricFamily, name, text, value)


_METRICS = (
    _gauge("vllm:num_requests_running", "Sequences in the batch.", lambda s: s.num_running),
    _gauge("vllm:num_requests_waiting", "Sequences in the queue.", lambda s: s.num_waiting),
    _gauge("vllm:kv_cache_usage_perc", "KV blocks in use, 1 is all of them.", _kv_usage),
    _counter("vllm:prefix_cache_queries", "Prompt tokens looked up.", lambda s: s.prefix_queries),
    _counter("vllm:prefix_cache_hits", "Prompt tokens found.", lambda s: s.prefix_hits),
    _counter("vllm:num_preemptions", "Sequences preempted.", lambda s: s.preemptions),
    _counter(
        "vllm:spec_decode_num_drafts",
        "Proposals that were verified.",
        lambda s: s.speculation.drafts,
    ),
    _counter(
        "vllm:spec_decode_num_draft_tokens",
        "Proposed tokens that were verified.",
        lambda s: s.speculation.draft_tokens,
    ),
    _counter(
        "vllm:spec_decode_num_accepted_tokens",
        "Proposed tokens that were right.",
        lambda s: s.speculation.accepted_tokens,
    ),
    _gauge(
        "twinflow:drafter_failed",
        "1 if the drafter has failed: nothing is proposed until the worker's next start.",
        lambda s: s.speculation.drafter_failed,
    ),
    _gauge(
        "twinflow:num_requests_receiving",
        "Sequences whose KV is on its way.",
        lambda s: s.num_receiving,
    ),
    _gauge(
        "twinflow:waiting_prompt_tokens",
        "Prompt tokens that no step has computed yet.",
        lambda s: s.waiting_tokens,
    ),
    _gauge("twinflow:kv_blocks_free", "Free KV blocks.", lambda s: s.free_blocks),
    _gauge("twinflow:kv_blocks_total", "KV blocks.", lambda s: s.total_blocks),
    _gauge(
        "twinflow:kv_blocks_leased",
        "KV blocks kept for a decode worker.",
        lambda s: s.leased_blocks,
    ),
    _gauge("twinflow:worker_ranks", "Processes that compute the model.", lambda s: s.ranks),
    _gauge("twinflow:worker_draining", "1 while the worker drains.", lambda s: s.draining),
    _gauge(
        "twinflow:kv_blocks_quarantined",
        "KV blocks of aborted requests whose rows are being computed.",
        lambda s: s.quarantined_blocks,
    ),
    _counter(
        "twinflow:lane_switches", "Changes of the layout of lanes.", lambda s: s.lanes.switches
    ),
    _gauge(
        "twinflow:lanes_failed",
        "1 if two lanes have become one since the worker's start.",
        lambda s: bool(s.lanes.failure),
    ),
    _counter(
        "twinflow:lanes_both_seconds",
        "Time in which both lanes have computed.",
        lambda s: s.lanes.both_seconds,
    ),
    _counter("twinflow:worker_steps", "Engine steps.", lambda s: s.steps),
    _counter(
        "twinflow:worker_busy_seconds",
        "Time in which steps were computed.",
        lambda s: s.busy_seconds,
    ),
    _counter("twinflow:worker_prompt_tokens", "Prompt tokens computed.", lambda s: s.prompt_tokens),
    _counter(
        "twinflow:worker_generation_tokens", "Tokens generated.", lambda s: s.generation_tokens
    ),
    _counter("twinflow:handoff_bytes", "KV bytes handed off.", lambda s: s.handoff_bytes),
    _counter("twinflow:handoff_seconds", "Time of KV hand-offs.", lambda s: s.handoff_seconds),
    _counter(
        "twinflow:handoffs_completed", "Hand-offs that were proved.", lambda s: s.handoffs_completed
    ),
    _counter(
        "twinflow:handoffs_failed", "Hand-offs that were given up.", lambda s: s.handoffs_failed
    ),
    _counter(
        "twinflow:handoff_digests_refused",
        "KV blocks whose digest was wrong.",
        lambda s: s.digests_refused,
    ),
)


def _by_layer(name: str, text: str, value: Callable[[ExpertLayerStats], float]) -> _LabelledMetric:
    def values(stats: WorkerStats) -> Iterator[tuple[str, float]]:
        return ((str(layer.layer), value(layer)) for layer in stats.expert_layers)

    return _LabelledMetric(CounterMetricFamily, name, text, "layer", values)


def _by_lane(
    family: type[GaugeMetricFamily] | type[CounterMetricFamily],
    name: str,
    text: str,
    values: Callable[[LaneStats], tuple[float, float]],
) -> _LabelledMetric:
    def found(stats: WorkerStats) -> Iterator[tuple[str, float]]:
        if stats.HasField("lanes"):
            yield from zip(("prefill", "decode"), values(stats.lanes), strict=True)

    return _LabelledMetric(family, name, text, "lane", found)


def _goodput_steps(stats: WorkerStats) -> Iterator[tuple[str, float]]:
    if stats.speculation.HasField("goodput"):
        goodput = stats.speculation.goodput
        yield "speculate", goodput.speculating_steps
        yield "none", goodput.silent_steps
        yield "probe", goodput.probe_steps


def _draft_kv(stats: WorkerStats) -> Iterator[tuple[str, float]]:
    found = stats.speculation.draft_kv
    yield "handed_over", found.handed_over
    yield "failed", found.failed
    yield "rebuilt", found.rebuilt


_LABELLED_METRICS = (
    _by_layer("twinflow:expert_steps", "Steps that needed experts of a layer.", lambda s: s.steps),
    _by_layer(
        "twinflow:experts_needed",
        "Distinct experts of a layer that steps needed, added up.",
        lambda s: s.distinct,
    ),
    _by_layer(
        "twinflow:expert_bytes_loaded",
        "Bytes of experts' weights that were read in a layer, by all ranks.",
        lambda s: s.loaded_bytes,
    ),
    _LabelledMetric(
        CounterMetricFamily,
        "vllm:spec_decode_num_accepted_tokens_per_pos",
        "Proposals whose token at a position was right; the first is 0.",
        "position",
        lambda s: ((str(place), count) for place, count in enumerate(s.speculation.accepted_at)),
    ),
    _LabelledMetric(
        CounterMetricFamily,
        "twinflow:spec_decode_steps",
        "Decoding steps by what goodput control chose: speculate, none, or probe.",
        "choice",
        _goodput_steps,
    ),
    _LabelledMetric(
        CounterMetricFamily,
        "twinflow:draft_kv_arrivals",
        "Prompts from other workers by the drafter's KV of them: handed_over, failed, or rebuilt.",
        "outcome",
        _draft_kv,
    ),
    _LabelledMetric(
        GaugeMetricFamily,
        "twinflow:lanes",
        "Lanes that compute at the same time; 1 where nothing divides the device.",
        "backend",
        lambda s: [(s.lanes.backend, 2)] if _divided(s) else [(NONE, 1)],
    ),
    _by_lane(
        GaugeMetricFamily,
        "twinflow:lane_processors",
        "Processors of a lane in the layout that was chosen last.",
        lambda s: (s.prefill_processors, s.decode_processors),
    ),
    _by_lane(
        CounterMetricFamily,
        "twinflow:lane_steps",
        "Steps of a lane.",
        lambda s: (s.prefill_steps, s.decode_steps),
    ),
    _by_lane(
        CounterMetricFamily,
        "twinflow:lane_step_seconds",
        "Time that a lane has computed.",
        lambda s: (s.prefill_seconds, s.decode_seconds),
    ),
)


class WorkerCollector(Collector):
    """Reports the latest stats of every known worker at a scrape.

    Args:
        model_name: value of the label of the same name.
    """

    def __init__(self, model_name: str) -> None:
        self._model = model_name
        self._workers: dict[str, _Worker] = {}

    def observe(self, worker_id: str, role: str, stats: WorkerStats) -> None:
        """Replace what is known of a worker; it is there."""
        self._workers[worker_id] = _Worker(role, stats, up=True)

    def lose(self, worker_id: str) -> None:
        """End the gauges of a worker; its counters stay. Unknown ones are no error."""
        if worker_id in self._workers:
            self._workers[worker_id].up = False

    def forget(self, worker_id: str) -> None:
        """Report no more of a worker than that it is lost; unknown ones are no error."""
        if worker_id in self._workers:
            self._workers[worker_id].up = False
            self._workers[worker_id].stats = None

    def remove(self, worker_id: str) -> None:
        """Report nothing of a worker any more; unknown ones are no error."""
        self._workers.pop(worker_id, None)

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        """One family per metric, one sample per worker, or per worker and layer or position."""
        workers = sorted(self._workers.items())
        up = GaugeMetricFamily(_UP, "1 while the gateway hears of the worker.", labels=_LABELS)
        for worker_id, worker in workers:
            up.add_metric((self._model, worker_id, worker.role), worker.up)
        yield up
        for metric in _METRICS:
            family = metric.family(metric.name, metric.text, labels=_LABELS)
            for worker_id, worker in workers:
                if worker.stats is not None and worker.reports(metric.family):
                    value = metric.value(worker.stats)
                    family.add_metric((self._model, worker_id, worker.role), value)
            yield family
        for labelled in _LABELLED_METRICS:
            yield self._labelled(labelled)

    def _labelled(self, metric: _LabelledMetric) -> GaugeMetricFamily | CounterMetricFamily:
        family = metric.family(metric.name, metric.text, labels=(*_LABELS, metric.label))
        for worker_id, worker in sorted(self._workers.items()):
            if worker.reports(metric.family) and worker.stats is not None:
                for value, amount in metric.values(worker.stats):
                    family.add_metric((self._model, worker_id, worker.role, value), amount)
        return family
