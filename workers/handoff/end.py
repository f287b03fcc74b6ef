"""What every half of a hand-off works with, on one rank of a worker."""

from dataclasses import dataclass

from twinflow.parallel.latent.block_share import BlockShare
from twinflow.runtime.kv.cache import KVCache
from twinflow.workers.config import WorkerConfig
from twinflow.workers.fault_points import FaultPoints
from twinflow.workers.handoff.links import PeerLinks


@dataclass(frozen=True, slots=True)
class HandoffEnd:
    """One rank's end of its worker's hand-offs.

    Attributes:
        config: of the rank.
        fingerprint: of the worker's model.
        cache: the KV memory of the rank.
        layers_per_unit: layers whose KV is handed over together.
        links: to the ranks of other workers.
        share: which blocks of every sequence are in the cache.
        faults: where the rank fails if a test wants it.
        draft: what is handed over is KV of the model that drafts.
    """

    config: WorkerConfig
    fingerprint: str
    cache: KVCache
    layers_per_unit: int
    links: PeerLinks
    share: BlockShare
    faults: FaultPoints
    draft: bool = False

    @property
    def patience_s(self) -> float:
        """Longest wait for the peer's next sign of life."""
        return self.config.kv_transfer_timeout_s

    @property
    def parts(self) -> list[str]:
        """Names of the parts of a page that the rank holds."""
        return [part.name for part in self.cache.layout.parts]
