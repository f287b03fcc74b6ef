"""Tensor-parallel latent attention: ranks share the columns of the latents (arXiv 2508.15881).

Each rank attends with all heads of its group over its columns, with a softmax of its own, and the
output projection adds the results up. With more than one shard this approximates the attention of
generated tokens; that of prompt tokens stays exact.
"""

import torch
from torch import Tensor

from twinflow.parallel.latent.heads import even_heads
from twinflow.parallel.latent.sharing.base import LatentSharing


class TensorParallelLatent(LatentSharing):
    """See the module."""

    def output_heads(self, num_heads: int) -> range:
        """See the base class."""
        groups = self.ranks.size // self.shards.size
        return even_heads(num_heads, self.ranks.rank // self.shards.size, groups)

    def gather_tokens(self, latents: Tensor, rope: Tensor) -> tuple[Tensor, Tensor]:
        """See the base class."""
        common = self.scheme.common
        held = latents.flatten(0, 1)
        slices = self.shards.all_gather(held[:, common:])
        return torch.cat((held[:, :common], slices), dim=1), rope.flatten(0, 1)

    @property
    def _slices(self) -> range:
        return range(self.shards.rank, self.shards.rank + 1)
