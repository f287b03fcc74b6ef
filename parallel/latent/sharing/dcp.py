"""Decode context parallelism: ranks share the blocks of each sequence. Exact.

Each rank attends with all heads of its group over the blocks it holds; the results are merged by
log-sum-exp, and each rank goes on with its own heads (vLLM's decode context parallelism; Helix,
arXiv 2507.07120).
"""

from torch import Tensor

from twinflow.parallel.latent.block_share import BlockShare
from twinflow.parallel.latent.merging import merge_means
from twinflow.parallel.latent.sharing.base import LatentSharing


class ContextParallel(LatentSharing):
    """See the module."""

    @property
    def needs_merging(self) -> bool:
        """See the base class."""
        return self.shards.size > 1

    def block_share(self, block_size: int) -> BlockShare:
        """See the base class."""
        return BlockShare(block_size, self.shards.rank, self.shards.size)

    def attended_heads(self, num_heads: int) -> int:
        """See the base class."""
        return len(self.output_heads(num_heads)) * self.shards.size

    def gather_queries(self, queries: Tensor) -> Tensor:
        """See the base class."""
        rows, _, width = queries.shape
        return self.shards.all_gather(queries.flatten(1)).view(rows, -1, width)

    def merge(self, mean: Tensor, lse: Tensor | None) -> Tensor:
        """See the base class."""
        if lse is None:
            return mean
        merged = merge_means(mean, lse, self.shards)
        heads = merged.shape[1] // self.shards.size
        first = self.shards.rank * heads
        return merged[:, first : first + heads]

    def gather_tokens(self, latents: Tensor, rope: Tensor) -> tuple[Tensor, Tensor]:
        """See the base class. An entry is a block of each rank, in the order of the ranks."""
        return (
            self.shards.all_gather(latents.flatten(1)).view(-1, latents.shape[2]),
            self.shards.all_gather(rope.flatten(1)).view(-1, rope.shape[2]),
        )

    @property
    def _slices(self) -> range:
        return range(1)
