"""Latent attention for CUDA devices: generated tokens by Triton kernels, prompts in torch.

The expanded form is batched matrix products of some hundred columns, which torch's libraries
compute well; it is that of `tiled`. Importing this module needs Triton.
"""

from twinflow.parallel.latent.sharing.base import LatentSharing
from twinflow.runtime.attention.latent.base import LatentHeads
from twinflow.runtime.attention.latent.triton_absorbed import AbsorbedSplits
from twinflow.runtime.attention.latent.two_forms import TwoFormKernel
from twinflow.runtime.kv.cache import KVCache


class TritonLatentAttention(TwoFormKernel[AbsorbedSplits]):
    """Expanded by tiles, absorbed by splits."""

    def __init__(self, cache: KVCache, heads: LatentHeads, sharing: LatentSharing) -> None:
        super().__init__(cache, heads, sharing, AbsorbedSplits)

    @property
    def batch_invariant(self) -> bool:
        """Whether the probes of the forms by tiles succeeded; that by splits always is."""
        return self._row_tile.batch_invariant
