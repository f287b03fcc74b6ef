"""Whole attention sub-layers on single ranks: who has which.

    layer     0   1   2   3   4   5   6   7
    of rank   0   1   2   0   1   2   0   1        three ranks

Layers go round, so that of any run of consecutive layers each rank has nearly as many as any other:
those that are computed side by side keep all ranks busy, whichever they are, and weights and KV are
shared evenly. The layout is that of EasySpec (arXiv 2502.02493), which numbers the layers of each
group anew. Computes nothing.
"""

from dataclasses import dataclass

from twinflow.parallel.ranks.base import RankGroup
from twinflow.protos.errors import ConfigError


@dataclass(frozen=True, slots=True)
class LayerOwners:
    """The attention of a model as one rank sees it.

    Attributes:
        rank: this one.
        size: ranks that share the layers.
        replicated: MLPs and vocabulary are whole on every rank; otherwise they are cut.
    """

    rank: int
    size: int
    replicated: bool

    @classmethod
    def of(cls, ranks: RankGroup, num_layers: int, *, replicated: bool) -> "LayerOwners":
        """The share of a rank.

        Raises:
            ConfigError: some rank would have no layer.
        """
        if num_layers < ranks.size:
            raise ConfigError(
                f"{num_layers} layers cannot be owned by {ranks.size} ranks; use fewer ranks"
            )
        return cls(ranks.rank, ranks.size, replicated)

    def owner(self, layer: int) -> int:
        """The rank that has a layer."""
        return layer % self.size

    def holds(self, layer: int) -> bool:
        """Whether this rank has a layer."""
        return self.owner(layer) == self.rank

    def place(self, layer: int) -> int:
        """Which one of its owner's layers a layer is."""
        return layer // self.size

    def count(self, num_layers: int) -> int:
        """How many layers this rank has."""
        return len(range(self.rank, num_layers, self.size))
