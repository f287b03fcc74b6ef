"""What kernels of latent attention have in common: who computes which form.

The expanded form, of prompts, is the same on all devices; kernels differ in the absorbed one. In
layers whose scores ranks add up, it is that by tiles, which has the scores in memory.
"""

from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar

from torch import Tensor

from twinflow.parallel.latent.block_share import BlockShare
from twinflow.parallel.latent.sharing.base import LatentSharing
from twinflow.runtime.attention.latent.absorbed import AbsorbedTiles
from twinflow.runtime.attention.latent.base import Expansion, LatentHeads, LatentKernel
from twinflow.runtime.attention.latent.expanded import ExpandedTiles
from twinflow.runtime.attention.rows import FlatRows
from twinflow.runtime.kv.cache import KVCache
from twinflow.runtime.kv.latent_planes import LatentPlanes
from twinflow.runtime.row_tile import RowTile


class AbsorbedForm(Protocol):
    """Absorbed attention over what a rank holds."""

    def plan(self, rows: FlatRows) -> None:
        """Take over the rows of a step."""
        ...

    def attend(
        self, layer: int, queries: Tensor, *, with_lse: bool
    ) -> tuple[Tensor, Tensor | None]:
        """See `LatentKernel.attend_generated`."""
        ...


Absorbed = TypeVar("Absorbed", bound=AbsorbedForm)


class TwoFormKernel(LatentKernel, Generic[Absorbed]):
    """Prompts in expanded form by tiles, generated tokens in an absorbed form.

    Args:
        cache: the latents and rotary keys that this rank holds.
        heads: sizes of the model.
        sharing: this rank's part of it.
        absorbed: makes the absorbed form for cache, planes, attended heads and held blocks.
    """

    def __init__(
        self,
        cache: KVCache,
        heads: LatentHeads,
        sharing: LatentSharing,
        absorbed: Callable[[KVCache, LatentPlanes, int, BlockShare], Absorbed],
    ) -> None:
        super().__init__(cache, heads, sharing)
        holding = (cache, self._planes, sharing.attended_heads(heads.num_heads), self.share)
        self._absorbed = absorbed(*holding)
        self._joined: AbsorbedTiles | None = None
        if sharing.can_join:
            form = self._absorbed
            self._joined = form if isinstance(form, AbsorbedTiles) else AbsorbedTiles(*holding)
        device = cache.data.device
        self._expanded = ExpandedTiles(self._planes, heads, sharing, self.share, device)

    def attend_prompt(self, layer: int, queries: Tensor, expansions: Sequence[Expansion]) -> Tensor:
        """See the base class."""
        return self._expanded.attend(layer, queries, expansions)

    def attend_generated(self, layer: int, queries: Tensor) -> tuple[Tensor, Tensor | None]:
        """See the base class."""
        sharing = self._sharing
        if self._joined is not None and sharing.joins(layer):
            queries = sharing.counted_once(queries, self._planes.rope_width)
            return self._joined.attend(layer, queries, with_lse=False, join=sharing.join_scores)
        return self._absorbed.attend(layer, queries, with_lse=sharing.needs_merging)

    def _plan(self) -> None:
        self._expanded.plan(self.prompt.rows)
        if self.generated.is_empty:
            return
        self._absorbed.plan(self.generated.rows)
        if self._joined is not None and self._joined is not self._absorbed:
            self._joined.plan(self.generated.rows)

    @property
    def _row_tile(self) -> RowTile:
        """What the machine needs of the forms by tiles that all kernels have."""
        tile = self._expanded.row_tile
        return tile if self._joined is None else tile.join(self._joined.row_tile)
