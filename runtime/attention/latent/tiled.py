"""Latent attention in plain torch operations, for any device; the oracle of faster kernels."""

from twinflow.parallel.latent.sharing.base import LatentSharing
from twinflow.runtime.attention.latent.absorbed import AbsorbedTiles
from twinflow.runtime.attention.latent.base import LatentHeads
from twinflow.runtime.attention.latent.two_forms import TwoFormKernel
from twinflow.runtime.kv.cache import KVCache


class TiledLatentAttention(TwoFormKernel[AbsorbedTiles]):
    """Both forms by tiles."""

    def __init__(self, cache: KVCache, heads: LatentHeads, sharing: LatentSharing) -> None:
        super().__init__(cache, heads, sharing, AbsorbedTiles)

    @property
    def batch_invariant(self) -> bool:
        """Whether the probes of this machine's batched matrix products succeeded."""
        return self._absorbed.row_tile.join(self._row_tile).batch_invariant
