"""Latent attention in plain torch operations, for any device; the oracle of faster kernels."""

from collections.abc import Sequence

from torch import Tensor

from twinflow.parallel.latent.sharing.base import LatentSharing
from twinflow.runtime.attention.latent.absorbed import AbsorbedTiles
from twinflow.runtime.attention.latent.base import Expansion, LatentHeads, LatentKernel
from twinflow.runtime.attention.latent.expanded import ExpandedTiles
from twinflow.runtime.kv.cache import KVCache


class TiledLatentAttention(LatentKernel):
    """Both forms by tiles."""

    def __init__(self, cache: KVCache, heads: LatentHeads, sharing: LatentSharing) -> None:
        super().__init__(cache, heads, sharing)
        attended = sharing.attended_heads(heads.num_heads)
        self._absorbed = AbsorbedTiles(cache, self._planes, attended, self.share)
        device = cache.data.device
        self._expanded = ExpandedTiles(self._planes, heads, sharing, self.share, device)

    @property
    def batch_invariant(self) -> bool:
        """Whether the probes of this machine's batched matrix products succeeded."""
        tile = self._absorbed.row_tile.join(self._expanded.row_tile)
        return tile.batch_invariant

    def attend_prompt(self, layer: int, queries: Tensor, expansions: Sequence[Expansion]) -> Tensor:
        """See the base class."""
        return self._expanded.attend(layer, queries, expansions)

    def attend_generated(self, layer: int, queries: Tensor) -> tuple[Tensor, Tensor | None]:
        """See the base class."""
        with_lse = self._sharing.needs_merging
        return self._absorbed.attend(layer, queries, with_lse=with_lse)

    def _plan(self) -> None:
        self._expanded.plan(self.prompt.rows)
        if not self.generated.is_empty:
            self._absorbed.plan(self.generated.rows)
