"""What both halves of a hand-off work with."""

from dataclasses import dataclass

from twinflow.protos.twinflow.internal.v1 import worker_pb2 as pb
from twinflow.runtime.build import BuiltEngine
from twinflow.workers.core import WorkerCore
from twinflow.workers.handoff.links import PeerLinks


@dataclass(frozen=True, slots=True)
class HandoffEnd:
    """One worker's end of its hand-offs.

    Attributes:
        core: its engine and requests.
        built: its KV memory.
        links: to its peers.
        me: who it is.
    """

    core: WorkerCore
    built: BuiltEngine
    links: PeerLinks
    me: pb.DescribeResponse

    @property
    def patience_s(self) -> float:
        """Longest wait for the peer's next sign of life."""
        return self.core.config.kv_transfer_timeout_s
