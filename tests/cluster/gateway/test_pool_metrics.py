"""Sizes of pools are exported as the controller told them last."""

from prometheus_client import CollectorRegistry

from twinflow.cluster.gateway.admin_desk import AdminDesk
from twinflow.cluster.gateway.pool_metrics import PoolCollector
from twinflow.protos.twinflow.internal.v1 import gateway_pb2
from twinflow.protos.twinflow.v1 import admin_pb2 as pb


def test_pools_are_reported_from_the_first_exchange_on() -> None:
    registry, desk = CollectorRegistry(), AdminDesk()
    registry.register(PoolCollector("tiny", desk))
    labels = {"model_name": "tiny", "pool": "decode"}
    assert registry.get_sample_value("twinflow:pool_size", labels) is None
    pool = pb.Pool(role=pb.WORKER_ROLE_DECODE, size=3, serving=2)
    desk.hear(gateway_pb2.SyncRequest(cluster=pb.Cluster(pools=[pool])))
    assert registry.get_sample_value("twinflow:pool_size", labels) == 3
    assert registry.get_sample_value("twinflow:pool_serving", labels) == 2
    changes = {**labels, "direction": "up"}
    assert registry.get_sample_value("twinflow:autoscale_changes_total", changes) is None
    pool.autoscaling.max, pool.grown = 4, 5
    desk.hear(gateway_pb2.SyncRequest(cluster=pb.Cluster(pools=[pool])))
    assert registry.get_sample_value("twinflow:autoscale_changes_total", changes) == 5
