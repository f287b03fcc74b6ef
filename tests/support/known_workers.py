"""A front door that knows two workers from what they have reported."""

from collections.abc import Iterator
from contextlib import contextmanager

from tests.support.http_gateway import HttpGateway, http_gateway

from twinflow.cluster.gateway.worker_metrics import WorkerCollector
from twinflow.protos.twinflow.internal.v1.worker_pb2 import WorkerStats

BUSY_PREFILL = WorkerStats(num_waiting=3, total_blocks=4, free_blocks=4, ranks=1)
BUSY_DECODE = WorkerStats(num_running=2, total_blocks=4, free_blocks=3, ranks=2)


@contextmanager
def server(*keys: str, workers: WorkerCollector | None = None) -> Iterator[HttpGateway]:
    """A front door that knows two workers."""
    with http_gateway(keys=keys) as gateway:
        gateway.registry.register(workers or two_workers())
        yield gateway


def two_workers() -> WorkerCollector:
    """What is known of them."""
    workers = WorkerCollector("tiny")
    workers.observe("prefill-0", "prefill", BUSY_PREFILL)
    workers.observe("decode-0", "decode", BUSY_DECODE)
    return workers
