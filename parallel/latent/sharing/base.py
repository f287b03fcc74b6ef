"""What one rank of a worker holds of latent attention, and what it exchanges with the others.

A worker has T ranks. Neighbouring ranks form a group of `shards`, which together cache every token
once. Rank r is shard j = r % n of group b = r // n. What is divided, by kind:

                  replicated        dcp                     tpla
    cached        everything        the blocks i with       columns [j C/n, (j+1) C/n) of all
                                    i % n = j               latents, and all rotary keys
    generated     T-th of heads     T-th of heads; scores   T/n-th of heads, all of the group;
    tokens                          of all heads of the     sums of latents over own columns;
                                    group over own blocks   in exact layers, scores added up
    prompt        T-th of heads, from whole latents, brought together over the group

Heads are cut at all ranks in order. A rank hands the output projection the heads it is asked for
with `output_heads`; the sum over all T ranks is the result. Tensors here are of rows and heads;
what is computed with them is a kernel's and a model's business.
"""

from abc import ABC, abstractmethod

from torch import Tensor

from twinflow.parallel.kv_part import ROPE_PART
from twinflow.parallel.latent.block_share import BlockShare
from twinflow.parallel.latent.heads import even_heads
from twinflow.parallel.latent.scheme import COMMON_PART, LatentScheme
from twinflow.parallel.ranks.base import RankGroup
from twinflow.protos.errors import ConfigError


class LatentSharing(ABC):
    """One rank's part.

    Args:
        scheme: of the deployment.
        ranks: all ranks of the worker.
        shards: those of them that share a cache, this one among them.

    Attributes:
        scheme: of the deployment.
        ranks: all ranks of the worker.
        shards: those that share a cache.

    Raises:
        ConfigError: the groups do not fit together.
    """

    def __init__(self, scheme: LatentScheme, ranks: RankGroup, shards: RankGroup) -> None:
        if ranks.size % shards.size:
            raise ConfigError(f"{ranks.size} ranks cannot form groups of {shards.size} shards")
        if ranks.rank % shards.size != shards.rank:
            raise ValueError(f"rank {ranks.rank} cannot be shard {shards.rank} of {shards.size}")
        self.scheme = scheme
        self.ranks = ranks
        self.shards = shards

    @property
    def needs_merging(self) -> bool:
        """Whether `merge` wants to know the log-sum-exp of scores."""
        return False

    @property
    def can_join(self) -> bool:
        """Whether there are layers in which ranks add up their scores."""
        return False

    def joins(self, layer: int) -> bool:
        """Whether ranks add up their parts of the scores of a layer, which makes it exact.

        Args:
            layer: of the model.
        """
        return False

    def counted_once(self, queries: Tensor, rope_dim: int) -> Tensor:
        """Queries for scores that are to be added up.

        Args:
            queries: [rows, attended heads, held columns + rope_dim]; consumed.
            rope_dim: elements of a rotary key.

        Returns:
            The queries, zero where another rank counts what this one also holds.
        """
        return queries

    def join_scores(self, scores: Tensor) -> None:
        """Add up the parts of all ranks, in place.

        Args:
            scores: float32 [rows, width] of this rank, contiguous.

        Raises:
            RankLost: a rank did not answer within the deadline.
        """
        raise RuntimeError(f"ranks that share latents by {self.scheme.kind} add up no scores")

    def block_share(self, block_size: int) -> BlockShare:
        """The blocks of a sequence that this rank holds."""
        return BlockShare(block_size)

    def prompt_heads(self, num_heads: int) -> range:
        """Heads that attend for prompt tokens here.

        Raises:
            ConfigError: the heads cannot be shared evenly.
        """
        return even_heads(num_heads, self.ranks.rank, self.ranks.size)

    def output_heads(self, num_heads: int) -> range:
        """Heads that this rank's part of the output projection reads; contains `prompt_heads`.

        Raises:
            ConfigError: the heads cannot be shared evenly.
        """
        return self.prompt_heads(num_heads)

    def attended_heads(self, num_heads: int) -> int:
        """Heads that attend for generated tokens here."""
        return len(self.output_heads(num_heads))

    def part_names(self) -> list[str]:
        """The parts of a page that this rank holds, in the order of the layout."""
        return [*self._common, *map(self.scheme.slice_name, self._slices), ROPE_PART]

    def columns(self, kv_rank: int) -> list[range]:
        """Columns of the latents that this rank holds: a range for each part but the last."""
        width, common = self.scheme.slice_width(kv_rank), self.scheme.common
        starts = [common + index * width for index in self._slices]
        ranges = [range(start, start + width) for start in starts]
        return [range(common), *ranges] if common else ranges

    def value_columns(self, kv_rank: int) -> list[range]:
        """Columns whose share in the values this rank contributes: each is one shard's."""
        columns = self.columns(kv_rank)
        return columns[1:] if self.scheme.common and self._slices.start else columns

    def gather_queries(self, queries: Tensor) -> Tensor:
        """Bring the queries together that attend here.

        Args:
            queries: [rows, output heads, width] of this rank.

        Returns:
            [rows, attended heads, width].
        """
        return queries

    def merge(self, mean: Tensor, lse: Tensor | None) -> Tensor:
        """Finish the attention of generated tokens.

        Args:
            mean: float32 [rows, attended heads, width] of what is cached here; consumed.
            lse: float32 [rows, attended heads], if `needs_merging`.

        Returns:
            [rows, output heads, width] of this rank.
        """
        return mean

    def gather_tokens(self, latents: Tensor, rope: Tensor) -> tuple[Tensor, Tensor]:
        """Bring whole tokens together, all columns of all tokens.

        Args:
            latents: [entries, block_size, held columns] of entries of a block table.
            rope: [entries, block_size, rope_dim].

        Returns:
            [tokens, kv_rank] and [tokens, rope_dim] of all tokens of the entries, in order.
        """
        return latents.flatten(0, 1), rope.flatten(0, 1)

    @property
    @abstractmethod
    def _slices(self) -> range:
        """Slices of the columns that this rank holds."""

    @property
    def _common(self) -> list[str]:
        return [COMMON_PART] if self.scheme.common else []
