"""Brings together what ranks have computed of attention: of one layer, or of several at once.

Each variant takes one collective for all layers of a group, however many there are.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from twinflow.parallel.ranks.base import RankGroup
from twinflow.runtime.models.owners import LayerOwners


class AttentionParts(ABC):
    """Makes whole outputs of attention sub-layers from the parts of the ranks.

    Args:
        ranks: all of them.
    """

    def __init__(self, ranks: RankGroup) -> None:
        self._ranks = ranks

    @abstractmethod
    def join(self, layers: range, parts: Mapping[int, Tensor], like: Tensor) -> Sequence[Tensor]:
        """What the attention of some layers adds to the residual stream.

        Args:
            layers: consecutive ones.
            parts: what this rank has computed, by layer: [rows, hidden] each.
            like: any tensor of that shape and dtype.

        Returns:
            [rows, hidden] for each layer, the same on all ranks.
        """


class SummedParts(AttentionParts):
    """Every rank has some heads of every layer: parts are added up."""

    def join(self, layers: range, parts: Mapping[int, Tensor], like: Tensor) -> Sequence[Tensor]:
        """See the base class."""
        own = [parts[layer] for layer in layers]
        if self._ranks.size == 1:
            return own
        if len(own) == 1:
            return [self._ranks.all_reduce(own[0])]
        return torch.split(self._ranks.all_reduce(torch.cat(own)), len(like))


class OwnedParts(AttentionParts):
    """One rank has all of a layer: its result is handed to the others.

    Args:
        ranks: all of them.
        owners: who has which layer.
    """

    def __init__(self, ranks: RankGroup, owners: LayerOwners) -> None:
        super().__init__(ranks)
        self._owners = owners

    def join(self, layers: range, parts: Mapping[int, Tensor], like: Tensor) -> Sequence[Tensor]:
        """See the base class."""
        size, owner = self._ranks.size, self._owners.owner
        if len(layers) == 1:
            (layer,) = layers
            own = parts[layer] if layer in parts else torch.empty_like(like)
            return [self._ranks.broadcast(own, owner(layer))]
        # Of consecutive layers, a rank has each `size`-th one: so many at most.
        most = -(-len(layers) // size)
        rows, width = like.shape
        own = torch.cat([*parts.values(), like.new_zeros((most - len(parts)) * rows, width)])
        gathered = self._ranks.all_gather(own).view(most, rows, size, width)
        return [
            gathered[(layer - layers.start) // size, :, owner(layer)].contiguous()
            for layer in layers
        ]


def attention_parts(ranks: RankGroup, owners: LayerOwners | None) -> AttentionParts:
    """What suits a placement."""
    return SummedParts(ranks) if owners is None else OwnedParts(ranks, owners)
