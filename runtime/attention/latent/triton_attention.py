"""Latent attention for CUDA devices: generated tokens by Triton kernels, prompts in torch.

The expanded form is batched matrix products of some hundred columns, which torch's libraries
compute well; it is that of `tiled`. Importing this module needs Triton.
"""

from collections.abc import Sequence

from torch import Tensor

from twinflow.parallel.latent.sharing.base import LatentSharing
from twinflow.runtime.attention.latent.base import Expansion, LatentHeads, LatentKernel
from twinflow.runtime.attention.latent.expanded import ExpandedTiles
from twinflow.runtime.attention.latent.triton_absorbed import AbsorbedSplits
from twinflow.runtime.kv.cache import KVCache


class TritonLatentAttention(LatentKernel):
    """Expanded by tiles, absorbed by splits."""

    def __init__(self, cache: KVCache, heads: LatentHeads, sharing: LatentSharing) -> None:
        super().__init__(cache, heads, sharing)
        attended = sharing.attended_heads(heads.num_heads)
        self._absorbed = AbsorbedSplits(cache, self._planes, attended, self.share)
        device = cache.data.device
        self._expanded = ExpandedTiles(self._planes, heads, sharing, self.share, device)

    @property
    def batch_invariant(self) -> bool:
        """Whether the probes of the expanded form succeeded; the absorbed form always is."""
        return self._expanded.row_tile.batch_invariant

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
