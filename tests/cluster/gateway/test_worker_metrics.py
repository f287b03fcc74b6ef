"""What a scrape says of workers' lanes."""

import pytest

from twinflow.cluster.gateway.worker_metrics import WorkerCollector
from twinflow.protos.twinflow.internal.v1 import worker_pb2 as pb

TWO = pb.LaneStats(backend="cores", prefill_steps=3)
FALLEN = pb.LaneStats(backend="none", prefill_steps=3, failure="the driver refuses")


@pytest.mark.parametrize(
    ("lanes", "expected"),
    [
        (None, {"twinflow:lanes none": 1, "twinflow:lanes_failed": 0}),
        (TWO, {"twinflow:lanes cores": 2, "twinflow:lanes_failed": 0}),
        (FALLEN, {"twinflow:lanes none": 1, "twinflow:lanes_failed": 1}),
    ],
    ids=["one", "two", "fallen back"],
)
def test_lanes(lanes: pb.LaneStats | None, expected: dict[str, float]) -> None:
    collector = WorkerCollector("tiny")
    collector.observe("mixed-0", "mixed", pb.WorkerStats(lanes=lanes))
    found = {
        f"{sample.name} {sample.labels.get('backend', '')}".rstrip(): sample.value
        for family in collector.collect()
        for sample in family.samples
        if family.name in ("twinflow:lanes", "twinflow:lanes_failed")
    }
    assert found == expected
