"""Where a worker is, and which one is meant."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class WorkerAddress:
    """Where a worker is and who it says it is.

    Attributes:
        worker_id: unique in the deployment.
        address: host and port of its gRPC server.
        epoch: the life that is meant, which no other one may pass for; 0 takes any.
    """

    worker_id: str
    address: str
    epoch: int = 0
