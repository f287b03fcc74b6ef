"""Sizes of pools as the controller told them last, as metrics. Decides and remembers nothing."""

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from twinflow.cluster.gateway.admin_desk import AdminDesk
from twinflow.protos.errors import Unavailable
from twinflow.protos.twinflow.v1 import admin_pb2 as pb

_LABELS = ("model_name", "pool")


class PoolCollector(Collector):
    """Reports pools at a scrape; nothing before the controller has said anything.

    Args:
        model_name: value of the label of the same name.
        desk: hears the controller.
    """

    def __init__(self, model_name: str, desk: AdminDesk) -> None:
        self._model = model_name
        self._desk = desk

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        """One family per metric, one sample per pool, or per pool and direction."""
        size = GaugeMetricFamily(
            "twinflow:pool_size", "Workers that a pool shall have.", labels=_LABELS
        )
        serving = GaugeMetricFamily(
            "twinflow:pool_serving", "Workers that serve in a pool.", labels=_LABELS
        )
        changes = CounterMetricFamily(
            "twinflow:autoscale_changes",
            "Decisions of a pool that gave it another size.",
            labels=(*_LABELS, "direction"),
        )
        for pool in self._pools():
            labels = (self._model, pb.WorkerRole.Name(pool.role).rpartition("_")[2].lower())
            size.add_metric(labels, pool.size)
            serving.add_metric(labels, pool.serving)
            if pool.HasField("autoscaling"):
                changes.add_metric((*labels, "up"), pool.grown)
                changes.add_metric((*labels, "down"), pool.shrunk)
        yield from (size, serving, changes)

    def _pools(self) -> list[pb.Pool]:
        try:
            return list(self._desk.cluster.pools)
        except Unavailable:
            return []
