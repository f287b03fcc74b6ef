"""Tensor-parallel latent attention: ranks share the columns of the latents (arXiv 2508.15881).

Each rank attends with all heads of its group over its columns, with a softmax of its own, and the
output projection adds the results up. With more than one shard this approximates the attention of
generated tokens; that of prompt tokens stays exact. In layers that are to be exact all the same,
the ranks add up their parts of the scores before the softmax: one exchange of [heads, context]
numbers for each generated token.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from twinflow.parallel.latent.heads import even_heads
from twinflow.parallel.latent.scheme import LatentScheme
from twinflow.parallel.latent.sharing.base import LatentSharing
from twinflow.parallel.ranks.base import RankGroup


class TensorParallelLatent(LatentSharing):
    """See the module."""

    def __init__(self, scheme: LatentScheme, ranks: RankGroup, shards: RankGroup) -> None:
        super().__init__(scheme, ranks, shards)
        self.join_in(scheme.exact_layers)

    def join_in(self, layers: Iterable[int]) -> None:
        """Add up scores in these layers from now on, and in no others.

        Only calibration, which asks what each layer costs, deviates from the scheme.
        """
        self._joined = frozenset(layers) if self.shards.size > 1 else frozenset()

    @property
    def can_join(self) -> bool:
        """See the base class."""
        return bool(self._joined)

    def joins(self, layer: int) -> bool:
        """See the base class."""
        return layer in self._joined

    def counted_once(self, queries: Tensor, rope_dim: int) -> Tensor:
        """See the base class. Common columns and rotary keys are the first shard's."""
        if self.shards.rank > 0:
            queries[..., : self.scheme.common].zero_()
            queries[..., -rope_dim:].zero_()
        return queries

    def join_scores(self, scores: Tensor) -> None:
        """See the base class."""
        joined = self.shards.all_reduce(scores)
        if joined is not scores:
            scores.copy_(joined)

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
